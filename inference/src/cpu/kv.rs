//! The KV cache of a sequence: per layer, blocks of [`TOKENS`] tokens.
//!
//! Within a block the keys of sixteen tokens lie side by side, value by value, so that a lane of
//! the attention's first product is a token; values lie token by token, so that a lane of the
//! second product is one of their numbers. Blocks are taken when they are reached. A layer with
//! a sliding window gives up the blocks that no later token can see.
//!
//! * [`half`] – numbers in half precision; [`bytes`] – in eight bits, with scales;
//! * [`sequence`] – the caches of all layers; [`budget`] – the memory of all sequences.

mod budget;
mod bytes;
mod half;
mod sequence;

pub(crate) use budget::Budget;
pub(crate) use bytes::{Bytes, GROUP};
pub(crate) use half::Half;
pub(crate) use sequence::Sequence;

use super::isa::Isa;
use crate::kv_format::KvFormat;
use crate::stage::StageError;
use budget::Share;
use std::cell::UnsafeCell;
use std::collections::{TryReserveError, VecDeque};

/// Tokens of a block.
pub(crate) const TOKENS: usize = 64;
/// Tokens behind a sliding window that are kept, so that the last steps can be taken back.
const KEPT: usize = 1024;

/// Sizes of a row of keys, and of values, and how they are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub kv_heads: usize,
    pub head_dim: usize,
    pub format: KvFormat,
}

impl KvShape {
    /// Numbers of one token: all key heads, or all value heads.
    pub(crate) fn width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes that one token takes in one layer.
    pub(crate) fn token_bytes(self) -> usize {
        self.format.token_bytes(self.kv_heads, self.head_dim)
    }

    /// Bytes of a block.
    fn block_bytes(self) -> usize {
        TOKENS * self.token_bytes()
    }
}

/// Keys and values of all heads; what lies where is the form's affair.
struct Block {
    words: Box<[UnsafeCell<u16>]>,
    /// Given back with the block.
    _share: Share,
}

// SAFETY: threads write different tokens and read only tokens that were written before; see
// `LayerKv::append`.
unsafe impl Sync for Block {}

/// The cache of one layer in its form.
pub(crate) enum Form<'a> {
    Half(Half<'a>),
    Bytes(Bytes<'a>),
}

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
            let mut words = Vec::new();
            words.try_reserve_exact(bytes / size_of::<u16>())?;
            words.resize_with(bytes / size_of::<u16>(), || UnsafeCell::new(0));
            self.blocks.push_back(Block {
                words: words.into_boxed_slice(),
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

    /// The cache in its form.
    #[inline(always)]
    pub(crate) fn form(&self) -> Form<'_> {
        match self.shape.format {
            KvFormat::F16 => Form::Half(Half::new(self)),
            KvFormat::Q8 => Form::Bytes(Bytes::new(self)),
        }
    }

    /// Where the block of a token lies.
    #[inline(always)]
    fn block(&self, token: usize) -> *mut u16 {
        let block = &self.blocks[token / TOKENS - self.first];
        UnsafeCell::raw_get(block.words.as_ptr())
    }

    /// Brings queries into the form that products with the keys need, before they are attended with.
    #[inline(always)]
    pub(crate) fn turn_queries(&self, queries: &mut [f32]) {
        match self.form() {
            Form::Half(_) => {}
            Form::Bytes(bytes) => bytes.turn_queries(queries),
        }
    }

    /// Rounds keys and values of all heads and writes them as token `token`. `rounded` is a buffer;
    /// what becomes of `keys` is the form's affair.
    ///
    /// # Safety
    /// See [`Isa`]. The blocks must have been reached, and no other thread may use this token at
    /// the time.
    #[inline(always)]
    pub(crate) unsafe fn append<I: Isa>(
        &self,
        token: usize,
        keys: &mut [f32],
        values: &[f32],
        rounded: &mut Vec<u16>,
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            match self.form() {
                Form::Half(half) => half.append::<I>(token, keys, values, rounded),
                Form::Bytes(bytes) => bytes.append::<I>(token, keys, values),
            }
        }
    }

    /// Gives the row of a token that was written, as [`Self::write`] takes it.
    fn read(&self, token: usize, out: &mut Vec<u8>) {
        match self.form() {
            Form::Half(half) => half.read(token, out),
            Form::Bytes(bytes) => bytes.read(token, out),
        }
    }

    /// Writes the row of a token, which has [`KvShape::token_bytes`] bytes.
    ///
    /// # Safety
    /// The blocks must have been reached, and no other thread may use this token at the time.
    unsafe fn write(&self, token: usize, row: &[u8]) {
        // SAFETY: promised by the caller.
        unsafe {
            match self.form() {
                Form::Half(half) => half.write_row(token, row),
                Form::Bytes(bytes) => bytes.write_row(token, row),
            }
        }
    }
}

/// Refuses a row with a number that is not finite.
fn check_row(shape: KvShape, row: &[u8]) -> Result<(), StageError> {
    let is_finite = match shape.format {
        KvFormat::F16 => half::is_finite(row),
        KvFormat::Q8 => bytes::is_finite(shape, row),
    };
    if is_finite {
        return Ok(());
    }
    Err(StageError::NonFinite {
        what: "the imported cache".to_owned(),
    })
}

/// Words of a row, little endian.
fn words(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    let pairs = bytes.as_chunks::<2>().0.iter();
    pairs.map(|bytes| u16::from_le_bytes(*bytes))
}

fn is_finite_half(bits: u16) -> bool {
    ::half::f16::from_bits(bits).is_finite()
}
