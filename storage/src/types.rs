//! What crosses the border of this crate.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;

use crate::error::BlockSourceError;

/// A model in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRecord {
    /// Its content, always in CID version 1 ([`canonical`](crate::canonical)).
    pub cid: Cid,
    /// The name given last; the text of the CID when none was given.
    pub name: String,
    /// Length of the file.
    pub bytes: u64,
    /// How many of those bytes are here, verified and durable.
    pub present_bytes: u64,
    /// Whether it is kept when room is needed.
    pub pinned: bool,
    /// When it was added or named here, in seconds since 1970.
    pub added_unix: u64,
}

impl ModelRecord {
    /// Whether every byte is here.
    pub fn complete(&self) -> bool {
        self.present_bytes == self.bytes
    }
}

/// What part of a file to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// All of it.
    All,
    /// These byte ranges, in any order; what lies beyond the end of the file is ignored.
    Ranges(Vec<Range<u64>>),
}

impl From<Range<u64>> for Want {
    fn from(range: Range<u64>) -> Self {
        Want::Ranges(std::iter::once(range).collect())
    }
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FetchProgress {
    /// Wanted bytes that are here.
    pub done_bytes: u64,
    /// Wanted bytes in all.
    pub total_bytes: u64,
    /// Bytes that came from the source so far, tree nodes included.
    pub fetched_bytes: u64,
    /// Blocks that came from the source so far.
    pub fetched_blocks: u64,
}

/// What a fetch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FetchReport {
    /// Length of the whole file.
    pub file_len: u64,
    /// Blocks that came from the source.
    pub blocks_fetched: u64,
    /// Bytes that came from the source, tree nodes included.
    pub bytes_fetched: u64,
    /// Wanted bytes that were here before, or were found in other local content.
    pub bytes_already_here: u64,
}

/// Where blocks come from that are not on this disk: the swarm, a gateway, a test.
///
/// A call is already bounded in time by the implementor, which also chooses among providers.
/// Whatever it returns is verified here; wrong data is refused and asked for again, so an
/// implementor that verifies too can penalise the sender and turn to another.
#[async_trait]
pub trait BlockSource: Send + Sync {
    /// Fetches one block.
    async fn block(&self, cid: &Cid) -> Result<Bytes, BlockSourceError>;
}
