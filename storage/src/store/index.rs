//! Keys and values of the content tree.
//!
//! | Key | Value |
//! |---|---|
//! | `b` multihash, model | where the block's bytes are ([`Location`]) |
//! | `p` model, start | end of a present range of the model's file |
//! | `m` model | the catalogue's entry ([`ModelEntry`]) |
//! | `n` | the next model number |
//! | `v` | format of this tree |
//!
//! A block is found by its multihash, as in Kubo, so that CID version 0 and 1 are one block. Numbers
//! are big-endian, so that keys sort as they count. Everything is in one tree, because a sled batch
//! is atomic within one tree.

use std::ops::Range;

use bincode::config::{Configuration, Fixint, LittleEndian};
use bincode::{Decode, Encode};
use cid::Cid;
use sled::{Batch, IVec};

use crate::dag::MAX_BLOCK;
use crate::error::{Result, StorageError};
use crate::ranges::RangeChange;

/// Format of the tree; another number is refused.
pub(super) const FORMAT: u32 = 1;

pub(super) const FORMAT_KEY: &[u8] = b"v";
pub(super) const NEXT_MODEL_KEY: &[u8] = b"n";
pub(super) const BLOCKS: &[u8] = b"b";
pub(super) const ENTRIES: &[u8] = b"m";
const PRESENT: u8 = b'p';

// A value holds at most one block and its frame.
const VALUE_LIMIT: usize = MAX_BLOCK + 4096;

/// Number of a model within this store; never used again after the model's removal.
pub(super) type ModelId = u32;

/// Where the bytes of a block are: `head`, then a range of the model's file, then `tail`.
///
/// A raw leaf is all file, an inner node all head; a leaf wrapped in dag-pb has a few bytes around.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Location {
    pub offset: u64,
    pub len: u32,
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
}

impl Location {
    /// Bytes of the whole block.
    pub(super) fn block_len(&self) -> usize {
        self.head.len() + self.len as usize + self.tail.len()
    }

    /// The range of the file.
    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(u64::from(self.len))
    }
}

/// What is kept of a model beside its blocks and presence.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct ModelEntry {
    /// Canonical CID in bytes.
    pub cid: Vec<u8>,
    /// Length of the file.
    pub bytes: u64,
    /// Whether the length was read from the verified root, and not hearsay.
    pub verified: bool,
    pub pinned: bool,
    pub added_unix: u64,
    /// Names and the order in which names were given in this store, newest last.
    pub names: Vec<(String, u64)>,
}

pub(super) fn block_prefix(cid: &Cid) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 34 + 4);
    key.extend_from_slice(BLOCKS);
    key.extend_from_slice(&cid.hash().to_bytes());
    key
}

pub(super) fn block_key(cid: &Cid, model: ModelId) -> Vec<u8> {
    let mut key = block_prefix(cid);
    key.extend_from_slice(&model.to_be_bytes());
    key
}

/// The model at the end of a block's key.
pub(super) fn model_of_block(key: &[u8]) -> Option<ModelId> {
    let (_, model) = key.split_last_chunk::<4>()?;
    Some(u32::from_be_bytes(*model))
}

pub(super) fn entry_key(model: ModelId) -> Vec<u8> {
    [ENTRIES, &model.to_be_bytes()].concat()
}

pub(super) fn model_of_entry(key: &[u8]) -> Option<ModelId> {
    let number = key.strip_prefix(ENTRIES)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

pub(super) fn present_prefix(model: ModelId) -> Vec<u8> {
    let mut key = Vec::with_capacity(13);
    key.push(PRESENT);
    key.extend_from_slice(&model.to_be_bytes());
    key
}

fn present_key(model: ModelId, start: u64) -> Vec<u8> {
    let mut key = present_prefix(model);
    key.extend_from_slice(&start.to_be_bytes());
    key
}

/// A present range from its key and value.
pub(super) fn present_range(key: &[u8], value: &[u8]) -> Result<Range<u64>> {
    let start = key
        .last_chunk::<8>()
        .map(|bytes| u64::from_be_bytes(*bytes));
    let end = <[u8; 8]>::try_from(value).ok().map(u64::from_be_bytes);
    match (start, end) {
        (Some(start), Some(end)) if start < end => Ok(start..end),
        _ => Err(damaged("a presence record", "not a range")),
    }
}

/// Mirrors a change of a model's presence into a batch.
pub(super) fn put_presence(batch: &mut Batch, model: ModelId, change: RangeChange) {
    for start in change.removed {
        batch.remove(present_key(model, start));
    }
    for range in change.added {
        let end: &[u8] = &range.end.to_be_bytes();
        batch.insert(present_key(model, range.start), end);
    }
}

pub(super) fn put_entry(batch: &mut Batch, model: ModelId, entry: &ModelEntry) -> Result<()> {
    batch.insert(entry_key(model), encode(entry)?);
    Ok(())
}

pub(super) fn encode<T: Encode>(value: &T) -> Result<Vec<u8>> {
    bincode::encode_to_vec(value, config()).map_err(|e| damaged("a value to store", e))
}

pub(super) fn decode_location(value: &IVec) -> Result<Location> {
    let location: Location = decode(value).map_err(|e| damaged("a block record", e))?;
    if location.block_len() > MAX_BLOCK {
        return Err(damaged("a block record", "longer than a block"));
    }
    Ok(location)
}

pub(super) fn decode_entry(value: &IVec) -> Result<ModelEntry> {
    decode(value).map_err(|e| damaged("a catalogue entry", e))
}

/// A number stored under one of the single keys.
pub(super) fn decode_number(value: &IVec) -> Result<u32> {
    let bytes = <[u8; 4]>::try_from(value.as_ref());
    bytes
        .map(u32::from_be_bytes)
        .map_err(|_| damaged("a counter", "not four bytes"))
}

fn decode<T: Decode<()>>(value: &[u8]) -> Result<T, bincode::error::DecodeError> {
    let (decoded, read) = bincode::decode_from_slice(value, config())?;
    if read != value.len() {
        return Err(bincode::error::DecodeError::Other("trailing bytes"));
    }
    Ok(decoded)
}

fn config() -> Configuration<LittleEndian, Fixint, bincode::config::Limit<VALUE_LIMIT>> {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<VALUE_LIMIT>()
}

fn damaged(what: &'static str, detail: impl ToString) -> StorageError {
    StorageError::Damaged {
        what,
        detail: detail.to_string(),
    }
}
