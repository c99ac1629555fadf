//! What can go wrong, as types.

use std::io;
use std::path::PathBuf;

use cid::Cid;
use thiserror::Error;

/// Result of a storage operation.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// Why a storage operation failed.
#[derive(Debug, Error)]
pub enum StorageError {
    /// Another node already runs on this data directory.
    #[error(
        "the data directory {} is in use by {}; stop that node or choose another directory with --data",
        path.display(),
        holder(*pid)
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process that holds it, where that could be read.
        pid: Option<u32>,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The metadata database failed.
    #[error(
        "the metadata database failed: {0}; if it persists, move the data directory's db folder away and add the models again"
    )]
    Database(#[from] sled::Error),
    /// A value in the database or a small file is not what this version writes.
    #[error("{what} in the data directory is damaged: {detail}")]
    Damaged {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The data directory was written by another version.
    #[error(
        "the data directory has format {found}, this version reads {known}; use the version of accel that wrote it, or another directory"
    )]
    Format {
        /// The format found.
        found: u32,
        /// The format of this version.
        known: u32,
    },
    /// There is not enough room on the disk.
    #[error("{} has {available} bytes left but {needed} are needed; free some space or remove a model", path.display())]
    NotEnoughSpace {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The name is not one a model or small file may have.
    #[error("{name:?} is not a valid name: {why}")]
    BadName {
        /// The name.
        name: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// The model is not in the catalogue.
    #[error("no model {cid} here; list the models with `accel model ls`")]
    UnknownModel {
        /// The model asked for.
        cid: Cid,
    },
    /// The file to add is not a regular file, or is too large.
    #[error("cannot add {}: {why}", path.display())]
    NotAddable {
        /// The file.
        path: PathBuf,
        /// Why it is refused.
        why: &'static str,
    },
    /// The content under a CID is not a file that can be read.
    #[error("block {cid} is not usable: {source}")]
    Dag {
        /// The block.
        cid: Cid,
        /// What is wrong with it.
        source: DagError,
    },
    /// The network could not provide a block.
    #[error("cannot fetch block {cid}: {source}")]
    Source {
        /// The block.
        cid: Cid,
        /// Why.
        source: BlockSourceError,
    },
    /// What the network provided is not what was asked for, repeatedly.
    #[error(
        "the source sent wrong data for block {cid} {attempts} times; fetch it from other peers"
    )]
    WrongBlock {
        /// The block.
        cid: Cid,
        /// How often it was asked for.
        attempts: u32,
    },
    /// The model was removed while it was being fetched.
    #[error("model {cid} was removed meanwhile")]
    Removed {
        /// The model.
        cid: Cid,
    },
    /// The journal refused an operation.
    #[error("journal of session {}: {source}", hex(session))]
    Journal {
        /// The session.
        session: [u8; 16],
        /// Why.
        source: JournalError,
    },
    /// The operation was cancelled, or the store is shutting down.
    #[error("interrupted: {0}")]
    Interrupted(&'static str),
}

/// Why a block cannot be part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DagError {
    /// The codec of the CID is neither raw nor dag-pb.
    #[error("codec 0x{codec:x} is not part of a UnixFS file")]
    Codec {
        /// The codec.
        codec: u64,
    },
    /// The hash function is not one that can be checked here.
    #[error("hash function 0x{code:x} is not supported; use sha2-256, sha2-512 or blake3")]
    Hash {
        /// The multihash code.
        code: u64,
    },
    /// The bytes are not a UnixFS node.
    #[error("malformed: {0}")]
    Malformed(String),
    /// It is a directory, a symlink or the like.
    #[error("it is a {kind}, not a file; give the CID of the model file itself")]
    NotAFile {
        /// What it is.
        kind: &'static str,
    },
    /// A block is larger than any peer may send.
    #[error("{bytes} bytes are more than the limit of {limit} for a block")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A node has more links than is sensible.
    #[error("{links} links are more than the limit of {limit}")]
    TooManyLinks {
        /// Its links.
        links: usize,
        /// The limit.
        limit: usize,
    },
    /// The tree is deeper than any real file's.
    #[error("the tree is deeper than {limit} levels")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// A node's own length differs from what its parent, or its children, say.
    #[error("it holds {actual} bytes of the file where {claimed} were claimed")]
    SizeMismatch {
        /// The length claimed.
        claimed: u64,
        /// The length found.
        actual: u64,
    },
    /// The file is longer than any model.
    #[error("a file of {bytes} bytes is over the limit of {limit}")]
    FileTooLong {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The blocks hold far more than the file they describe.
    #[error("its tree takes {overhead} bytes beside the content, over the limit of {limit}")]
    Overhead {
        /// Bytes that are not content.
        overhead: u64,
        /// The limit.
        limit: u64,
    },
}

/// Why the journal refused an operation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JournalError {
    /// No opening record.
    #[error("no such session")]
    Unknown,
    /// The session has another opening record already.
    #[error("already opened")]
    AlreadyOpen,
    /// An outcome was written; nothing may follow it.
    #[error("already closed")]
    Closed,
    /// Somebody went on with the session under this number or a higher one.
    #[error("the session was taken over under the number {newest}")]
    Claimed {
        /// The newest number.
        newest: u64,
    },
    /// The index does not follow the last one.
    #[error("record {got} does not follow; {expected} is next")]
    Gap {
        /// The next index.
        expected: u64,
        /// The index given.
        got: u64,
    },
    /// A different record has this index: what was journalled never changes.
    #[error("record {index} exists with different content")]
    Conflict {
        /// The index.
        index: u64,
    },
    /// The record is over the limit.
    #[error("{bytes} bytes are over the limit of {limit} for a record")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The opening record fails its checksum, so the session cannot be restored.
    #[error("the opening record is damaged: {0}")]
    Damaged(String),
    /// The disk is nearly full. Nothing was written, and it can be tried again once there is room.
    #[error("{0}")]
    NoRoom(String),
    /// The journal could not be written, now or earlier.
    #[error("not written: {0}; restart the node, after making room on the disk if it is full")]
    NotWritten(String),
}

/// Why a [`BlockSource`](crate::BlockSource) has no block.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BlockSourceError {
    /// Nobody asked has it.
    #[error("no peer has it; check that a peer with the model is connected (`accel peers`)")]
    NotFound,
    /// Nobody answered in time.
    #[error("no peer answered in time")]
    Timeout,
    /// The source failed otherwise.
    #[error("{0}")]
    Other(String),
}

/// Attaches the action and the path to an [`io::Error`].
pub(crate) fn io_error(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.into();
    move |source| StorageError::Io {
        action,
        path,
        source,
    }
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
