//! The cache in eight bits: per token and head, every [`GROUP`] numbers are signed bytes with one
//! scale, an `f16`; the last of a head may be fewer.
//!
//! Some models have keys with a few numbers that are a hundred times as large as the others: rounded
//! beside them, the others would be lost. So each group of a key is multiplied with a Hadamard matrix
//! (Sylvester's), which spreads every number over the group (Ashkboos et al., 2024, do so with heads),
//! and so are the queries, which leaves their products as they are. Not over the head: the two numbers
//! that the rotary embedding turns into each other mostly lie in different groups, and one may be
//! small while the other is large.
//!
//! Of a block first the bytes of all keys, then those of all values, then the scales of the keys
//! and those of the values. Scales of both lie side by side for sixteen tokens, as the bytes of the
//! keys do: the attention multiplies sixteen tokens' weights with the scales of their values at once.

use super::{KvShape, LayerKv, TOKENS, is_finite_half, words};
use crate::cpu::isa::{Isa, LANES};
use crate::kv_format::KvFormat;
use half::f16;
use std::slice;

/// Numbers that share a scale.
pub(crate) const GROUP: usize = KvFormat::GROUP;
/// The largest byte; -128 is never written.
const LARGEST: f32 = 127.0;

/// A layer's cache in eight bits.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(&'a LayerKv);

impl<'a> Bytes<'a> {
    #[inline(always)]
    pub(super) fn new(layer: &'a LayerKv) -> Self {
        Self(layer)
    }

    /// Numbers of one head.
    #[inline(always)]
    pub(crate) fn head_dim(self) -> usize {
        self.0.shape.head_dim
    }

    /// The first number of the key of `head` for sixteen tokens from `token` on, a multiple of
    /// sixteen. The next number of the same tokens is [`LANES`] further on.
    #[inline(always)]
    pub(crate) fn key_at(self, head: usize, token: usize) -> *mut i8 {
        let group = head * (TOKENS / LANES) + token % TOKENS / LANES;
        self.bytes(token)
            .wrapping_add(group * self.head_dim() * LANES)
    }

    /// The value of `head` for one token.
    #[inline(always)]
    pub(crate) fn value_at(self, head: usize, token: usize) -> *mut i8 {
        let row = head * TOKENS + token % TOKENS;
        self.bytes(token)
            .wrapping_add(TOKENS * self.0.shape.width() + row * self.head_dim())
    }

    /// The scales of the first group of keys of `head` for sixteen tokens from `token` on, a
    /// multiple of sixteen. Those of the next group are [`LANES`] further on.
    #[inline(always)]
    pub(crate) fn key_scales_at(self, head: usize, token: usize) -> *mut u16 {
        self.scales(0, head, token)
    }

    /// The same for values.
    #[inline(always)]
    pub(crate) fn value_scales_at(self, head: usize, token: usize) -> *mut u16 {
        self.scales(1, head, token)
    }

    #[inline(always)]
    fn bytes(self, token: usize) -> *mut i8 {
        self.0.block(token).cast()
    }

    #[inline(always)]
    fn scales(self, part: usize, head: usize, token: usize) -> *mut u16 {
        let KvShape { kv_heads, .. } = self.0.shape;
        let sixteens = TOKENS / LANES;
        let group = (part * kv_heads + head) * sixteens + token % TOKENS / LANES;
        self.0
            .block(token)
            // As many words as keys and values together have bytes, halved.
            .wrapping_add(TOKENS * self.0.shape.width())
            .wrapping_add(group * groups(self.0.shape) * LANES)
    }

    /// See [`LayerKv::turn_queries`].
    #[inline(always)]
    pub(super) fn turn_queries(self, queries: &mut [f32]) {
        for head in queries.chunks_exact_mut(self.head_dim()) {
            spread_out(head, true);
        }
    }

    /// See [`LayerKv::append`].
    #[inline(always)]
    pub(super) unsafe fn append<I: Isa>(self, token: usize, keys: &mut [f32], values: &[f32]) {
        let width = self.head_dim();
        for head in keys.chunks_exact_mut(width) {
            spread_out(head, false);
        }
        let heads = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (head, (keys, values)) in heads.enumerate() {
            let groups = keys.chunks(GROUP).zip(values.chunks(GROUP));
            for (group, (keys, values)) in groups.enumerate() {
                // SAFETY: promised by the caller; the groups are within the shape.
                unsafe {
                    let (bytes, scale) = quantise::<I>(keys);
                    self.put_key(head, token, group, &bytes[..keys.len()], scale);
                    let (bytes, scale) = quantise::<I>(values);
                    self.put_value(head, token, group, &bytes[..values.len()], scale);
                }
            }
        }
    }

    /// Writes a group of a key.
    #[inline(always)]
    unsafe fn put_key(self, head: usize, token: usize, group: usize, bytes: &[i8], scale: u16) {
        let (first, lane) = (token / LANES * LANES, token % LANES);
        let to = self.key_at(head, first).wrapping_add(lane);
        let scales = self.key_scales_at(head, first).wrapping_add(lane);
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: within the block, as the indices are within its shape.
            unsafe { *to.add((group * GROUP + index) * LANES) = *byte };
        }
        // SAFETY: as above.
        unsafe { *scales.add(group * LANES) = scale };
    }

    /// Writes a group of a value.
    #[inline(always)]
    unsafe fn put_value(self, head: usize, token: usize, group: usize, bytes: &[i8], scale: u16) {
        let (first, lane) = (token / LANES * LANES, token % LANES);
        let scales = self.value_scales_at(head, first).wrapping_add(lane);
        // SAFETY: within the block, as the indices are within its shape.
        unsafe {
            let to = self.value_at(head, token).add(group * GROUP);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
            *scales.add(group * LANES) = scale;
        }
    }

    /// See [`LayerKv::write`]. A row is the bytes of the keys and their scales, then those of the
    /// values.
    pub(super) unsafe fn write_row(self, token: usize, row: &[u8]) {
        let (width, groups) = (self.head_dim(), groups(self.0.shape));
        let [keys, values] = parts(self.0.shape, row);
        for head in 0..self.0.shape.kv_heads {
            for group in 0..groups {
                let range =
                    head * width + group * GROUP..head * width + width.min((group + 1) * GROUP);
                let scale = |part: &Part<'_>| part.scales[head * groups + group];
                // SAFETY: promised by the caller; the groups are within the shape.
                unsafe {
                    self.put_key(head, token, group, &keys.bytes[range.clone()], scale(&keys));
                    self.put_value(head, token, group, &values.bytes[range], scale(&values));
                }
            }
        }
    }

    /// See [`LayerKv::read`].
    pub(super) fn read(self, token: usize, out: &mut Vec<u8>) {
        let (heads, width) = (self.0.shape.kv_heads, self.head_dim());
        let (first, lane) = (token / LANES * LANES, token % LANES);
        for head in 0..heads {
            let from = self.key_at(head, first).wrapping_add(lane);
            // SAFETY: within the block; the token was written, and nobody writes it.
            out.extend((0..width).map(|index| unsafe { *from.add(index * LANES) } as u8));
        }
        self.read_scales(
            |head| self.key_scales_at(head, first).wrapping_add(lane),
            out,
        );
        for head in 0..heads {
            let from = self.value_at(head, token).cast::<u8>();
            // SAFETY: as above.
            out.extend_from_slice(unsafe { slice::from_raw_parts(from, width) });
        }
        self.read_scales(
            |head| self.value_scales_at(head, first).wrapping_add(lane),
            out,
        );
    }

    fn read_scales(self, at: impl Fn(usize) -> *mut u16, out: &mut Vec<u8>) {
        for head in 0..self.0.shape.kv_heads {
            for group in 0..groups(self.0.shape) {
                // SAFETY: within the block; the token was written, and nobody writes it.
                let scale = unsafe { *at(head).add(group * LANES) };
                out.extend(scale.to_le_bytes());
            }
        }
    }
}

/// Scales of a head.
#[inline(always)]
fn groups(shape: KvShape) -> usize {
    shape.head_dim.div_ceil(GROUP)
}

/// The keys of a row, or its values.
struct Part<'a> {
    bytes: &'a [i8],
    scales: Vec<u16>,
}

/// The keys and the values of a row.
fn parts(shape: KvShape, row: &[u8]) -> [Part<'_>; 2] {
    let (keys, values) = row.split_at(row.len() / 2);
    [keys, values].map(|part| {
        let (bytes, scales) = part.split_at(shape.width());
        Part {
            bytes: bytemuck::cast_slice(bytes),
            scales: words(scales).collect(),
        }
    })
}

/// Whether all numbers of a row are finite.
pub(super) fn is_finite(shape: KvShape, row: &[u8]) -> bool {
    let mut scales = parts(shape, row).into_iter().flat_map(|part| part.scales);
    scales.all(is_finite_half)
}

/// Multiplies each group of a head with a Hadamard matrix; a shorter last one with those of the
/// powers of two that add up to its length, the largest first. Two numbers that went through a matrix
/// have a product that is as many times too large as it is wide: one of them is divided by that.
#[inline(always)]
fn spread_out(head: &mut [f32], is_divided: bool) {
    for group in head.chunks_mut(GROUP) {
        let mut rest = group;
        while let Some(power) = rest.len().checked_ilog2() {
            let (part, behind) = rest.split_at_mut(1 << power);
            spread_part(part);
            if is_divided {
                // By a power of two: nothing is rounded.
                let factor = 1.0 / part.len() as f32;
                for number in part {
                    *number *= factor;
                }
            }
            rest = behind;
        }
    }
}

/// The same for a width that is a power of two: sums and differences of halves, of ever larger ones.
#[inline(always)]
fn spread_part(part: &mut [f32]) {
    let mut width = 1;
    while width < part.len() {
        for pair in part.chunks_exact_mut(2 * width) {
            let (low, high) = pair.split_at_mut(width);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        width *= 2;
    }
}

/// Rounds a group of numbers; gives the bytes, zeros behind the last, and the bits of the scale.
#[inline(always)]
unsafe fn quantise<I: Isa>(numbers: &[f32]) -> ([i8; GROUP], u16) {
    let mut padded = [0.0; GROUP];
    padded[..numbers.len()].copy_from_slice(numbers);
    let mut bytes = [0; GROUP];
    // SAFETY: the processor has the instruction set; a group is two vectors.
    unsafe {
        let vectors = [
            I::load(padded.as_ptr()),
            I::load(padded.as_ptr().add(LANES)),
        ];
        let (low, high) = (I::magnitude_bits(vectors[0]), I::magnitude_bits(vectors[1]));
        let highest = I::highest_i(I::max_i(low, high));
        let scale = scale_of(f32::from_bits(highest as u32));
        let inverse = I::splat(inverse_of(scale));
        for (index, vector) in vectors.into_iter().enumerate() {
            // What is not a number becomes one; the scale tells of it.
            let scaled = I::min(I::mul(vector, inverse), I::splat(LARGEST));
            let held = I::max(scaled, I::splat(-LARGEST));
            I::store_i8(bytes.as_mut_ptr().add(index * LANES), I::to_int(held));
        }
        (bytes, scale.to_bits())
    }
}

/// The scale of a group by its largest magnitude, rounded up: the smallest scales are far apart, and
/// the largest magnitude would be cut off. With a value that is not finite, or too large for any
/// scale, it is none either, so that every product with it is found out.
#[inline(always)]
fn scale_of(highest: f32) -> f16 {
    if !highest.is_finite() {
        return f16::NAN;
    }
    let nearest = f16::from_f32(highest / LARGEST);
    if nearest.to_f32() * LARGEST < highest {
        return f16::from_bits(nearest.to_bits() + 1);
    }
    nearest
}

#[inline(always)]
fn inverse_of(scale: f16) -> f32 {
    let scale = scale.to_f32();
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::{Kernel, dispatch};
    use crate::hardware::isas;

    struct Quantise<'a>(&'a [f32]);

    impl Kernel for Quantise<'_> {
        type Output = ([i8; GROUP], u16);

        #[inline(always)]
        unsafe fn run<I: Isa>(self) -> Self::Output {
            // SAFETY: promised by the caller.
            unsafe { quantise::<I>(self.0) }
        }
    }

    /// The same on every instruction set.
    fn quantised(numbers: &[f32]) -> ([i8; GROUP], f32) {
        let all = isas().iter().map(|isa| dispatch(*isa, Quantise(numbers)));
        let all: Vec<_> = all.collect();
        assert!(all.iter().all(|one| *one == all[0]), "{numbers:?}");
        (all[0].0, f16::from_bits(all[0].1).to_f32())
    }

    #[test]
    fn numbers_come_back_within_half_a_step_and_the_largest_uses_the_whole_range() {
        for (count, size) in [
            (32, 1.0),
            (32, 1e-4),
            (32, 3e4),
            (16, 0.3),
            (2, 7.0),
            (18, 2e3),
        ] {
            let number = |i: usize| size * (i as f32 * 1.7).sin();
            let numbers: Vec<f32> = (0..count).map(number).collect();
            let (bytes, scale) = quantised(&numbers);
            let largest = bytes.iter().map(|byte| byte.unsigned_abs()).max();
            // A scale that is no normal number is up to a seventh too large here.
            assert!(
                largest >= Some(if size < 1e-2 { 108 } else { 126 }),
                "{largest:?}"
            );
            for (number, byte) in numbers.iter().zip(bytes) {
                let error = (number - f32::from(byte) * scale).abs();
                assert!(error <= 0.51 * scale, "{number}: {error} with {scale}");
            }
            assert!(bytes[count..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn zeros_and_what_is_smaller_than_any_step_become_zeros() {
        for size in [0.0, -0.0, 1e-45, 1e-8] {
            let (bytes, scale) = quantised(&[size; 20]);
            assert_eq!(bytes, [0; GROUP]);
            assert!(scale < 1e-7, "{scale}");
        }
    }

    #[test]
    fn what_is_not_finite_or_too_large_has_a_scale_that_is_not_finite() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e7, f32::MAX] {
            let (_, scale) = quantised(&[1.0, odd, -1.0]);
            assert!(!scale.is_finite(), "{odd}");
        }
    }
}
