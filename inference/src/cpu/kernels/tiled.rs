//! Products of many rows on a unit for tiles ([`TileUnit`]), where there is one.
//!
//! It gives the exact integer sums of sixteen rows with sixteen lanes. What follows is what the
//! other kernels do: the same multiply-adds in the same order, so the same bits.
//!
//! The weights are multiplied with the scales of their sub-blocks beforehand. That takes two bytes,
//! so there are two planes, and one sum in each for all 256 values of a super-block. Formats of 32
//! values gain nothing: a sum of its own for every 32 values takes the unit as long as the vectors.

#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of rows at once"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::layout::{CHUNK_BYTES, Layout, Next, Scales, VECTOR, numbers, widen_numbers};
use super::{Rows, supers, unroll_groups};
use crate::cpu::activations::{Row, SUPER, SuperSide};
use crate::cpu::format::SuperFormat;
use crate::cpu::isa::{Isa, Kernel, LANES, TILE_ROWS, TILE_SUMS, TileUnit};
use crate::cpu::pack::{GROUP_BYTES, GROUPS, Pack};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Fewer rows than this are multiplied sooner without the unit.
pub(crate) const LEAST: usize = 12;

/// Whether the unit multiplies these rows.
#[inline(always)]
pub(super) fn takes<I: Isa>(rows: Rows<'_>) -> bool {
    I::Tiles::THERE && rows.count >= LEAST && rows.first.is_multiple_of(TILE_ROWS)
}

/// Sums of both planes.
#[repr(C, align(64))]
struct Sums([i32; PLANES * TILE_SUMS]);

/// Room for sums while others are being made.
struct Buffers([MaybeUninit<Sums>; 2]);

impl Buffers {
    #[inline(always)]
    fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; 2])
    }

    /// One of the two, by turns.
    #[inline(always)]
    fn at(&mut self, turn: usize) -> *mut i32 {
        self.0[turn % 2].as_mut_ptr().cast()
    }
}

/// Goes over the rows, sixteen at a time; the last ones may be fewer, and all sixteen are computed
/// if they are more than eight.
#[inline(always)]
fn steps(rows: Rows<'_>, mut step: impl FnMut(usize, usize)) {
    for at in (0..rows.count).step_by(TILE_ROWS) {
        step(at, rows.count.min(at + TILE_ROWS) - at);
    }
}

/// Multiplies a tile of a format of 256 values with rows.
#[inline(always)]
pub(super) unsafe fn multiply<I: Isa, F: SuperFormat>(
    packed: Layout,
    rows: Rows<'_>,
    out: *mut f32,
    scratch: &mut Vec<u8>,
) {
    I::Tiles::begin();
    for part in packed.parts::<F>(PLANES) {
        let layout = I::call(Planes::<F>(part, scratch, PhantomData));
        steps(rows, |at, count| unsafe {
            let next = part.next(at, at + count, rows.count, part.blocks);
            let row = rows.activations.supers(rows.first + at);
            let out = out.add(at * LANES);
            match count {
                ..=8 => I::call(Supers::<F, 8>(layout, row, out, next, PhantomData)),
                _ => I::call(Supers::<F, 16>(layout, row, out, next, PhantomData)),
            }
        });
    }
    I::Tiles::end();
}

/// Planes of a product of weight and scale.
const PLANES: usize = 2;
/// Bytes of a plane of a super-block.
const PLANE: usize = SUPER * LANES;

/// What the kernel wants of the scales: the `f32` ones, then for each pair of sub-blocks the minima
/// if there are any.
struct Minima;

impl Minima {
    #[inline(always)]
    unsafe fn pair<F: SuperFormat>(meta: *const u8, pair: usize) -> *const i32 {
        meta.add((F::SCALES + pair) * VECTOR).cast()
    }
}

impl<F: SuperFormat> Scales<F> for Minima {
    const BYTES: usize = (F::SCALES + F::HAS_MIN as usize * supers::pairs::<F>()) * VECTOR;

    #[inline(always)]
    unsafe fn widen<I: Isa>(meta: *const u8, to: *mut u8) {
        widen_numbers::<I, F>(meta, to);
        if F::HAS_MIN {
            for pair in 0..supers::pairs::<F>() {
                let to = Self::pair::<F>(to, pair).cast_mut();
                I::store_i(to, F::mins::<I>(meta, pair));
            }
        }
    }
}

/// Unpacks a part of a tile into two planes of scaled weights.
struct Planes<'a, F>(Layout, &'a mut Vec<u8>, PhantomData<F>);

impl<F: SuperFormat> Kernel for Planes<'_, F> {
    type Output = Layout;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> Layout {
        let Self(packed, scratch, _) = self;
        let layout = packed.in_scratch::<F, Minima>(PLANES, scratch);
        for block in 0..packed.blocks {
            let meta = packed.meta.add(block * packed.meta_step);
            let chunks = packed.quants.add(block * packed.quants_step);
            let to = layout.quants.add(block * layout.quants_step).cast_mut();
            for pair in 0..supers::pairs::<F>() {
                scale_pair::<I, F>(meta, chunks, pair, packed.chunk_step, to);
            }
            let to = layout.meta.add(block * layout.meta_step).cast_mut();
            Minima::widen::<I, F>(meta, to);
        }
        layout
    }
}

impl Minima {
    /// [`Scales::widen`], said shortly.
    #[inline(always)]
    unsafe fn widen<I: Isa, F: SuperFormat>(meta: *const u8, to: *mut u8) {
        <Self as Scales<F>>::widen::<I>(meta, to);
    }
}

/// Scales the weights of two sub-blocks.
#[inline(always)]
unsafe fn scale_pair<I: Isa, F: SuperFormat>(
    meta: *const u8,
    chunks: *const u8,
    pair: usize,
    chunk_step: usize,
    to: *mut u8,
) {
    let scales = supers::integers::<I, F, false>(meta, pair);
    let mut words = [[0i32; LANES]; 2];
    I::store_i(words[0].as_mut_ptr(), scales.low);
    I::store_i(words[1].as_mut_ptr(), scales.high);
    let chunks_of_pair = if F::SUB16 { 1 } else { 2 };
    for part in 0..chunks_of_pair {
        let chunk = pair * chunks_of_pair + part;
        let from = chunks.add(chunk * chunk_step);
        let to = to.add(chunk * CHUNK_BYTES);
        unroll_groups!(G, {
            let mut group = [0u8; GROUP_BYTES];
            I::store_b(group.as_mut_ptr(), F::Packing::group::<I>(from, G));
            let sub = if F::SUB16 { G / (GROUPS / 2) } else { part };
            let to = to.add(G * GROUP_BYTES);
            let planes = [to, to.add(PLANE)];
            I::Tiles::scale(
                group.as_ptr(),
                F::OFFSET as i16,
                words[sub].as_ptr(),
                planes,
            );
        });
    }
}

/// What [`super::supers`] computes, for `N` rows that lie side by side.
struct Supers<F, const N: usize>(Layout, Row<SuperSide>, *mut f32, Next, PhantomData<F>);

impl<F: SuperFormat, const N: usize> Supers<F, N> {
    /// Has the unit make the sums of a super-block.
    #[inline(always)]
    unsafe fn sums<I: Isa>(&self, block: usize, sums: *mut i32) {
        let Self(layout, row, ..) = self;
        let lower = layout.quants.add(block * layout.quants_step);
        let values = row.values.add((layout.first + block) * row.step);
        I::Tiles::supers([lower, lower.add(PLANE)], values, sums);
    }
}

impl<F: SuperFormat, const N: usize> Kernel for Supers<F, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(mut self) {
        let (layout, row, out) = (self.0, self.1, self.2);
        let mut results = load_results::<I, N>(out, layout.first);
        let mut buffers = Buffers::new();
        self.sums::<I>(0, buffers.at(0));
        for block in 0..layout.blocks {
            if block + 1 < layout.blocks {
                self.sums::<I>(block + 1, buffers.at(block + 1));
            }
            self.3.ask::<I>();
            let meta = layout.meta.add(block * layout.meta_step);
            let side = row.side(0, layout.first + block);
            add_super::<I, F, N>(&mut results, buffers.at(block), meta, side);
        }
        store_results::<I, N>(out, &results);
    }
}

/// Adds a super-block, scaled.
#[inline(always)]
unsafe fn add_super<I: Isa, F: SuperFormat, const N: usize>(
    results: &mut [I::F; N],
    sums: *const i32,
    meta: *const u8,
    side: *const SuperSide,
) {
    let scales = numbers::<I, true>(meta, 0);
    let upper = I::splat_i(1 << 7);
    for n in 0..N {
        let side = &*side.add(n);
        let lower = I::load_i(sums.add(n * LANES));
        let upper = I::mul_i(I::load_i(sums.add(TILE_SUMS + n * LANES)), upper);
        let scale = I::mul(scales, I::splat(side.scale));
        results[n] = I::fma(I::from_int(I::add_i(lower, upper)), scale, results[n]);
        if F::HAS_MIN {
            let correction = correction::<I, F>(meta, side);
            let mins = I::mul(numbers::<I, true>(meta, 1), I::splat(-side.scale));
            results[n] = I::fma(I::from_int(correction), mins, results[n]);
        }
    }
}

/// The sums of the activations, scaled with the minima.
#[inline(always)]
unsafe fn correction<I: Isa, F: SuperFormat>(meta: *const u8, side: &SuperSide) -> I::I {
    let mut sum = I::splat_i(0);
    for pair in 0..supers::pairs::<F>() {
        let own = match F::SUB16 {
            true => side.sums16[pair],
            false => side.sums32[pair],
        };
        let factors = I::load_i(Minima::pair::<F>(meta, pair));
        sum = I::add_i(sum, I::madd16(factors, I::splat_i(own)));
    }
    sum
}

/// What the blocks before `first` gave.
#[inline(always)]
unsafe fn load_results<I: Isa, const N: usize>(out: *const f32, first: usize) -> [I::F; N] {
    let mut results = [I::splat(0.0); N];
    if first > 0 {
        for n in 0..N {
            results[n] = I::load(out.add(n * LANES));
        }
    }
    results
}

#[inline(always)]
unsafe fn store_results<I: Isa, const N: usize>(out: *mut f32, results: &[I::F; N]) {
    for n in 0..N {
        I::store(out.add(n * LANES), results[n]);
    }
}
