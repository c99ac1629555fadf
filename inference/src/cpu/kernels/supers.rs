//! Products with the formats of 256 values.

#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of rows at once"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::layout::{Layout, Next, Scales, Unpack, VECTOR, ask_ahead, dot, numbers, widen_numbers};
use super::{ROWS, Rows, tiled};
use crate::cpu::activations::{Row, SUPER, SuperSide};
use crate::cpu::format::SuperFormat;
use crate::cpu::isa::{Isa, Kernel, LANES};
use crate::cpu::pack::{CHUNK, Pack};
use std::marker::PhantomData;

/// The scales as `f32`, then for each pair of sub-blocks the integer scales, each twice, and the
/// factors of the corrections if there are any.
struct Wide;

impl Wide {
    /// Where the integers of a pair lie.
    #[inline(always)]
    unsafe fn pair<F: SuperFormat>(meta: *const u8, pair: usize) -> *const i32 {
        meta.add((F::SCALES + pair * vectors::<F>()) * VECTOR)
            .cast()
    }
}

impl<F: SuperFormat> Scales<F> for Wide {
    const BYTES: usize = (F::SCALES + pairs::<F>() * vectors::<F>()) * VECTOR;

    #[inline(always)]
    unsafe fn widen<I: Isa>(meta: *const u8, to: *mut u8) {
        widen_numbers::<I, F>(meta, to);
        for pair in 0..pairs::<F>() {
            let own = integers::<I, F, false>(meta, pair);
            let to = Self::pair::<F>(to, pair).cast_mut();
            I::store_i(to, own.low);
            I::store_i(to.add(LANES), own.high);
            if is_corrected::<F>() {
                I::store_i(to.add(2 * LANES), own.factors);
            }
        }
    }
}

/// Vectors of integers of a pair.
const fn vectors<F: SuperFormat>() -> usize {
    if is_corrected::<F>() { 3 } else { 2 }
}

/// The integers of two sub-blocks.
pub(super) struct Integers<I: Isa> {
    /// The scale of the first in both halves of every word.
    pub low: I::I,
    /// That of the second, likewise.
    pub high: I::I,
    /// What the sums of the activations are multiplied with: minima, or the scales.
    factors: I::I,
}

#[inline(always)]
pub(super) unsafe fn integers<I: Isa, F: SuperFormat, const WIDE: bool>(
    meta: *const u8,
    pair: usize,
) -> Integers<I> {
    if WIDE {
        let from = Wide::pair::<F>(meta, pair);
        let (low, high) = (I::load_i(from), I::load_i(from.add(LANES)));
        let factors = if is_corrected::<F>() {
            I::load_i(from.add(2 * LANES))
        } else {
            low
        };
        return Integers { low, high, factors };
    }
    let scales = F::scales::<I>(meta, pair);
    Integers {
        low: I::low_twice(scales),
        high: I::high_twice(scales),
        factors: if F::HAS_MIN {
            F::mins::<I>(meta, pair)
        } else {
            scales
        },
    }
}

/// Pairs of sub-blocks.
pub(super) const fn pairs<F: SuperFormat>() -> usize {
    if F::SUB16 { SUPER / 32 } else { SUPER / 64 }
}

/// Multiplies a tile with rows.
#[inline(always)]
pub(super) unsafe fn multiply<I: Isa, F: SuperFormat>(
    tile: *const u8,
    rows: Rows<'_>,
    out: *mut f32,
    scratch: &mut Vec<u8>,
) {
    let packed = Layout::packed::<F>(tile, rows.activations.columns());
    if rows.count == 1 {
        let row = rows.activations.supers(rows.first);
        let work = Supers::<F, F::Packing, 1, false>(packed, row, out, Next::NOTHING, PhantomData);
        I::call(work);
        return;
    }
    if tiled::takes::<I>(rows) {
        tiled::multiply::<I, F>(packed, rows, out, scratch);
        return;
    }
    for part in packed.parts::<F>(1) {
        let layout = I::call(Unpack::<F, Wide>(part, scratch, PhantomData));
        pass::<I, F, <F::Packing as Pack>::Unpacked>(part, layout, rows, out);
    }
}

/// Lets all rows pass over a part of a tile.
#[inline(always)]
unsafe fn pass<I: Isa, F: SuperFormat, P: Pack>(
    packed: Layout,
    layout: Layout,
    rows: Rows<'_>,
    out: *mut f32,
) {
    rows.steps(ROWS, |at, count| unsafe {
        let turns = packed.blocks * pairs::<F>();
        let next = packed.next(at, at + count, rows.count, turns);
        let row = rows.activations.supers(rows.first + at);
        let out = out.add(at * LANES);
        match count {
            1 => I::call(Supers::<F, P, 1, true>(layout, row, out, next, PhantomData)),
            2 => I::call(Supers::<F, P, 2, true>(layout, row, out, next, PhantomData)),
            _ => I::call(Supers::<F, P, 4, true>(layout, row, out, next, PhantomData)),
        }
    });
}

/// `out[row][lane] (+)= Σ over super-blocks of scale · scale' · Σ over sub-blocks of sub-scale ·
/// Σ q · q' (- min · scale' · Σ over sub-blocks of sub-min · Σ q')` for `N` rows that lie side by
/// side; `WIDE` says in which form the scales are.
struct Supers<F, P, const N: usize, const WIDE: bool>(
    Layout,
    Row<SuperSide>,
    *mut f32,
    Next,
    PhantomData<(F, P)>,
);

impl<F: SuperFormat, P: Pack, const N: usize, const WIDE: bool> Kernel for Supers<F, P, N, WIDE> {
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
        for block in 0..layout.blocks {
            let meta = layout.meta.add(block * layout.meta_step);
            let chunks = layout.quants.add(block * layout.quants_step);
            let block = layout.first + block;
            let (values, side) = (row.values.add(block * row.step), row.side(0, block));
            if N == 1 {
                ask_ahead::<I>(meta, F::TILE_BLOCK);
            }
            let (sums, corrections) = super_block::<I, F, P, N, WIDE>(
                meta,
                chunks,
                layout.chunk_step,
                values,
                side,
                &mut next,
            );
            let scales = numbers::<I, WIDE>(meta, 0);
            for n in 0..N {
                let own = (*side.add(n)).scale;
                let mut sum = sums[n];
                if F::OFFSET != 0 && !is_around_zero::<F>() {
                    let offset = I::mul_i(corrections[n], I::splat_i(F::OFFSET));
                    sum = I::sub_i(sum, offset);
                }
                let scale = I::mul(scales, I::splat(own));
                results[n] = I::fma(I::from_int(sum), scale, results[n]);
                if F::HAS_MIN {
                    let mins = I::mul(numbers::<I, WIDE>(meta, 1), I::splat(-own));
                    results[n] = I::fma(I::from_int(corrections[n]), mins, results[n]);
                }
            }
        }
        for n in 0..N {
            I::store(out.add(n * LANES), results[n]);
        }
    }
}

/// Whether the sums of a format begin with what its offset takes off.
const fn is_around_zero<F: SuperFormat>() -> bool {
    F::OFFSET == 32 && F::SUB16
}

/// Whether the sums of the activations are needed, scaled like the weights: for minima, and for
/// an offset that is not taken off beforehand.
const fn is_corrected<F: SuperFormat>() -> bool {
    F::HAS_MIN || F::OFFSET != 0 && !is_around_zero::<F>()
}

/// The integer part of one super-block: scaled sums, and where [`is_corrected`] says so the sums of
/// the activations scaled likewise.
#[inline(always)]
unsafe fn super_block<I: Isa, F: SuperFormat, P: Pack, const N: usize, const WIDE: bool>(
    meta: *const u8,
    chunks: *const u8,
    chunk_step: usize,
    values: *const i8,
    side: *const SuperSide,
    next: &mut Next,
) -> ([I::I; N], [I::I; N]) {
    let mut sums = [I::splat_i(0); N];
    let mut corrections = [I::splat_i(0); N];
    // Two sub-blocks at a time: they share a load of scales.
    for pair in 0..pairs::<F>() {
        if N > 1 {
            next.ask::<I>();
        }
        let scales = integers::<I, F, WIDE>(meta, pair);
        let low = |part| unsafe { I::acc_scaled(part, scales.low) };
        let high = |part| unsafe { I::acc_scaled(part, scales.high) };
        let (first, second) = if F::SUB16 {
            let (chunk, values) = (chunks.add(pair * chunk_step), values.add(pair * CHUNK));
            let a = starts::<I, F, P, N>(side, 2 * pair);
            let b = starts::<I, F, P, N>(side, 2 * pair + 1);
            (
                dot::<I, P, 0, 4, SUPER, N>(chunk, values, a.0, a.1, low),
                dot::<I, P, 4, 8, SUPER, N>(chunk, values, b.0, b.1, high),
            )
        } else {
            let chunk = chunks.add(2 * pair * chunk_step);
            let (next, values) = (chunk.add(chunk_step), values.add(2 * pair * CHUNK));
            let (zeros, limit) = ([I::acc_zero(); N], I::groups(P::BITS));
            (
                dot::<I, P, 0, 8, SUPER, N>(chunk, values, zeros, limit, low),
                dot::<I, P, 0, 8, SUPER, N>(next, values.add(CHUNK), zeros, limit, high),
            )
        };
        for n in 0..N {
            sums[n] = I::add_i(sums[n], I::add_i(first[n], second[n]));
        }
        if is_corrected::<F>() {
            for n in 0..N {
                let side = &*side.add(n);
                let own = match F::SUB16 {
                    true => side.sums16[pair],
                    false => side.sums32[pair],
                };
                let own = I::madd16(scales.factors, I::splat_i(own));
                corrections[n] = I::add_i(corrections[n], own);
            }
        }
    }
    (sums, corrections)
}

/// What the sums of a sub-block of 16 begin with, and how many groups they may take.
#[inline(always)]
unsafe fn starts<I: Isa, F: SuperFormat, P: Pack, const N: usize>(
    side: *const SuperSide,
    sub: usize,
) -> ([I::Acc; N], usize) {
    let mut starts = [I::acc_zero(); N];
    if !is_around_zero::<F>() {
        return (starts, I::groups(P::BITS));
    }
    for n in 0..N {
        starts[n] = I::acc_begin((*side.add(n)).less32[sub]);
    }
    (starts, I::groups_around_zero(P::BITS))
}
