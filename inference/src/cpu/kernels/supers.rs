//! Products with the formats of 256 values.

#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of rows at once"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::Rows;
use super::layout::{Layout, Unpack, ask_ahead, dot};
use crate::cpu::activations::{Row, SUPER, SuperSide};
use crate::cpu::format::SuperFormat;
use crate::cpu::isa::{Isa, Kernel, LANES};
use crate::cpu::pack::{CHUNK, Pack};
use std::marker::PhantomData;

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
        I::call(Supers::<F, F::Packing, 1>(packed, row, out, PhantomData));
        return;
    }
    for part in packed.parts::<F>(1) {
        let layout = I::call(Unpack::<F>(part, scratch, PhantomData));
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
    rows.steps(|at, count| unsafe {
        packed.ask_for_next::<I>(at, at + count, rows.count);
        let row = rows.activations.supers(rows.first + at);
        let out = out.add(at * LANES);
        match count {
            1 => I::call(Supers::<F, P, 1>(layout, row, out, PhantomData)),
            2 => I::call(Supers::<F, P, 2>(layout, row, out, PhantomData)),
            _ => I::call(Supers::<F, P, 4>(layout, row, out, PhantomData)),
        }
    });
}

/// `out[row][lane] (+)= Σ over super-blocks of scale · scale' · Σ over sub-blocks of sub-scale ·
/// Σ q · q' (- min · scale' · Σ over sub-blocks of sub-min · Σ q')` for `N` rows that lie side by
/// side.
struct Supers<F, P, const N: usize>(Layout, Row<SuperSide>, *mut f32, PhantomData<(F, P)>);

impl<F: SuperFormat, P: Pack, const N: usize> Kernel for Supers<F, P, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self(layout, row, out, _) = self;
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
            let (sums, corrections) =
                super_block::<I, F, P, N>(meta, chunks, layout.chunk_step, values, side);
            let scales = I::load_f16(meta.cast());
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
                    let mins = I::mul(I::load_f16(meta.add(2 * LANES).cast()), I::splat(-own));
                    results[n] = I::fma(I::from_int(corrections[n]), mins, results[n]);
                }
            }
        }
        for n in 0..N {
            I::store(out.add(n * LANES), results[n]);
        }
    }
}

/// Whether the sums of a format begin with what its offset takes off; otherwise the corrections of
/// [`super_block`] do it.
const fn is_around_zero<F: SuperFormat>() -> bool {
    F::OFFSET == 32 && F::SUB16
}

/// The integer part of one super-block: scaled sums, and for formats with an offset or with
/// minima the sums of the activations scaled likewise.
#[inline(always)]
unsafe fn super_block<I: Isa, F: SuperFormat, P: Pack, const N: usize>(
    meta: *const u8,
    chunks: *const u8,
    chunk_step: usize,
    values: *const i8,
    side: *const SuperSide,
) -> ([I::I; N], [I::I; N]) {
    let mut sums = [I::splat_i(0); N];
    let mut corrections = [I::splat_i(0); N];
    // Two sub-blocks at a time: they share a load of scales.
    let pairs = if F::SUB16 { SUPER / 32 } else { SUPER / 64 };
    for pair in 0..pairs {
        let scales = F::scales::<I>(meta, pair);
        let (low, high) = (I::low_twice(scales), I::high_twice(scales));
        let low = |part| unsafe { I::acc_scaled(part, low) };
        let high = |part| unsafe { I::acc_scaled(part, high) };
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
        if F::HAS_MIN || F::OFFSET != 0 && !is_around_zero::<F>() {
            let factors = if F::HAS_MIN {
                F::mins::<I>(meta, pair)
            } else {
                scales
            };
            for n in 0..N {
                let side = &*side.add(n);
                let own = match F::SUB16 {
                    true => side.sums16[pair],
                    false => side.sums32[pair],
                };
                let own = I::madd16(factors, I::splat_i(own));
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
