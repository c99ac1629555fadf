//! The cache in half precision: of a block first all keys, then all values.

use super::{LayerKv, TOKENS, is_finite_half, words};
use crate::cpu::isa::{Isa, LANES};

/// A layer's cache in half precision.
#[derive(Clone, Copy)]
pub(crate) struct Half<'a>(&'a LayerKv);

impl<'a> Half<'a> {
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
    pub(crate) fn key_at(self, head: usize, token: usize) -> *mut u16 {
        let group = head * (TOKENS / LANES) + token % TOKENS / LANES;
        self.0
            .block(token)
            .wrapping_add(group * self.head_dim() * LANES)
    }

    /// The value of `head` for one token.
    #[inline(always)]
    pub(crate) fn value_at(self, head: usize, token: usize) -> *mut u16 {
        let row = head * TOKENS + token % TOKENS;
        self.0
            .block(token)
            .wrapping_add(TOKENS * self.0.shape.width() + row * self.head_dim())
    }

    /// See [`LayerKv::append`].
    #[inline(always)]
    pub(super) unsafe fn append<I: Isa>(
        self,
        token: usize,
        keys: &[f32],
        values: &[f32],
        rounded: &mut Vec<u16>,
    ) {
        let width = keys.len();
        rounded.resize(2 * width + 2 * LANES, 0);
        let (own_keys, own_values) = rounded.split_at_mut(width + LANES);
        // SAFETY: promised by the caller; there is room for a vector behind the last number.
        unsafe {
            round::<I>(keys, own_keys);
            round::<I>(values, own_values);
            self.write(token, &own_keys[..width], &own_values[..width]);
        }
    }

    /// Writes the rounded keys and values of one token.
    unsafe fn write(self, token: usize, keys: &[u16], values: &[u16]) {
        let width = self.head_dim();
        let heads = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (head, (keys, values)) in heads.enumerate() {
            let lane = token % LANES;
            let to = self.key_at(head, token / LANES * LANES).wrapping_add(lane);
            for (index, key) in keys.iter().enumerate() {
                // SAFETY: within the block, as the indices are within its shape.
                unsafe { *to.add(index * LANES) = *key };
            }
            let to = self.value_at(head, token);
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to, width) };
        }
    }

    /// See [`LayerKv::write`]. A row is keys, then values.
    pub(super) unsafe fn write_row(self, token: usize, row: &[u8]) {
        let numbers: Vec<u16> = words(row).collect();
        let (keys, values) = numbers.split_at(self.0.shape.width());
        // SAFETY: promised by the caller.
        unsafe { self.write(token, keys, values) };
    }

    /// See [`LayerKv::read`].
    pub(super) fn read(self, token: usize, out: &mut Vec<u8>) {
        let (heads, width) = (self.0.shape.kv_heads, self.head_dim());
        for head in 0..heads {
            let from = self.key_at(head, token / LANES * LANES);
            let from = from.wrapping_add(token % LANES);
            for index in 0..width {
                // SAFETY: within the block; the token was written, and nobody writes it.
                let key = unsafe { *from.add(index * LANES) };
                out.extend(key.to_le_bytes());
            }
        }
        for head in 0..heads {
            let from = self.value_at(head, token);
            // SAFETY: as above.
            let values = unsafe { std::slice::from_raw_parts(from, width) };
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
}

/// Whether all numbers of a row are finite.
pub(super) fn is_finite(row: &[u8]) -> bool {
    words(row).all(is_finite_half)
}

#[inline(always)]
unsafe fn round<I: Isa>(from: &[f32], to: &mut [u16]) {
    let mut last = [0.0f32; LANES];
    for (from, to) in from.chunks(LANES).zip(to.chunks_mut(LANES)) {
        // SAFETY: the target has whole vectors of room, and a short source is copied first.
        unsafe {
            let values = if from.len() == LANES {
                I::load(from.as_ptr())
            } else {
                last[..from.len()].copy_from_slice(from);
                I::load(last.as_ptr())
            };
            I::store_f16(to.as_mut_ptr(), values);
        }
    }
}
