//! The KV cache of a sequence: per layer, blocks of [`TOKENS`] tokens in half precision.
//!
//! Within a block the keys of sixteen tokens lie side by side, value by value, so that a lane of
//! the attention's first product is a token; values lie token by token, so that a lane of the
//! second product is one of their numbers. Blocks are taken when they are reached. A layer with
//! a sliding window gives up the blocks that no later token can see.

use super::isa::LANES;
use crate::stage::StageError;
use std::cell::UnsafeCell;
use std::collections::VecDeque;

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
}

/// Keys, then values, of all heads.
struct Block(Box<[UnsafeCell<u16>]>);

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

    /// Takes blocks for tokens below `len`.
    fn reach(&mut self, len: usize) -> Result<(), std::collections::TryReserveError> {
        let numbers = 2 * TOKENS * self.shape.width();
        while (self.first + self.blocks.len()) * TOKENS < len {
            let mut block = Vec::new();
            block.try_reserve_exact(numbers)?;
            block.resize_with(numbers, || UnsafeCell::new(0));
            self.blocks.push_back(Block(block.into_boxed_slice()));
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
        UnsafeCell::raw_get(block.0.as_ptr())
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

/// The cache of a sequence over all layers of a stage.
pub(crate) struct Sequence {
    /// Tokens that have gone through all layers.
    pub len: usize,
    /// Tokens that may be held.
    pub limit: usize,
    /// One cache per layer of the stage.
    pub layers: Vec<LayerKv>,
}

impl Sequence {
    /// An empty cache for at most `limit` tokens; one window, or none, per layer.
    pub(crate) fn new(
        limit: usize,
        shape: KvShape,
        windows: impl Iterator<Item = Option<usize>>,
    ) -> Self {
        Self {
            len: 0,
            limit,
            layers: windows.map(|window| LayerKv::new(shape, window)).collect(),
        }
    }

    /// Takes memory for tokens below `len`.
    pub(crate) fn reach(&mut self, len: usize) -> Result<(), StageError> {
        let layers = self.layers.len();
        for layer in &mut self.layers {
            layer.reach(len).map_err(|_| StageError::OutOfMemory {
                tokens: len,
                bytes: (len * layers * layer.shape.token_bytes()) as u64,
            })?;
        }
        Ok(())
    }

    /// Takes over the tokens below `len` as part of the sequence.
    pub(crate) fn commit(&mut self, len: usize) {
        self.len = len;
        for layer in &mut self.layers {
            layer.trim(len);
        }
    }

    /// Forgets everything from token number `len` on, also what an unfinished step has left.
    pub(crate) fn truncate(&mut self, len: usize) -> Result<(), StageError> {
        let len = self.len.min(len);
        if !self.layers.iter().all(|layer| layer.covers(len)) {
            return Err(StageError::Forgotten { len });
        }
        self.len = len;
        for layer in &mut self.layers {
            layer.truncate(len);
        }
        Ok(())
    }

    /// The rows of `tokens`, layer after layer: keys and values of each token as `f16`, little
    /// endian.
    pub(crate) fn export(&self, tokens: std::ops::Range<usize>) -> Result<Vec<u8>, StageError> {
        if tokens.end > self.len || tokens.start > tokens.end {
            return Err(StageError::PositionGap {
                have: self.len,
                got: tokens.end,
            });
        }
        let is_there = |layer: &LayerKv| layer.first * TOKENS <= tokens.start;
        if !self.layers.iter().all(is_there) {
            return Err(StageError::Forgotten { len: tokens.start });
        }
        let mut numbers = Vec::new();
        for layer in &self.layers {
            layer.read(tokens.clone(), &mut numbers);
        }
        Ok(numbers.iter().flat_map(|bits| bits.to_le_bytes()).collect())
    }

    /// Appends rows that [`Self::export`] gave on a stage of the same layers.
    pub(crate) fn import(&mut self, position: usize, data: &[u8]) -> Result<(), StageError> {
        let Some(shape) = self.layers.first().map(|layer| layer.shape) else {
            return Ok(());
        };
        let per_token = shape.token_bytes() * self.layers.len();
        if position != self.len {
            return Err(StageError::PositionGap {
                have: self.len,
                got: position,
            });
        }
        if !data.len().is_multiple_of(per_token) {
            return Err(StageError::BadInput {
                reason: format!("{} bytes are not rows of {per_token}", data.len()),
            });
        }
        let count = data.len() / per_token;
        if position + count > self.limit {
            return Err(StageError::ContextOverflow {
                needed: position + count,
                limit: self.limit,
            });
        }
        let numbers: Vec<u16> = data
            .as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| u16::from_le_bytes(*bytes))
            .collect();
        let is_finite = |bits: &u16| half::f16::from_bits(*bits).is_finite();
        if !numbers.iter().all(is_finite) {
            return Err(StageError::NonFinite {
                what: "the imported cache".to_owned(),
            });
        }
        self.reach(position + count)?;
        let width = shape.width();
        for (layer, rows) in self
            .layers
            .iter()
            .zip(numbers.chunks(2 * width * count.max(1)))
        {
            for (index, row) in rows.chunks_exact(2 * width).enumerate() {
                let (keys, values) = row.split_at(width);
                // SAFETY: the blocks were reached above, and the sequence is held exclusively.
                unsafe { layer.write(position + index, keys, values) };
            }
        }
        self.commit(position + count);
        Ok(())
    }
}
