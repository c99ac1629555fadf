//! The rows that weights are multiplied with, in the forms that the formats want.
//!
//! Eight-bit forms are made as ggml makes them, so that both engines round alike: the largest
//! magnitude of a block becomes 127, ties go to even.
//!
//! * blocks of 32: `scale = f16(max / 127)`, and `f16(max / 127 · Σ q)` for formats with a minimum;
//! * super-blocks of 256: `scale = 1 / (127 / max)`.

#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::format::ActivationForm;
use super::isa::{Isa, LANES, TILE_ROWS};
use super::kernels::LEAST_TILED;
use super::pack::CHUNK;
use crate::hardware::IsaName;
use half::f16;

/// Values of a super-block.
pub(crate) const SUPER: usize = 256;
/// Rows that lie side by side, block by block, where there are several and no kernel takes more.
pub(crate) const SIDE_BY_SIDE: usize = 4;

/// How many of `rows` rows lie side by side, in the form for blocks and in that for super-blocks.
/// What is beyond the last row may be read and is not used.
fn side_by_side(isa: IsaName, rows: usize) -> (usize, usize) {
    let usual = if rows == 1 { 1 } else { SIDE_BY_SIDE };
    let wide = matches!(isa, IsaName::Avx512 | IsaName::Amx) && rows >= 2 * SIDE_BY_SIDE;
    let tiled = isa == IsaName::Amx && rows >= LEAST_TILED;
    (
        if wide { 2 * SIDE_BY_SIDE } else { usual },
        if tiled { TILE_ROWS } else { usual },
    )
}

/// What goes with the values of a block of 32.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct BlockSide {
    pub scale: f32,
    /// `scale` times the sum of the values, for formats with a minimum.
    pub scaled_sum: f32,
    /// What a weight that counts 8 too much takes off: see [`less`].
    pub less8: i32,
    /// The same for 16.
    pub less16: i32,
}

/// What goes with the values of a super-block.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct SuperSide {
    pub scale: f32,
    /// The sums of every 16 values; two neighbours are the halves of a word.
    pub sums16: [i32; SUPER / 32],
    /// The sums of every 32 values, likewise.
    pub sums32: [i32; SUPER / 64],
    /// What weights that count 32 too much take off in every 16 values: see [`less`].
    pub less32: [i32; SUPER / 16],
}

/// One row, as the kernels take it. Its blocks lie `values_step` bytes and `side_step` bytes
/// apart. The next row of those side by side begins a block's length after this one.
#[derive(Clone, Copy)]
pub(crate) struct Row<S> {
    /// Eight-bit values.
    pub values: *const i8,
    /// What goes with them.
    pub side: *const S,
    /// Bytes from one block to the next.
    pub step: usize,
}

impl<S> Row<S> {
    /// What goes with block `block` of the `row`th row from this one.
    #[inline(always)]
    pub(crate) fn side(self, row: usize, block: usize) -> *const S {
        self.side
            .wrapping_add(row)
            .wrapping_byte_add(block * self.step)
    }
}

/// A line of the caches.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Rows in an eight-bit form: of those that lie side by side the first blocks, with all that goes
/// with them, then the second ones, and so on.
#[derive(Default)]
struct Quantised {
    lines: Vec<Line>,
    /// How many rows lie side by side.
    width: usize,
}

impl Quantised {
    /// Bytes of a block of each of the rows that lie side by side.
    fn step<S>(&self, block: usize) -> usize {
        self.width * (block + size_of::<S>())
    }

    fn resize<S>(&mut self, rows: usize, width: usize, columns: usize, block: usize) {
        self.width = width;
        let bytes = rows.div_ceil(self.width) * (columns / block) * self.step::<S>(block);
        grow(&mut self.lines, bytes.div_ceil(64), Line([0; 64]));
    }

    #[inline(always)]
    fn row<S>(&self, row: usize, columns: usize, block: usize) -> Row<S> {
        let (step, width) = (self.step::<S>(block), self.width.max(1));
        let (rows, lane) = (row / width, row % width);
        let start = self.lines.as_ptr().cast::<i8>();
        let start = start.wrapping_add(rows * (columns / block) * step);
        Row {
            values: start.wrapping_add(lane * block),
            side: start
                .wrapping_add(width * block)
                .cast::<S>()
                .wrapping_add(lane),
            step,
        }
    }
}

/// Rows of equal width with room for both eight-bit forms. The buffers are kept from step to
/// step.
#[derive(Default)]
pub(crate) struct Activations {
    columns: usize,
    floats: Vec<f32>,
    blocks: Quantised,
    supers: Quantised,
}

/// Which forms a row is wanted in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forms {
    blocks: bool,
    supers: bool,
}

impl Forms {
    /// The forms that matrices of these kinds take together.
    pub(crate) fn of(forms: impl IntoIterator<Item = ActivationForm>) -> Self {
        let mut wanted = Self::default();
        for form in forms {
            wanted.blocks |= form == ActivationForm::Blocks;
            wanted.supers |= form == ActivationForm::Supers;
        }
        wanted
    }
}

impl Activations {
    /// Makes room for `rows` rows of `columns` values, which the kernels of `isa` will take. What
    /// was there is lost.
    pub(crate) fn resize(&mut self, isa: IsaName, rows: usize, columns: usize, forms: Forms) {
        self.columns = columns;
        let (blocks, supers) = side_by_side(isa, rows);
        grow(&mut self.floats, rows * columns, 0.0);
        if forms.blocks {
            self.blocks
                .resize::<BlockSide>(rows, blocks, columns, CHUNK);
        }
        if forms.supers {
            self.supers
                .resize::<SuperSide>(rows, supers, columns, SUPER);
        }
    }

    /// Where the rows may be written before [`Self::quantise`] is called for each.
    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        &mut self.floats
    }

    /// Number of values of a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The numbers of a row.
    #[inline(always)]
    pub(crate) fn floats(&self, row: usize) -> *const f32 {
        self.floats.as_ptr().wrapping_add(row * self.columns)
    }

    /// One row in the form for blocks, which it must have been brought into.
    #[inline(always)]
    pub(crate) fn blocks(&self, row: usize) -> Row<BlockSide> {
        self.blocks.row(row, self.columns, CHUNK)
    }

    /// One row in the form for super-blocks, which it must have been brought into.
    #[inline(always)]
    pub(crate) fn supers(&self, row: usize) -> Row<SuperSide> {
        self.supers.row(row, self.columns, SUPER)
    }

    /// Makes the eight-bit forms of row `row`, whose floats have been written.
    ///
    /// # Safety
    /// See [`Isa`]. The rows must have been made room for with the same `forms`, and no two
    /// threads may quantise the same row.
    #[inline(always)]
    pub(crate) unsafe fn quantise<I: Isa>(&self, row: usize, forms: Forms) {
        let from = self.floats(row);
        if forms.blocks {
            let to = self.blocks(row);
            for block in 0..self.columns / CHUNK {
                let from = from.add(block * CHUNK);
                let values = to.values.wrapping_add(block * to.step).cast_mut();
                *to.side(0, block).cast_mut() = quantise_block::<I>(from, values);
            }
        }
        if forms.supers {
            let to = self.supers(row);
            for block in 0..self.columns / SUPER {
                let from = from.add(block * SUPER);
                let values = to.values.wrapping_add(block * to.step).cast_mut();
                *to.side(0, block).cast_mut() = quantise_super::<I>(from, values);
            }
        }
    }
}

fn grow<T: Copy>(buffer: &mut Vec<T>, len: usize, value: T) {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
}

/// The largest magnitude; not a number if one of the values is none.
#[inline(always)]
unsafe fn largest<I: Isa>(from: *const f32, vectors: usize) -> f32 {
    let mut largest = I::magnitude_bits(I::load(from));
    for vector in 1..vectors {
        let bits = I::magnitude_bits(I::load(from.add(vector * LANES)));
        largest = I::max_i(largest, bits);
    }
    f32::from_bits(I::highest_i(largest) as u32)
}

/// Writes `vectors` vectors of rounded values, and gives the sum of those at places 0 and 1 of
/// every four, and of those at places 2 and 3.
#[inline(always)]
unsafe fn round<I: Isa>(
    from: *const f32,
    inverse: I::F,
    to: *mut i8,
    vectors: usize,
) -> (i32, i32) {
    let mut sum = I::splat_i(0);
    for vector in 0..vectors {
        let scaled = I::mul(I::load(from.add(vector * LANES)), inverse);
        let rounded = I::to_int(scaled);
        I::store_i8(to.add(vector * LANES), rounded);
        sum = I::add_i(sum, rounded);
    }
    I::sums_of_pairs(sum)
}

/// `-offset` times two sums, as the halves of a word: where products begin with it, a weight that
/// counts `offset` too much does no harm ([`Isa::acc_begin`]).
fn less(offset: i32, (first, second): (i32, i32)) -> i32 {
    halves(-offset * first, -offset * second)
}

/// The factor that makes the largest magnitude 127, or zero for a block of zeros. A block with a
/// value that is not finite has a scale that is none either, so that every product with it is
/// found out.
fn inverse_of(largest: f32) -> f32 {
    if largest > 0.0 { 127.0 / largest } else { 0.0 }
}

#[inline(always)]
unsafe fn quantise_block<I: Isa>(from: *const f32, to: *mut i8) -> BlockSide {
    let largest = largest::<I>(from, CHUNK / LANES);
    let sums = if largest.is_finite() {
        round::<I>(from, I::splat(inverse_of(largest)), to, CHUNK / LANES)
    } else {
        (0, 0)
    };
    let sum = sums.0 + sums.1;
    let scale = largest / 127.0;
    BlockSide {
        scale: through_f16(scale, largest),
        scaled_sum: through_f16(scale * sum as f32, largest),
        less8: less(8, sums),
        less16: less(16, sums),
    }
}

/// Rounds a scale to sixteen bits. `largest` tells whether the block was sound.
fn through_f16(scale: f32, largest: f32) -> f32 {
    if largest.is_finite() {
        f16::from_f32(scale).to_f32()
    } else {
        f32::NAN
    }
}

#[inline(always)]
unsafe fn quantise_super<I: Isa>(from: *const f32, to: *mut i8) -> SuperSide {
    let largest = largest::<I>(from, SUPER / LANES);
    let inverse = inverse_of(largest);
    let mut side = SuperSide {
        scale: if inverse > 0.0 { 1.0 / inverse } else { 0.0 },
        sums16: [0; SUPER / 32],
        sums32: [0; SUPER / 64],
        less32: [0; SUPER / 16],
    };
    if !largest.is_finite() || !inverse.is_finite() {
        side.scale = if largest.is_finite() { 0.0 } else { f32::NAN };
        std::ptr::write_bytes(to, 0, SUPER);
        return side;
    }
    let mut sums = [0; SUPER / 16];
    for (part, sum) in sums.iter_mut().enumerate() {
        let own = round::<I>(from.add(16 * part), I::splat(inverse), to.add(16 * part), 1);
        side.less32[part] = less(32, own);
        *sum = own.0 + own.1;
    }
    for (pair, to) in side.sums16.iter_mut().enumerate() {
        *to = halves(sums[2 * pair], sums[2 * pair + 1]);
    }
    for (pair, to) in side.sums32.iter_mut().enumerate() {
        let four = &sums[4 * pair..4 * pair + 4];
        *to = halves(four[0] + four[1], four[2] + four[3]);
    }
    side
}

/// Two sums, which fit, as the halves of a word.
fn halves(low: i32, high: i32) -> i32 {
    low & 0xffff | high << 16
}
