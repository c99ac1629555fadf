//! Weight formats: how the blocks of a GGUF file become tiles for the kernels.
//!
//! A **tile** is sixteen rows. It is a sequence of tile blocks, each the same block of all
//! sixteen rows: first the scales (one lane per row), then chunks of integers (see [`pack`]).
//! The integers are those of the file; nothing is rounded. A new format is one implementation of
//! [`Format`] and one line in [`with_format`].
//!
//! [`pack`]: super::pack

#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

mod blocks;
mod supers;

pub(crate) use blocks::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use supers::{Q2K, Q3K, Q4K, Q5K, Q6K};

use super::isa::{Isa, LANES};
use super::pack::{CHUNK, Pack};
use crate::gguf::TensorType;

/// Bytes of one `f16` scale for each lane.
pub(super) const SCALES: usize = 2 * LANES;

/// What every quantised format has.
pub(crate) trait Format {
    /// The type in the file.
    const DTYPE: TensorType;
    /// How the integers are packed.
    type Packing: Pack;
    /// How many `f16` per row a tile block begins with.
    const SCALES: usize;
    /// Bytes of all scales of a tile block.
    const META: usize;

    /// Values per block.
    const BLOCK: usize = Self::DTYPE.block_len as usize;
    /// Chunks per block.
    const CHUNKS: usize = Self::BLOCK / CHUNK;
    /// Bytes of a tile block.
    const TILE_BLOCK: usize = Self::META + Self::CHUNKS * Self::Packing::BYTES;

    /// Takes one row's block of the file apart: the scales go to the row's lane of `meta`, the
    /// integers, made unsigned where they are signed (except for [`Q8_0`]), to `values`.
    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]);

    /// The number that the integer `value` at `index` of a block stands for.
    fn restore(meta: &[u8], lane: usize, index: usize, value: u8) -> f32;
}

/// Formats of 32 values with one scale, and perhaps a minimum, multiplied with activations that
/// have a scale for every 32.
pub(crate) trait BlockFormat: Format {
    /// What was added to the integers to make them unsigned.
    const OFFSET: i32;
    /// Whether a minimum is added to the scaled integers.
    const HAS_MIN: bool;
    /// Whether the integers are signed bytes.
    const SIGNED: bool = false;
}

/// Formats of 256 values in sub-blocks with integer scales of their own, multiplied with
/// activations that have a scale for every 256.
pub(crate) trait SuperFormat: Format {
    /// What was added to the integers to make them unsigned.
    const OFFSET: i32;
    /// Whether a scaled minimum is taken off.
    const HAS_MIN: bool;
    /// Whether a sub-block has 16 values; else 32.
    const SUB16: bool;

    /// The scales of sub-blocks `2 * pair` and `2 * pair + 1`.
    ///
    /// # Safety
    /// See [`Isa`]; `meta` must point to [`Format::META`] bytes.
    unsafe fn scales<I: Isa>(meta: *const u8, pair: usize) -> I::I;

    /// The minima of the same two.
    ///
    /// # Safety
    /// As for [`SuperFormat::scales`].
    unsafe fn mins<I: Isa>(meta: *const u8, pair: usize) -> I::I;
}

/// What a weight matrix is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A quantised format; the type says which.
    Quantised(TensorType),
    /// Numbers of two or four bytes.
    Float(TensorType),
}

/// Which form of the activations a format is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActivationForm {
    /// As they are.
    Floats,
    /// Eight bits, with a scale for every 32.
    Blocks,
    /// Eight bits, with a scale for every 256.
    Supers,
}

/// Calls `$blocks::<F>($args)` or `$supers::<F>($args)` for the format of a type.
macro_rules! with_format {
    ($dtype:expr, $blocks:ident, $supers:ident, [$($types:ty),*], $($arg:expr),*) => {{
        use $crate::cpu::format as formats;
        use $crate::gguf::TensorType as Type;
        match $dtype {
            Type::Q4_0 => $blocks::<$($types,)* formats::Q4_0>($($arg),*),
            Type::Q4_1 => $blocks::<$($types,)* formats::Q4_1>($($arg),*),
            Type::Q5_0 => $blocks::<$($types,)* formats::Q5_0>($($arg),*),
            Type::Q5_1 => $blocks::<$($types,)* formats::Q5_1>($($arg),*),
            Type::Q8_0 => $blocks::<$($types,)* formats::Q8_0>($($arg),*),
            Type::Q2_K => $supers::<$($types,)* formats::Q2K>($($arg),*),
            Type::Q3_K => $supers::<$($types,)* formats::Q3K>($($arg),*),
            Type::Q4_K => $supers::<$($types,)* formats::Q4K>($($arg),*),
            Type::Q5_K => $supers::<$($types,)* formats::Q5K>($($arg),*),
            Type::Q6_K => $supers::<$($types,)* formats::Q6K>($($arg),*),
            other => unreachable!("quant::check lets no matrix of {other} through"),
        }
    }};
}
pub(crate) use with_format;

impl Kind {
    /// The kind of a type that `quant::check` let through.
    pub(crate) fn of(dtype: TensorType) -> Self {
        match dtype {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => Self::Float(dtype),
            _ => Self::Quantised(dtype),
        }
    }

    /// Bytes of a tile of `columns` inner values.
    pub(crate) fn tile_bytes(self, columns: usize) -> usize {
        fn of_format<F: Format>(columns: usize) -> usize {
            columns / F::BLOCK * F::TILE_BLOCK
        }
        match self {
            Self::Float(dtype) => columns * LANES * dtype.block_bytes as usize,
            Self::Quantised(dtype) => with_format!(dtype, of_format, of_format, [], columns),
        }
    }

    /// What it is multiplied with.
    pub(crate) fn activations(self) -> ActivationForm {
        match self {
            Self::Float(_) => ActivationForm::Floats,
            Self::Quantised(dtype) if dtype.block_len == 256 => ActivationForm::Supers,
            Self::Quantised(_) => ActivationForm::Blocks,
        }
    }
}

/// The `f16` of a lane.
fn lane_f16(meta: &[u8], at: usize, lane: usize) -> f32 {
    let bytes = [meta[at + 2 * lane], meta[at + 2 * lane + 1]];
    half::f16::from_ne_bytes(bytes).to_f32()
}

/// Writes the two bytes of an `f16` in the file to a lane. The kernels load the lanes as native
/// sixteen-bit words, so the bytes are turned around on big-endian machines.
fn put_f16(meta: &mut [u8], at: usize, lane: usize, bytes: &[u8]) {
    let word = u16::from_le_bytes([bytes[0], bytes[1]]);
    meta[at + 2 * lane..at + 2 * lane + 2].copy_from_slice(&word.to_ne_bytes());
}
