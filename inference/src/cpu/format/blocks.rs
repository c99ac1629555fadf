//! The formats of 32 values: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1` and `Q8_0`.

use super::{BlockFormat, Format, SCALES, lane_f16, put_f16};
use crate::cpu::pack::{Bytes, Five, Four};
use crate::gguf::TensorType;

/// Nibbles of a block: the low ones are values 0..16, the high ones 16..32.
fn nibbles(stored: &[u8], values: &mut [u8]) {
    let (first, second) = values.split_at_mut(16);
    for ((byte, low), high) in stored.iter().zip(first).zip(second) {
        *low = byte & 0x0f;
        *high = byte >> 4;
    }
}

/// Adds the fifth bits, one for each value in order.
fn fifth_bits(stored: &[u8], values: &mut [u8]) {
    for (index, value) in values.iter_mut().enumerate() {
        *value |= (stored[index / 8] >> (index % 8) & 1) << 4;
    }
}

/// One value: offset, scale and minimum as the format has them.
fn restored<F: BlockFormat>(meta: &[u8], lane: usize, value: u8) -> f32 {
    let integer = if F::SIGNED {
        f32::from(value as i8)
    } else {
        (i32::from(value) - F::OFFSET) as f32
    };
    let scaled = lane_f16(meta, 0, lane) * integer;
    if F::HAS_MIN {
        scaled + lane_f16(meta, SCALES, lane)
    } else {
        scaled
    }
}

/// Four bits, symmetric around zero.
pub(crate) struct Q4_0;

impl Format for Q4_0 {
    const DTYPE: TensorType = TensorType::Q4_0;
    type Packing = Four;
    const SCALES: usize = 1;
    const META: usize = SCALES;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        put_f16(meta, 0, lane, &block[..2]);
        nibbles(&block[2..18], values);
    }

    fn restore(meta: &[u8], lane: usize, _: usize, value: u8) -> f32 {
        restored::<Self>(meta, lane, value)
    }
}

impl BlockFormat for Q4_0 {
    const OFFSET: i32 = 8;
    const HAS_MIN: bool = false;
}

/// Four bits over a minimum.
pub(crate) struct Q4_1;

impl Format for Q4_1 {
    const DTYPE: TensorType = TensorType::Q4_1;
    type Packing = Four;
    const SCALES: usize = 2;
    const META: usize = 2 * SCALES;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        put_f16(meta, 0, lane, &block[..2]);
        put_f16(meta, SCALES, lane, &block[2..4]);
        nibbles(&block[4..20], values);
    }

    fn restore(meta: &[u8], lane: usize, _: usize, value: u8) -> f32 {
        restored::<Self>(meta, lane, value)
    }
}

impl BlockFormat for Q4_1 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
}

/// Five bits, symmetric around zero.
pub(crate) struct Q5_0;

impl Format for Q5_0 {
    const DTYPE: TensorType = TensorType::Q5_0;
    type Packing = Five;
    const SCALES: usize = 1;
    const META: usize = SCALES;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        put_f16(meta, 0, lane, &block[..2]);
        nibbles(&block[6..22], values);
        fifth_bits(&block[2..6], values);
    }

    fn restore(meta: &[u8], lane: usize, _: usize, value: u8) -> f32 {
        restored::<Self>(meta, lane, value)
    }
}

impl BlockFormat for Q5_0 {
    const OFFSET: i32 = 16;
    const HAS_MIN: bool = false;
}

/// Five bits over a minimum.
pub(crate) struct Q5_1;

impl Format for Q5_1 {
    const DTYPE: TensorType = TensorType::Q5_1;
    type Packing = Five;
    const SCALES: usize = 2;
    const META: usize = 2 * SCALES;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        put_f16(meta, 0, lane, &block[..2]);
        put_f16(meta, SCALES, lane, &block[2..4]);
        nibbles(&block[8..24], values);
        fifth_bits(&block[4..8], values);
    }

    fn restore(meta: &[u8], lane: usize, _: usize, value: u8) -> f32 {
        restored::<Self>(meta, lane, value)
    }
}

impl BlockFormat for Q5_1 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
}

/// Eight bits with a sign.
pub(crate) struct Q8_0;

impl Format for Q8_0 {
    const DTYPE: TensorType = TensorType::Q8_0;
    type Packing = Bytes<8>;
    const SCALES: usize = 1;
    const META: usize = SCALES;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        put_f16(meta, 0, lane, &block[..2]);
        values.copy_from_slice(&block[2..34]);
    }

    fn restore(meta: &[u8], lane: usize, _: usize, value: u8) -> f32 {
        restored::<Self>(meta, lane, value)
    }
}

impl BlockFormat for Q8_0 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = false;
    const SIGNED: bool = true;
}
