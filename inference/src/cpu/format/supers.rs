//! The formats of 256 values, the "K-quants": `Q2_K` to `Q6_K`. The layouts are those of ggml's
//! `block_q2_K` and so on, as the GGUF files have them.
//!
//! The scales of a tile block: an `f16` for each lane, another one for the minima where there
//! are any, then the integer scales of the sub-blocks and their minima as bytes. Two neighbouring
//! sub-blocks lie side by side in each lane, so that one load gives pairs of sixteen bits.

#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::{Format, SCALES, SuperFormat, lane_f16, put_f16};
use crate::cpu::isa::{Isa, LANES};
use crate::cpu::pack::{Five, Four, Six, Three, Two};
use crate::gguf::TensorType;

/// Bytes of the scales of two sub-blocks.
const PAIR: usize = 2 * LANES;

/// Where the byte of sub-block `sub` lies behind the start of the bytes.
fn sub_at(sub: usize, lane: usize) -> usize {
    sub / 2 * PAIR + 2 * lane + sub % 2
}

/// Eight scales and eight minima of six bits each in twelve bytes.
fn six_bit_pairs(stored: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        return (stored[sub] & 63, stored[sub + 4] & 63);
    }
    let (low, high) = (stored[sub + 4], sub - 4);
    let scale = low & 0x0f | stored[high] >> 6 << 4;
    let min = low >> 4 | stored[high + 4] >> 6 << 4;
    (scale, min)
}

/// Scale and minimum of `Q4_K` and `Q5_K`, which share all but the fifth bit.
mod with_minima {
    use super::*;

    pub(super) const SUBS: usize = 8;
    pub(super) const SCALE_BYTES: usize = 2 * SCALES;
    pub(super) const MIN_BYTES: usize = SCALE_BYTES + SUBS / 2 * PAIR;
    pub(super) const META: usize = MIN_BYTES + SUBS / 2 * PAIR;

    pub(super) fn decode(block: &[u8], lane: usize, meta: &mut [u8]) {
        put_f16(meta, 0, lane, &block[..2]);
        put_f16(meta, SCALES, lane, &block[2..4]);
        for sub in 0..SUBS {
            let (scale, min) = six_bit_pairs(&block[4..16], sub);
            meta[SCALE_BYTES + sub_at(sub, lane)] = scale;
            meta[MIN_BYTES + sub_at(sub, lane)] = min;
        }
    }

    pub(super) fn restore(meta: &[u8], lane: usize, index: usize, value: u8) -> f32 {
        let sub = sub_at(index / 32, lane);
        let scale = lane_f16(meta, 0, lane) * f32::from(meta[SCALE_BYTES + sub]);
        let min = lane_f16(meta, SCALES, lane) * f32::from(meta[MIN_BYTES + sub]);
        scale * f32::from(value) - min
    }
}

/// Nibbles of 256 values: each 32 bytes hold two sub-blocks, low and high.
fn nibbles(stored: &[u8], values: &mut [u8]) {
    for (bytes, values) in stored.chunks_exact(32).zip(values.chunks_exact_mut(64)) {
        for (index, byte) in bytes.iter().enumerate() {
            values[index] = byte & 0x0f;
            values[index + 32] = byte >> 4;
        }
    }
}

/// Four bits over minima.
pub(crate) struct Q4K;

impl Format for Q4K {
    const DTYPE: TensorType = TensorType::Q4_K;
    type Packing = Four;
    const SCALES: usize = 2;
    const META: usize = with_minima::META;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        with_minima::decode(block, lane, meta);
        nibbles(&block[16..144], values);
    }

    fn restore(meta: &[u8], lane: usize, index: usize, value: u8) -> f32 {
        with_minima::restore(meta, lane, index, value)
    }
}

impl SuperFormat for Q4K {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    const SUB16: bool = false;

    #[inline(always)]
    unsafe fn scales<I: Isa>(meta: *const u8, pair: usize) -> I::I {
        I::load_u8_pairs(meta.add(with_minima::SCALE_BYTES + pair * PAIR))
    }

    #[inline(always)]
    unsafe fn mins<I: Isa>(meta: *const u8, pair: usize) -> I::I {
        I::load_u8_pairs(meta.add(with_minima::MIN_BYTES + pair * PAIR))
    }
}

/// Five bits over minima.
pub(crate) struct Q5K;

impl Format for Q5K {
    const DTYPE: TensorType = TensorType::Q5_K;
    type Packing = Five;
    const SCALES: usize = 2;
    const META: usize = with_minima::META;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        with_minima::decode(block, lane, meta);
        nibbles(&block[48..176], values);
        for (index, value) in values.iter_mut().enumerate() {
            *value |= (block[16 + index % 32] >> (index / 32) & 1) << 4;
        }
    }

    fn restore(meta: &[u8], lane: usize, index: usize, value: u8) -> f32 {
        with_minima::restore(meta, lane, index, value)
    }
}

impl SuperFormat for Q5K {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    const SUB16: bool = false;

    #[inline(always)]
    unsafe fn scales<I: Isa>(meta: *const u8, pair: usize) -> I::I {
        Q4K::scales::<I>(meta, pair)
    }

    #[inline(always)]
    unsafe fn mins<I: Isa>(meta: *const u8, pair: usize) -> I::I {
        Q4K::mins::<I>(meta, pair)
    }
}

/// Signed scales of sixteen sub-blocks and no minima: `Q3_K` and `Q6_K`.
mod symmetric {
    use super::*;

    pub(super) const SUBS: usize = 16;
    pub(super) const META: usize = SCALES + SUBS / 2 * PAIR;

    pub(super) fn put_scale(meta: &mut [u8], lane: usize, sub: usize, scale: i8) {
        meta[SCALES + sub_at(sub, lane)] = scale as u8;
    }

    pub(super) fn restore(meta: &[u8], lane: usize, index: usize, integer: i32) -> f32 {
        let scale = meta[SCALES + sub_at(index / 16, lane)] as i8;
        lane_f16(meta, 0, lane) * f32::from(scale) * integer as f32
    }

    #[inline(always)]
    pub(super) unsafe fn scales<I: Isa>(meta: *const u8, pair: usize) -> I::I {
        I::load_i8_pairs(meta.add(SCALES + pair * PAIR))
    }
}

/// Six bits, symmetric around zero.
pub(crate) struct Q6K;

impl Format for Q6K {
    const DTYPE: TensorType = TensorType::Q6_K;
    type Packing = Six;
    const SCALES: usize = 1;
    const META: usize = symmetric::META;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        let (low, high) = (&block[..128], &block[128..192]);
        for (index, value) in values.iter_mut().enumerate() {
            let (half, within) = (index / 128, index % 128);
            let byte = low[64 * half + within % 64];
            let nibble = if within < 64 { byte & 0x0f } else { byte >> 4 };
            let two = high[32 * half + within % 32] >> (2 * (within / 32)) & 3;
            *value = nibble | two << 4;
        }
        for sub in 0..symmetric::SUBS {
            symmetric::put_scale(meta, lane, sub, block[192 + sub] as i8);
        }
        put_f16(meta, 0, lane, &block[208..210]);
    }

    fn restore(meta: &[u8], lane: usize, index: usize, value: u8) -> f32 {
        symmetric::restore(meta, lane, index, i32::from(value) - Self::OFFSET)
    }
}

impl SuperFormat for Q6K {
    const OFFSET: i32 = 32;
    const HAS_MIN: bool = false;
    const SUB16: bool = true;

    #[inline(always)]
    unsafe fn scales<I: Isa>(meta: *const u8, pair: usize) -> I::I {
        symmetric::scales::<I>(meta, pair)
    }

    #[inline(always)]
    unsafe fn mins<I: Isa>(_: *const u8, _: usize) -> I::I {
        I::splat_i(0)
    }
}

/// Two bits of 256 values: each 32 bytes hold four times 32 values.
fn two_bits(stored: &[u8], index: usize) -> u8 {
    let (half, within) = (index / 128, index % 128);
    stored[32 * half + within % 32] >> (2 * (within / 32)) & 3
}

/// Three bits, symmetric around zero.
pub(crate) struct Q3K;

impl Format for Q3K {
    const DTYPE: TensorType = TensorType::Q3_K;
    type Packing = Three;
    const SCALES: usize = 1;
    const META: usize = symmetric::META;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        let (high, low, scales) = (&block[..32], &block[32..96], &block[96..108]);
        for (index, value) in values.iter_mut().enumerate() {
            let top = high[index % 32] >> (index / 32) & 1;
            *value = two_bits(low, index) | top << 2;
        }
        for sub in 0..symmetric::SUBS {
            let nibble = scales[sub % 8] >> (4 * (sub / 8)) & 0x0f;
            let two = scales[8 + sub % 4] >> (2 * (sub / 4)) & 3;
            symmetric::put_scale(meta, lane, sub, (nibble | two << 4) as i8 - 32);
        }
        put_f16(meta, 0, lane, &block[108..110]);
    }

    fn restore(meta: &[u8], lane: usize, index: usize, value: u8) -> f32 {
        symmetric::restore(meta, lane, index, i32::from(value) - Self::OFFSET)
    }
}

impl SuperFormat for Q3K {
    const OFFSET: i32 = 4;
    const HAS_MIN: bool = false;
    const SUB16: bool = true;

    #[inline(always)]
    unsafe fn scales<I: Isa>(meta: *const u8, pair: usize) -> I::I {
        symmetric::scales::<I>(meta, pair)
    }

    #[inline(always)]
    unsafe fn mins<I: Isa>(_: *const u8, _: usize) -> I::I {
        I::splat_i(0)
    }
}

/// Two bits over minima; scale and minimum of a sub-block share a byte.
pub(crate) struct Q2K;

impl Q2K {
    const SUBS: usize = 16;
    const SCALE_BYTES: usize = 2 * SCALES;
}

impl Format for Q2K {
    const DTYPE: TensorType = TensorType::Q2_K;
    type Packing = Two;
    const SCALES: usize = 2;
    const META: usize = Self::SCALE_BYTES + Self::SUBS / 2 * PAIR;

    fn decode(block: &[u8], lane: usize, meta: &mut [u8], values: &mut [u8]) {
        for sub in 0..Self::SUBS {
            meta[Self::SCALE_BYTES + sub_at(sub, lane)] = block[sub];
        }
        for (index, value) in values.iter_mut().enumerate() {
            *value = two_bits(&block[16..80], index);
        }
        put_f16(meta, 0, lane, &block[80..82]);
        put_f16(meta, SCALES, lane, &block[82..84]);
    }

    fn restore(meta: &[u8], lane: usize, index: usize, value: u8) -> f32 {
        let both = meta[Self::SCALE_BYTES + sub_at(index / 16, lane)];
        let scale = lane_f16(meta, 0, lane) * f32::from(both & 0x0f);
        let min = lane_f16(meta, SCALES, lane) * f32::from(both >> 4);
        scale * f32::from(value) - min
    }
}

impl SuperFormat for Q2K {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    const SUB16: bool = true;

    #[inline(always)]
    unsafe fn scales<I: Isa>(meta: *const u8, pair: usize) -> I::I {
        I::and16(
            I::load_u8_pairs(meta.add(Self::SCALE_BYTES + pair * PAIR)),
            0x0f,
        )
    }

    #[inline(always)]
    unsafe fn mins<I: Isa>(meta: *const u8, pair: usize) -> I::I {
        I::shr16_by_four(I::load_u8_pairs(meta.add(Self::SCALE_BYTES + pair * PAIR)))
    }
}
