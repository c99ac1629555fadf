//! Products with the formats of 32 values.

#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of rows at once"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::layout::{
    Layout, Next, Scales, Split, Unpack, VECTOR, ask_ahead, dot, dot_signed, dot_split, numbers,
    widen_numbers,
};
use super::{ROWS, Rows};
use crate::cpu::activations::{BlockSide, Row};
use crate::cpu::format::BlockFormat;
use crate::cpu::isa::{Isa, Kernel, LANES};
use crate::cpu::pack::{CHUNK, GROUPS, Pack};
use std::marker::PhantomData;

/// How the integers of a block are multiplied: exact sums of `weight · value`.
trait Dot<F> {
    /// The products of a chunk with `N` rows. What unsigned weights count too much is taken off.
    unsafe fn dot<I: Isa, const N: usize>(
        chunk: *const u8,
        values: *const i8,
        side: *const BlockSide,
    ) -> [I::I; N];
}

/// Unsigned values in the packing `P`.
struct Unsigned<P>(PhantomData<P>);

impl<F: BlockFormat, P: Pack> Dot<F> for Unsigned<P> {
    #[inline(always)]
    unsafe fn dot<I: Isa, const N: usize>(
        chunk: *const u8,
        values: *const i8,
        side: *const BlockSide,
    ) -> [I::I; N] {
        let limit = match F::OFFSET {
            0 => I::groups(P::BITS),
            _ => I::groups_around_zero(P::BITS),
        };
        let mut starts = [I::acc_zero(); N];
        for n in 0..N {
            match F::OFFSET {
                0 => {}
                8 => starts[n] = I::acc_begin((*side.add(n)).less8),
                _ => starts[n] = I::acc_begin((*side.add(n)).less16),
            }
        }
        dot::<I, P, 0, GROUPS, CHUNK, N>(chunk, values, starts, limit, |part| unsafe {
            I::acc_finish(part)
        })
    }
}

/// Signed bytes.
struct Signed;

impl<F: BlockFormat> Dot<F> for Signed {
    #[inline(always)]
    unsafe fn dot<I: Isa, const N: usize>(
        chunk: *const u8,
        values: *const i8,
        side: *const BlockSide,
    ) -> [I::I; N] {
        let mut sums = dot_signed::<I, F::Packing, CHUNK, N>(chunk, values);
        if I::SIGNED_OFFSET != 0 {
            let sixteenth = I::SIGNED_OFFSET / 16;
            let factor = I::splat_i(sixteenth << 16 | sixteenth);
            for n in 0..N {
                let less = I::madd16(I::splat_i((*side.add(n)).less16), factor);
                sums[n] = I::add_i(sums[n], less);
            }
        }
        sums
    }
}

/// Signed bytes in two planes.
struct InPlanes;

impl<F: BlockFormat> Dot<F> for InPlanes {
    #[inline(always)]
    unsafe fn dot<I: Isa, const N: usize>(
        chunk: *const u8,
        values: *const i8,
        side: *const BlockSide,
    ) -> [I::I; N] {
        let mut starts = [I::acc_zero(); N];
        for n in 0..N {
            starts[n] = I::acc_begin((*side.add(n)).less16);
        }
        dot_split::<I, CHUNK, N>(chunk, values, starts)
    }
}

/// The scales, and the minima if there are any, as `f32`.
struct Wide;

impl<F: BlockFormat> Scales<F> for Wide {
    const BYTES: usize = F::SCALES * VECTOR;

    #[inline(always)]
    unsafe fn widen<I: Isa>(meta: *const u8, to: *mut u8) {
        widen_numbers::<I, F>(meta, to);
    }
}

/// Multiplies a tile with rows.
#[inline(always)]
pub(super) unsafe fn multiply<I: Isa, F: BlockFormat>(
    tile: *const u8,
    rows: Rows<'_>,
    out: *mut f32,
    scratch: &mut Vec<u8>,
) {
    let packed = Layout::packed::<F>(tile, rows.activations.columns());
    if pass_once::<I>(rows) {
        let row = rows.activations.blocks(rows.first);
        if F::SIGNED {
            straight::<I, F, Signed>(packed, row, rows.count, out);
        } else {
            straight::<I, F, Unsigned<F::Packing>>(packed, row, rows.count, out);
        }
    } else if F::SIGNED && I::SPLIT_SIGNED {
        for part in packed.parts::<F>(2) {
            let layout = I::call(Split::<F, Wide>(part, scratch, PhantomData));
            pass::<I, F, InPlanes>(part, layout, rows, out);
        }
    } else if F::SIGNED {
        for part in packed.parts::<F>(1) {
            let layout = I::call(Unpack::<F, Wide>(part, scratch, PhantomData));
            pass::<I, F, Signed>(part, layout, rows, out);
        }
    } else {
        for part in packed.parts::<F>(1) {
            let layout = I::call(Unpack::<F, Wide>(part, scratch, PhantomData));
            pass::<I, F, Unsigned<<F::Packing as Pack>::Unpacked>>(part, layout, rows, out);
        }
    }
}

/// Whether the rows are multiplied straight out of the packed chunks. Unpacking pays where they pass
/// more than once, or where registers are few.
#[inline(always)]
fn pass_once<I: Isa>(rows: Rows<'_>) -> bool {
    let is_wide = I::ROWS > ROWS && rows.first.is_multiple_of(I::ROWS);
    rows.count == 1 || is_wide && [2, ROWS, I::ROWS].contains(&rows.count)
}

/// Lets one, two, four or eight rows pass over a packed tile.
#[inline(always)]
unsafe fn straight<I: Isa, F: BlockFormat, D: Dot<F>>(
    tile: Layout,
    row: Row<BlockSide>,
    count: usize,
    out: *mut f32,
) {
    let next = Next::NOTHING;
    match count {
        1 => I::call(Blocks::<F, D, 1, false>(tile, row, out, next, PhantomData)),
        2 => I::call(Blocks::<F, D, 2, false>(tile, row, out, next, PhantomData)),
        ROWS => I::call(Blocks::<F, D, 4, false>(tile, row, out, next, PhantomData)),
        _ => I::call(Blocks::<F, D, 8, false>(tile, row, out, next, PhantomData)),
    }
}

/// Lets all rows pass over a part of a tile.
#[inline(always)]
unsafe fn pass<I: Isa, F: BlockFormat, D: Dot<F>>(
    packed: Layout,
    layout: Layout,
    rows: Rows<'_>,
    out: *mut f32,
) {
    rows.steps(I::ROWS, |at, count| unsafe {
        let next = packed.next(at, at + count, rows.count, packed.blocks);
        let row = rows.activations.blocks(rows.first + at);
        let out = out.add(at * LANES);
        match count {
            1 => I::call(Blocks::<F, D, 1, true>(layout, row, out, next, PhantomData)),
            2 => I::call(Blocks::<F, D, 2, true>(layout, row, out, next, PhantomData)),
            8 => I::call(Blocks::<F, D, 8, true>(layout, row, out, next, PhantomData)),
            _ => I::call(Blocks::<F, D, 4, true>(layout, row, out, next, PhantomData)),
        }
    });
}

/// `out[row][lane] (+)= Σ over blocks of scale · scale' · Σ q · q' (+ min · scaled sum)` for `N`
/// rows that lie side by side; `WIDE` says in which form the scales are.
struct Blocks<F, D, const N: usize, const WIDE: bool>(
    Layout,
    Row<BlockSide>,
    *mut f32,
    Next,
    PhantomData<(F, D)>,
);

impl<F: BlockFormat, D: Dot<F>, const N: usize, const WIDE: bool> Kernel for Blocks<F, D, N, WIDE> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self(layout, row, out, mut next, _) = self;
        let mut results = [I::splat(0.0); N];
        if layout.first > 0 {
            for n in 0..N {
                results[n] = I::load(out.add(n * LANES));
            }
        }
        let mut values = row.values.add(layout.first * row.step);
        let mut side = row.side(0, layout.first);
        let (mut meta, mut chunk) = (layout.meta, layout.quants);
        for _ in 0..layout.blocks {
            if !WIDE {
                ask_ahead::<I>(meta, F::TILE_BLOCK);
            } else {
                next.ask::<I>();
            }
            let sums = D::dot::<I, N>(chunk, values, side);
            let scales = numbers::<I, WIDE>(meta, 0);
            for n in 0..N {
                let own = &*side.add(n);
                let scale = I::mul(scales, I::splat(own.scale));
                results[n] = I::fma(I::from_int(sums[n]), scale, results[n]);
                if F::HAS_MIN {
                    let mins = numbers::<I, WIDE>(meta, 1);
                    results[n] = I::fma(mins, I::splat(own.scaled_sum), results[n]);
                }
            }
            values = values.add(row.step);
            side = side.byte_add(row.step);
            meta = meta.add(layout.meta_step);
            chunk = chunk.add(layout.quants_step);
        }
        for n in 0..N {
            I::store(out.add(n * LANES), results[n]);
        }
    }
}
