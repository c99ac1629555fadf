//! Products with weights that are floats.

#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of rows at once"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::{ROWS, Rows};
use crate::cpu::isa::{Isa, Kernel, LANES};
use crate::gguf::TensorType;
use std::marker::PhantomData;

/// Multiplies a tile with rows.
#[inline(always)]
pub(super) unsafe fn multiply<I: Isa>(
    dtype: TensorType,
    tile: *const u8,
    rows: Rows<'_>,
    out: *mut f32,
) {
    match dtype {
        TensorType::F32 => pass::<I, AsF32>(tile, rows, out),
        TensorType::F16 => pass::<I, AsF16>(tile, rows, out),
        _ => pass::<I, AsBf16>(tile, rows, out),
    }
}

/// Lets the rows pass over the tile.
#[inline(always)]
unsafe fn pass<I: Isa, L: FloatLoad>(tile: *const u8, rows: Rows<'_>, out: *mut f32) {
    let columns = rows.activations.columns();
    rows.steps(ROWS, |at, count| unsafe {
        let row = rows.activations.floats(rows.first + at);
        let out = out.add(at * LANES);
        match count {
            1 => I::call(Floats::<L, 1>(tile, columns, row, out, PhantomData)),
            2 => I::call(Floats::<L, 2>(tile, columns, row, out, PhantomData)),
            _ => I::call(Floats::<L, 4>(tile, columns, row, out, PhantomData)),
        }
    });
}

/// Loads one vector of weights.
trait FloatLoad {
    unsafe fn load<I: Isa>(tile: *const u8, vector: usize) -> I::F;
}

struct AsF32;
struct AsF16;
struct AsBf16;

impl FloatLoad for AsF32 {
    #[inline(always)]
    unsafe fn load<I: Isa>(tile: *const u8, vector: usize) -> I::F {
        I::load(tile.cast::<f32>().add(vector * LANES))
    }
}

impl FloatLoad for AsF16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(tile: *const u8, vector: usize) -> I::F {
        I::load_f16(tile.cast::<u16>().add(vector * LANES))
    }
}

impl FloatLoad for AsBf16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(tile: *const u8, vector: usize) -> I::F {
        I::load_bf16(tile.cast::<u16>().add(vector * LANES))
    }
}

/// Four sums for each of `N` rows, of every fourth value, so that one need not wait for the other.
struct Floats<L, const N: usize>(*const u8, usize, *const f32, *mut f32, PhantomData<L>);

impl<L: FloatLoad, const N: usize> Kernel for Floats<L, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self(tile, columns, rows, out, _) = self;
        let mut parts = [[I::splat(0.0); 4]; N];
        for from in (0..columns / 4 * 4).step_by(4) {
            for part in 0..4 {
                let weights = L::load::<I>(tile, from + part);
                for n in 0..N {
                    let own = I::splat(*rows.add(n * columns + from + part));
                    parts[n][part] = I::fma(weights, own, parts[n][part]);
                }
            }
        }
        for column in columns / 4 * 4..columns {
            let weights = L::load::<I>(tile, column);
            for n in 0..N {
                let own = I::splat(*rows.add(n * columns + column));
                parts[n][column % 4] = I::fma(weights, own, parts[n][column % 4]);
            }
        }
        for n in 0..N {
            let [a, b, c, d] = parts[n];
            I::store(out.add(n * LANES), I::add(I::add(a, b), I::add(c, d)));
        }
    }
}
