//! The rows that weights are multiplied with, in the forms that the formats want.
//!
//! Eight-bit forms are made as ggml makes them, so that both engines round alike: the largest
//! magnitude of a block becomes 127, ties go to even.
//!
//! * blocks of 32: `scale = f16(max / 127)`, and `f16(max / 127 · Σ q)` for formats with a minimum;
//! * super-blocks of 256: `scale = 1 / (127 / max)`.

#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::format::ActivationForm;
use super::isa::{Isa, LANES};
use super::pack::CHUNK;
use half::f16;

/// Values of a super-block.
pub(crate) const SUPER: usize = 256;
/// Sums of a super-block: of every 16 values, then of every 32.
const SUPER_SUMS: usize = SUPER / 16 + SUPER / 32;

/// One row in its eight-bit form, as the kernels take it.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// The row itself.
    pub floats: *const f32,
    /// Eight-bit values.
    pub values: *const i8,
    /// A scale per block or super-block.
    pub scales: *const f32,
    /// Blocks only: the scaled sum of each.
    pub scaled_sums: *const f32,
    /// Blocks: the sum of each. Super-blocks: see [`SUPER_SUMS`].
    pub sums: *const i16,
}

#[derive(Default)]
struct Quantised {
    values: Vec<i8>,
    scales: Vec<f32>,
    scaled_sums: Vec<f32>,
    sums: Vec<i16>,
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
    /// Makes room for `rows` rows of `columns` values. What was there is lost.
    pub(crate) fn resize(&mut self, rows: usize, columns: usize, forms: Forms) {
        self.columns = columns;
        grow(&mut self.floats, rows * columns);
        if forms.blocks {
            let count = rows * (columns / CHUNK);
            grow(&mut self.blocks.values, rows * columns);
            grow(&mut self.blocks.scales, count);
            grow(&mut self.blocks.scaled_sums, count);
            grow(&mut self.blocks.sums, count);
        }
        if forms.supers {
            let count = rows * (columns / SUPER);
            grow(&mut self.supers.values, rows * columns);
            grow(&mut self.supers.scales, count);
            grow(&mut self.supers.sums, count * SUPER_SUMS);
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

    /// One row in the form for blocks or floats, or in that for super-blocks.
    #[inline(always)]
    pub(crate) fn row(&self, form: ActivationForm, row: usize) -> Row {
        let (from, per_row, sums) = match form {
            ActivationForm::Supers => {
                let count = self.columns / SUPER;
                (&self.supers, count, count * SUPER_SUMS)
            }
            _ => (&self.blocks, self.columns / CHUNK, self.columns / CHUNK),
        };
        // Forms that were not asked for are empty: their pointers are never read.
        Row {
            floats: self.floats.as_ptr().wrapping_add(row * self.columns),
            values: from.values.as_ptr().wrapping_add(row * self.columns),
            scales: from.scales.as_ptr().wrapping_add(row * per_row),
            scaled_sums: from.scaled_sums.as_ptr().wrapping_add(row * per_row),
            sums: from.sums.as_ptr().wrapping_add(row * sums),
        }
    }

    /// Makes the eight-bit forms of row `row`, whose floats have been written.
    ///
    /// # Safety
    /// See [`Isa`]. The rows must have been made room for with the same `forms`, and no two
    /// threads may quantise the same row.
    pub(crate) unsafe fn quantise<I: Isa>(&self, row: usize, forms: Forms) {
        if forms.blocks {
            let row = self.row(ActivationForm::Blocks, row);
            for block in 0..self.columns / CHUNK {
                quantise_block::<I>(row, block);
            }
        }
        if forms.supers {
            let row = self.row(ActivationForm::Supers, row);
            for block in 0..self.columns / SUPER {
                quantise_super::<I>(row, block);
            }
        }
    }
}

fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
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

/// Writes `vectors` vectors of rounded values, and gives their sum.
#[inline(always)]
unsafe fn round<I: Isa>(from: *const f32, inverse: I::F, to: *mut i8, vectors: usize) -> i32 {
    let mut sum = I::splat_i(0);
    for vector in 0..vectors {
        let scaled = I::mul(I::load(from.add(vector * LANES)), inverse);
        let rounded = I::to_int(scaled);
        I::store_i8(to.add(vector * LANES), rounded);
        sum = I::add_i(sum, rounded);
    }
    I::sum_i(sum)
}

/// The factor that makes the largest magnitude 127, or zero for a block of zeros. A block with a
/// value that is not finite has a scale that is none either, so that every product with it is
/// found out.
fn inverse_of(largest: f32) -> f32 {
    if largest > 0.0 { 127.0 / largest } else { 0.0 }
}

#[inline(always)]
unsafe fn quantise_block<I: Isa>(row: Row, block: usize) {
    let from = row.floats.add(block * CHUNK);
    let largest = largest::<I>(from, CHUNK / LANES);
    let to = row.values.add(block * CHUNK).cast_mut();
    let sum = if largest.is_finite() {
        round::<I>(from, I::splat(inverse_of(largest)), to, CHUNK / LANES)
    } else {
        0
    };
    let scale = largest / 127.0;
    let scaled_sum = scale * sum as f32;
    *row.scales.add(block).cast_mut() = through_f16(scale, largest);
    *row.scaled_sums.add(block).cast_mut() = through_f16(scaled_sum, largest);
    *row.sums.add(block).cast_mut() = sum as i16;
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
unsafe fn quantise_super<I: Isa>(row: Row, block: usize) {
    let from = row.floats.add(block * SUPER);
    let largest = largest::<I>(from, SUPER / LANES);
    let inverse = inverse_of(largest);
    let to = row.values.add(block * SUPER).cast_mut();
    let sums = row.sums.add(block * SUPER_SUMS).cast_mut();
    let scale = row.scales.add(block).cast_mut();
    if !largest.is_finite() || !inverse.is_finite() {
        *scale = if largest.is_finite() { 0.0 } else { f32::NAN };
        std::ptr::write_bytes(to, 0, SUPER);
        std::ptr::write_bytes(sums, 0, SUPER_SUMS);
        return;
    }
    for part in 0..SUPER / 16 {
        let sum = round::<I>(from.add(16 * part), I::splat(inverse), to.add(16 * part), 1);
        *sums.add(part) = sum as i16;
    }
    for part in 0..SUPER / 32 {
        *sums.add(SUPER / 16 + part) = *sums.add(2 * part) + *sums.add(2 * part + 1);
    }
    *scale = if inverse > 0.0 { 1.0 / inverse } else { 0.0 };
}
