//! Random weights, the same on every machine.

use super::SyntheticError;
use crate::gguf::TensorType;
use candle_core::quantized::{GgmlDType, QuantizedType};

/// How much fainter the rows of special tokens are.
const FAINTNESS: f32 = 0.01;

/// The SplitMix64 generator: one word of state, and good enough for weights.
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform between -1 and 1.
    fn uniform(&mut self) -> f32 {
        let bits = (self.next() >> 40) as f32;
        bits / (1 << 23) as f32 - 1.0
    }

    /// Roughly normal, with a deviation of about one.
    fn normal(&mut self) -> f32 {
        self.uniform() + self.uniform() + self.uniform()
    }
}

/// Rows of a matrix or of a table of tokens.
pub(super) struct Rows<'a> {
    pub count: u32,
    pub width: u32,
    /// Rows that are made faint.
    pub faint: &'a [u32],
}

impl Rows<'_> {
    /// Rows of which none is faint.
    pub(super) fn plain(count: u32, width: u32) -> Self {
        Self {
            count,
            width,
            faint: &[],
        }
    }

    /// Normal values that keep the size of the activations they are multiplied with.
    pub(super) fn values(&self, random: &mut Random) -> Vec<f32> {
        let scale = 1.0 / (self.width as f32).sqrt();
        let mut values = Vec::with_capacity(self.count as usize * self.width as usize);
        for row in 0..self.count {
            let is_faint = self.faint.contains(&row);
            let scale = if is_faint { scale * FAINTNESS } else { scale };
            values.extend((0..self.width).map(|_| random.normal() * scale));
        }
        values
    }
}

/// `len` floats near one.
pub(super) fn around_one(random: &mut Random, len: u32) -> Vec<f32> {
    (0..len).map(|_| 1.0 + 0.1 * random.uniform()).collect()
}

/// `len` floats around zero. Biases far from it would drown what tells one token from another.
pub(super) fn around_zero(random: &mut Random, len: u32) -> Vec<f32> {
    (0..len).map(|_| 0.3 * random.normal()).collect()
}

/// Quantises values and gives the blocks' bytes.
pub(super) fn quantise(values: &[f32], dtype: TensorType) -> Result<Vec<u8>, SyntheticError> {
    let mut blocks = kernel_type(dtype)?.cpu_zeros(values.len());
    blocks.from_float(values);
    Ok(bytes_of(blocks.as_ref()).to_vec())
}

fn kernel_type(dtype: TensorType) -> Result<GgmlDType, SyntheticError> {
    Ok(match dtype {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::BF16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2_K => GgmlDType::Q2K,
        TensorType::Q3_K => GgmlDType::Q3K,
        TensorType::Q4_K => GgmlDType::Q4K,
        TensorType::Q5_K => GgmlDType::Q5K,
        TensorType::Q6_K => GgmlDType::Q6K,
        other => return Err(SyntheticError::BadQuantisation { name: other.name }),
    })
}

fn bytes_of(blocks: &dyn QuantizedType) -> &[u8] {
    // SAFETY: the storage owns this many initialised bytes at this address, the blocks have no
    // padding, and the slice borrows the storage.
    unsafe { std::slice::from_raw_parts(blocks.as_ptr(), blocks.storage_size_in_bytes()) }
}
