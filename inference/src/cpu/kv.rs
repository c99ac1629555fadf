//! The KV cache of a sequence: per layer, blocks of [`TOKENS`] tokens in half precision.
//!
//! Within a block the keys of sixteen tokens lie side by side, value by value, so that a lane of
//! the attention's first product is a token; values lie token by token, so that a lane of the
//! second product is one of their numbers. Blocks are taken when they are reached. A layer with
//! a sliding window gives up the blocks that no later token can see.

mod budget;
mod sequence;

pub(crate) use budget::Budget;
pub(crate) use sequence::Sequence;

use super::isa::LANES;
use budget::Share;
use std::cell::UnsafeCell;
use std::collections::{TryReserveError, VecDeque};

/// Tokens of a block.
pub(crate) const TOKENS: usize = 64;
/// Tokens behind a sliding window that are kept, so that the last steps can be taken back.
const KEPT: usize = 1024;

/// Sizes of a row of keys, and of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl KvShape {
    /// Numbers of one token: all key heads, or all value heads.
    pub(crate) fn width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes that one token takes in one layer.
    pub(crate) fn token_bytes(self) -> usize {
        2 * self.width() * size_of::<u16>()
    }

    /// Bytes of a block.
    fn block_bytes(self) -> usize {
        TOKENS * self.token_bytes()
    }
}

/// Keys, then values, of all heads.
struct Block {
    numbers: Box<[UnsafeCell<u16>]>,
    /// Given back with the block.
    _share: Share,
}

// SAFETY: threads write different tokens and read only tokens that were written before; see
// `LayerKv::key_at` and `LayerKv::value_at`.
unsafe impl Sync for Block {}

/// The cache of one layer.
pub(crate) struct LayerKv {
    shape: KvShape,
    window: Option<usize>,
    /// Number of the first block that is still there.
    first: usize,
    blocks: VecDeque<Block>,
}

impl LayerKv {
    fn new(shape: KvShape, window: Option<usize>) -> Self {
        Self {
            shape,
            window,
            first: 0,
            blocks: VecDeque::new(),
        }
    }

    /// Bytes of the blocks that tokens below `len` need besides those that are there.
    fn missing_bytes(&self, len: usize) -> u64 {
        let blocks = len.div_ceil(TOKENS);
        let missing = blocks.saturating_sub(self.first + self.blocks.len());
        (missing * self.shape.block_bytes()) as u64
    }

    /// Takes blocks for tokens below `len`.
    fn reach(&mut self, len: usize, budget: &Budget) -> Result<(), TryReserveError> {
        let bytes = self.shape.block_bytes();
        while self.missing_bytes(len) > 0 {
            let mut numbers = Vec::new();
            numbers.try_reserve_exact(bytes / size_of::<u16>())?;
            numbers.resize_with(bytes / size_of::<u16>(), || UnsafeCell::new(0));
            self.blocks.push_back(Block {
                numbers: numbers.into_boxed_slice(),
                _share: budget.take(bytes as u64),
            });
        }
        Ok(())
    }

    /// Gives up what lies behind the window of a sequence of `len` tokens.
    fn trim(&mut self, len: usize) {
        let Some(window) = self.window else {
            return;
        };
        let needed = len.saturating_sub(window + KEPT);
        while (self.first + 1) * TOKENS <= needed && self.blocks.len() > 1 {
            self.blocks.pop_front();
            self.first += 1;
        }
    }

    fn truncate(&mut self, len: usize) {
        let wanted = len.div_ceil(TOKENS).saturating_sub(self.first);
        self.blocks.truncate(wanted);
    }

    /// Whether the next token of a sequence of `len` would find all that it sees.
    fn covers(&self, len: usize) -> bool {
        let start = self.window.map_or(0, |window| len.saturating_sub(window));
        self.first * TOKENS <= start
    }

    /// Numbers of one head.
    pub(crate) fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    #[inline(always)]
    fn block(&self, token: usize) -> *mut u16 {
        let block = &self.blocks[token / TOKENS - self.first];
        UnsafeCell::raw_get(block.numbers.as_ptr())
    }

    /// The first number of the key of `head` for sixteen tokens from `token` on, a multiple of
    /// sixteen. The next number of the same tokens is [`LANES`] further on.
    #[inline(always)]
    pub(crate) fn key_at(&self, head: usize, token: usize) -> *mut u16 {
        let group = head * (TOKENS / LANES) + token % TOKENS / LANES;
        self.block(token)
            .wrapping_add(group * self.shape.head_dim * LANES)
    }

    /// The value of `head` for one token.
    #[inline(always)]
    pub(crate) fn value_at(&self, head: usize, token: usize) -> *mut u16 {
        let row = head * TOKENS + token % TOKENS;
        self.block(token)
            .wrapping_add(TOKENS * self.shape.width() + row * self.shape.head_dim)
    }

    /// Writes the row of one token. `row` holds keys and values, already rounded.
    ///
    /// # Safety
    /// The blocks must have been reached, and no other thread may use this token at the time.
    unsafe fn write(&self, token: usize, keys: &[u16], values: &[u16]) {
        let width = self.shape.head_dim;
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

    /// Rounds keys and values to half precision and writes them as token `token`.
    ///
    /// # Safety
    /// As for [`Self::write`].
    #[inline(always)]
    pub(crate) unsafe fn append<I: super::isa::Isa>(
        &self,
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
            round_to_half::<I>(keys, own_keys);
            round_to_half::<I>(values, own_values);
            self.write(token, &own_keys[..width], &own_values[..width]);
        }
    }

    /// Reads the rows of `tokens`, keys and then values of each.
    fn read(&self, tokens: std::ops::Range<usize>, out: &mut Vec<u16>) {
        let KvShape { kv_heads, head_dim } = self.shape;
        for token in tokens {
            for head in 0..kv_heads {
                let from = self.key_at(head, token / LANES * LANES);
                let from = from.wrapping_add(token % LANES);
                for index in 0..head_dim {
                    // SAFETY: the caller holds the cache exclusively or shared with readers, and
                    // the token has been written.
                    out.push(unsafe { *from.add(index * LANES) });
                }
            }
            for head in 0..kv_heads {
                let from = self.value_at(head, token);
                // SAFETY: as above.
                out.extend_from_slice(unsafe { std::slice::from_raw_parts(from, head_dim) });
            }
        }
    }
}

#[inline(always)]
unsafe fn round_to_half<I: super::isa::Isa>(from: &[f32], to: &mut [u16]) {
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
