//! Products of one tile of weights with rows of activations.
//!
//! Each lane is one output, and its blocks are added in order: first the exact integer sum of a
//! block, then one fused multiply-add with the scales. That order is the numerics class: it is
//! the same for one row and for many, and on every instruction set.
//!
//! One row is multiplied straight out of the packed chunks. For more, the tile is unpacked once
//! and stays in the nearest cache while the rows pass, four at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of rows at once"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::activations::{Activations, Row, SUPER};
use super::format::{ActivationForm, BlockFormat, Format, Kind, SuperFormat, with_format};
use super::isa::{Isa, Kernel, LANES};
use super::pack::{CHUNK, GROUP_BYTES, GROUPS, Pack};
use crate::gguf::TensorType;
use std::marker::PhantomData;

/// Rows that pass over an unpacked tile at a time.
const ROWS: usize = 4;
/// How far ahead of the multiplication packed weights are asked for.
const AHEAD: usize = 1024;

/// Repeats a block for each of the eight groups, whose number is a constant in it.
macro_rules! unroll_groups {
    ($group:ident, $body:block) => {{
        unroll_groups!(@each $group, $body, 0 1 2 3 4 5 6 7);
    }};
    (@each $group:ident, $body:block, $($number:literal)*) => {
        $({
            #[allow(non_upper_case_globals, reason = "a constant that reads as a variable")]
            const $group: usize = $number;
            $body
        })*
    };
}

/// Rows of the activations that a tile is multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// The activations.
    pub activations: &'a Activations,
    /// The first row.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// Multiplies a tile with rows: one vector of [`LANES`] per row.
pub(crate) struct TileProduct<'a> {
    pub kind: Kind,
    /// A whole tile of the kind, as wide as the rows, which have been brought into its form.
    pub tile: *const u8,
    pub rows: Rows<'a>,
    /// Room for the results.
    pub out: *mut f32,
    pub scratch: &'a mut Vec<u8>,
}

impl Kernel for TileProduct<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self {
            kind,
            tile,
            rows,
            out,
            scratch,
        } = self;
        match kind {
            Kind::Quantised(dtype) => {
                with_format!(dtype, block_tile, super_tile, [I], tile, rows, out, scratch);
            }
            Kind::Float(dtype) => float_tile::<I>(dtype, tile, rows, out),
        }
    }
}

/// Where the parts of a tile's blocks lie: packed or unpacked.
#[derive(Clone, Copy)]
struct Layout {
    meta: *const u8,
    meta_step: usize,
    quants: *const u8,
    /// From one block to the next.
    quants_step: usize,
    /// From one chunk of a block to the next.
    chunk_step: usize,
    blocks: usize,
}

impl Layout {
    /// The tile as it lies in memory.
    fn packed<F: Format>(tile: *const u8, columns: usize) -> Self {
        Self {
            meta: tile,
            meta_step: F::TILE_BLOCK,
            quants: tile.wrapping_add(F::META),
            quants_step: F::TILE_BLOCK,
            chunk_step: F::Packing::BYTES,
            blocks: columns / F::BLOCK,
        }
    }

    /// The same, but with the integers unpacked into `scratch`.
    #[inline(always)]
    unsafe fn unpacked<I: Isa, F: Format>(self, scratch: &mut Vec<u8>) -> Self {
        let chunk = GROUPS * GROUP_BYTES;
        let needed = self.blocks * F::CHUNKS * chunk;
        if scratch.len() < needed {
            scratch.resize(needed, 0);
        }
        let mut to = scratch.as_mut_ptr();
        for block in 0..self.blocks {
            for part in 0..F::CHUNKS {
                let from = self
                    .quants
                    .add(block * self.quants_step + part * self.chunk_step);
                unroll_groups!(G, {
                    I::store_b(to.add(G * GROUP_BYTES), F::Packing::group::<I>(from, G));
                });
                to = to.add(chunk);
            }
        }
        Self {
            quants: scratch.as_ptr(),
            quants_step: F::CHUNKS * chunk,
            chunk_step: chunk,
            ..self
        }
    }
}

/// Runs the kernel `$run::<…, N>` with as many rows at a time as there are, at most [`ROWS`].
macro_rules! in_fours {
    ($rows:expr, $form:expr, $out:expr, $run:ident, [$($types:ty),*], $layout:expr) => {{
        let rows = $rows;
        let row = |at: usize| rows.activations.row($form, rows.first + at);
        let mut done = 0;
        while done + ROWS <= rows.count {
            let four = [row(done), row(done + 1), row(done + 2), row(done + 3)];
            I::call($run::<$($types,)* 4>($layout, four, $out.add(done * LANES), PhantomData));
            done += ROWS;
        }
        if done + 2 <= rows.count {
            let two = [row(done), row(done + 1)];
            I::call($run::<$($types,)* 2>($layout, two, $out.add(done * LANES), PhantomData));
            done += 2;
        }
        if done < rows.count {
            I::call($run::<$($types,)* 1>($layout, [row(done)], $out.add(done * LANES), PhantomData));
        }
    }};
}

/// [`run_blocks`] as a kernel.
struct Blocks<F, P, const N: usize>(Layout, [Row; N], *mut f32, PhantomData<(F, P)>);

impl<F: BlockFormat, P: Pack, const N: usize> Kernel for Blocks<F, P, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        run_blocks::<I, F, P, N>(self.0, self.1, self.2);
    }
}

/// [`run_supers`] as a kernel.
struct Supers<F, P, const N: usize>(Layout, [Row; N], *mut f32, PhantomData<(F, P)>);

impl<F: SuperFormat, P: Pack, const N: usize> Kernel for Supers<F, P, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        run_supers::<I, F, P, N>(self.0, self.1, self.2);
    }
}

/// [`run_floats`] as a kernel.
struct Floats<L, const N: usize>(Layout, [Row; N], *mut f32, PhantomData<L>);

impl<L: FloatLoad, const N: usize> Kernel for Floats<L, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        run_floats::<I, L, N>(self.0, self.1, self.2);
    }
}

/// [`Layout::unpacked`] as a kernel.
struct Unpack<'a, F>(Layout, &'a mut Vec<u8>, PhantomData<F>);

impl<F: Format> Kernel for Unpack<'_, F> {
    type Output = Layout;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> Layout {
        self.0.unpacked::<I, F>(self.1)
    }
}

#[inline(always)]
unsafe fn block_tile<I: Isa, F: BlockFormat>(
    tile: *const u8,
    rows: Rows<'_>,
    out: *mut f32,
    scratch: &mut Vec<u8>,
) {
    let form = ActivationForm::Blocks;
    let packed = Layout::packed::<F>(tile, rows.activations.columns());
    if rows.count == 1 {
        let row = rows.activations.row(form, rows.first);
        return I::call(Blocks::<F, F::Packing, 1>(packed, [row], out, PhantomData));
    }
    let layout = I::call(Unpack::<F>(packed, scratch, PhantomData));
    in_fours!(
        rows,
        form,
        out,
        Blocks,
        [F, <F::Packing as Pack>::Unpacked],
        layout
    );
}

#[inline(always)]
unsafe fn super_tile<I: Isa, F: SuperFormat>(
    tile: *const u8,
    rows: Rows<'_>,
    out: *mut f32,
    scratch: &mut Vec<u8>,
) {
    let form = ActivationForm::Supers;
    let packed = Layout::packed::<F>(tile, rows.activations.columns());
    if rows.count == 1 {
        let row = rows.activations.row(form, rows.first);
        return I::call(Supers::<F, F::Packing, 1>(packed, [row], out, PhantomData));
    }
    let layout = I::call(Unpack::<F>(packed, scratch, PhantomData));
    in_fours!(
        rows,
        form,
        out,
        Supers,
        [F, <F::Packing as Pack>::Unpacked],
        layout
    );
}

/// Four bytes of a row, from value `at` on.
#[inline(always)]
unsafe fn four(row: Row, at: usize) -> i32 {
    row.values.add(at).cast::<i32>().read_unaligned()
}

/// Adds the products of groups `FROM..TO` of a chunk with the rows' values from `at` on.
#[inline(always)]
unsafe fn dot<I: Isa, P: Pack, const FROM: usize, const TO: usize, const N: usize>(
    chunk: *const u8,
    rows: [Row; N],
    at: usize,
) -> [I::I; N] {
    let limit = I::groups(P::BITS);
    let mut sums = [I::splat_i(0); N];
    let mut parts = [I::acc_zero(); N];
    unroll_groups!(G, {
        if (FROM..TO).contains(&G) {
            let weights = P::group::<I>(chunk, G);
            for row in 0..N {
                parts[row] = I::acc(parts[row], weights, four(rows[row], at + 4 * G));
            }
            if (G - FROM) % limit == limit - 1 || G == TO - 1 {
                for row in 0..N {
                    sums[row] = I::add_i(sums[row], I::acc_finish(parts[row]));
                    parts[row] = I::acc_zero();
                }
            }
        }
    });
    sums
}

/// The same for a whole chunk of signed bytes.
#[inline(always)]
unsafe fn dot_signed<I: Isa, P: Pack, const N: usize>(
    chunk: *const u8,
    rows: [Row; N],
    at: usize,
) -> [I::I; N] {
    let mut sums = [I::splat_i(0); N];
    unroll_groups!(G, {
        let weights = P::group::<I>(chunk, G);
        for row in 0..N {
            sums[row] = I::acc_signed(sums[row], weights, four(rows[row], at + 4 * G));
        }
    });
    sums
}

/// `out[row][lane] = Σ over blocks of scale · scale' · Σ q · q' (+ min · scaled sum)`
#[inline(always)]
unsafe fn run_blocks<I: Isa, F: BlockFormat, P: Pack, const N: usize>(
    layout: Layout,
    rows: [Row; N],
    out: *mut f32,
) {
    let offset = F::OFFSET + if F::SIGNED { I::SIGNED_OFFSET } else { 0 };
    let mut results = [I::splat(0.0); N];
    for block in 0..layout.blocks {
        let meta = layout.meta.add(block * layout.meta_step);
        let chunk = layout.quants.add(block * layout.quants_step);
        if N == 1 {
            ask_ahead::<I>(meta, F::TILE_BLOCK);
        }
        let sums = if F::SIGNED {
            dot_signed::<I, P, N>(chunk, rows, block * CHUNK)
        } else {
            dot::<I, P, 0, GROUPS, N>(chunk, rows, block * CHUNK)
        };
        let scales = I::load_f16(meta.cast());
        for row in 0..N {
            let mut sum = sums[row];
            if offset != 0 {
                let own = i32::from(*rows[row].sums.add(block));
                sum = I::sub_i(sum, I::splat_i(offset * own));
            }
            let scale = I::mul(scales, I::splat(*rows[row].scales.add(block)));
            results[row] = I::fma(I::from_int(sum), scale, results[row]);
            if F::HAS_MIN {
                let mins = I::load_f16(meta.add(2 * LANES).cast());
                let scaled_sum = I::splat(*rows[row].scaled_sums.add(block));
                results[row] = I::fma(mins, scaled_sum, results[row]);
            }
        }
    }
    for row in 0..N {
        I::store(out.add(row * LANES), results[row]);
    }
}

/// Asks for the lines of the block that lies [`AHEAD`] bytes on.
#[inline(always)]
unsafe fn ask_ahead<I: Isa>(block: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        I::prefetch(block.wrapping_add(AHEAD + 64 * line));
    }
}

/// `out[row][lane] = Σ over super-blocks of scale · scale' · Σ over sub-blocks of sub-scale ·
/// Σ q · q' (- min · scale' · Σ over sub-blocks of sub-min · Σ q')`
#[inline(always)]
unsafe fn run_supers<I: Isa, F: SuperFormat, P: Pack, const N: usize>(
    layout: Layout,
    rows: [Row; N],
    out: *mut f32,
) {
    let mut results = [I::splat(0.0); N];
    for block in 0..layout.blocks {
        let meta = layout.meta.add(block * layout.meta_step);
        let chunks = layout.quants.add(block * layout.quants_step);
        if N == 1 {
            ask_ahead::<I>(meta, F::TILE_BLOCK);
        }
        let (sums, corrections) =
            super_block::<I, F, P, N>(meta, chunks, layout.chunk_step, rows, block);
        let scales = I::load_f16(meta.cast());
        for row in 0..N {
            let own = *rows[row].scales.add(block);
            let mut sum = sums[row];
            if F::OFFSET != 0 {
                let offset = I::mul_i(corrections[row], I::splat_i(F::OFFSET));
                sum = I::sub_i(sum, offset);
            }
            let scale = I::mul(scales, I::splat(own));
            results[row] = I::fma(I::from_int(sum), scale, results[row]);
            if F::HAS_MIN {
                let mins = I::mul(I::load_f16(meta.add(2 * LANES).cast()), I::splat(-own));
                results[row] = I::fma(I::from_int(corrections[row]), mins, results[row]);
            }
        }
    }
    for row in 0..N {
        I::store(out.add(row * LANES), results[row]);
    }
}

/// The integer part of one super-block: scaled sums, and for formats with an offset or with
/// minima the sums of the activations scaled likewise.
#[inline(always)]
unsafe fn super_block<I: Isa, F: SuperFormat, P: Pack, const N: usize>(
    meta: *const u8,
    chunks: *const u8,
    chunk_step: usize,
    rows: [Row; N],
    block: usize,
) -> ([I::I; N], [I::I; N]) {
    let mut sums = [I::splat_i(0); N];
    let mut corrections = [I::splat_i(0); N];
    let at = block * SUPER;
    // Two sub-blocks at a time: they share a load of scales.
    let pairs = if F::SUB16 { SUPER / 32 } else { SUPER / 64 };
    for pair in 0..pairs {
        let scales = F::scales::<I>(meta, pair);
        let (low, high) = (I::low16(scales), I::high16(scales));
        let (first, second) = if F::SUB16 {
            let chunk = chunks.add(pair * chunk_step);
            let at = at + pair * CHUNK;
            (
                dot::<I, P, 0, 4, N>(chunk, rows, at),
                dot::<I, P, 4, 8, N>(chunk, rows, at),
            )
        } else {
            let chunk = chunks.add(2 * pair * chunk_step);
            let at = at + 2 * pair * CHUNK;
            (
                dot::<I, P, 0, 8, N>(chunk, rows, at),
                dot::<I, P, 0, 8, N>(chunk.add(chunk_step), rows, at + CHUNK),
            )
        };
        for row in 0..N {
            let scaled = I::add_i(I::mul_i(first[row], low), I::mul_i(second[row], high));
            sums[row] = I::add_i(sums[row], scaled);
        }
        if F::OFFSET != 0 || F::HAS_MIN {
            let factors = if F::HAS_MIN {
                F::mins::<I>(meta, pair)
            } else {
                scales
            };
            for row in 0..N {
                let own = I::splat_i(sum_pair::<F>(rows[row], block, pair));
                corrections[row] = I::add_i(corrections[row], I::madd16(factors, own));
            }
        }
    }
    (sums, corrections)
}

/// The sums of the activations of two neighbouring sub-blocks, in the halves of a word.
#[inline(always)]
unsafe fn sum_pair<F: SuperFormat>(row: Row, block: usize, pair: usize) -> i32 {
    let behind_sixteens = if F::SUB16 { 0 } else { SUPER / 16 };
    let at = block * (SUPER / 16 + SUPER / 32) + behind_sixteens + 2 * pair;
    let (low, high) = (*row.sums.add(at), *row.sums.add(at + 1));
    i32::from(low) & 0xffff | i32::from(high) << 16
}

/// Four sums, of every fourth value, so that one need not wait for the other.
#[inline(always)]
unsafe fn float_tile<I: Isa>(dtype: TensorType, tile: *const u8, rows: Rows<'_>, out: *mut f32) {
    let columns = rows.activations.columns();
    let layout = Layout {
        meta: tile,
        meta_step: 0,
        quants: tile,
        quants_step: 0,
        chunk_step: 0,
        blocks: columns,
    };
    let form = ActivationForm::Floats;
    match dtype {
        TensorType::F32 => in_fours!(rows, form, out, Floats, [AsF32], layout),
        TensorType::F16 => in_fours!(rows, form, out, Floats, [AsF16], layout),
        _ => in_fours!(rows, form, out, Floats, [AsBf16], layout),
    }
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

#[inline(always)]
unsafe fn run_floats<I: Isa, L: FloatLoad, const N: usize>(
    layout: Layout,
    rows: [Row; N],
    out: *mut f32,
) {
    let columns = layout.blocks;
    let mut parts = [[I::splat(0.0); 4]; N];
    for from in (0..columns / 4 * 4).step_by(4) {
        for part in 0..4 {
            let weights = L::load::<I>(layout.quants, from + part);
            for row in 0..N {
                let own = I::splat(*rows[row].floats.add(from + part));
                parts[row][part] = I::fma(weights, own, parts[row][part]);
            }
        }
    }
    for column in columns / 4 * 4..columns {
        let weights = L::load::<I>(layout.quants, column);
        for row in 0..N {
            let own = I::splat(*rows[row].floats.add(column));
            parts[row][column % 4] = I::fma(weights, own, parts[row][column % 4]);
        }
    }
    for row in 0..N {
        let [a, b, c, d] = parts[row];
        I::store(out.add(row * LANES), I::add(I::add(a, b), I::add(c, d)));
    }
}
