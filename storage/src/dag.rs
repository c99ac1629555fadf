//! The UnixFS tree of a file, as pure functions over blocks: what a block means, how a tree is
//! built, whether a block is what its CID says.
//!
//! Reading accepts whatever a stranger may have added with any tool: CID version 0 and 1, raw or
//! dag-pb leaves, any chunk size and any layout, content beside links. Building makes one form only,
//! that of `ipfs add --cid-version=1`.

mod balanced;
mod decode;
mod unixfs;

use bytes::Bytes;
use cid::Cid;
use multihash::Multihash;
use multihash_codetable::{Code, MultihashDigest};

pub use balanced::{Balanced, CHUNK, Link, MAX_WIDTH, leaf_link};
pub use decode::{Child, FileNode, decode};

use crate::error::DagError;

/// Codec of a block that is bytes of a file and nothing else.
pub const RAW: u64 = 0x55;
/// Codec of a UnixFS node.
pub const DAG_PB: u64 = 0x70;
/// The "hash" that holds the content itself.
pub const IDENTITY: u64 = 0x00;

/// The largest block that IPFS peers exchange.
pub const MAX_BLOCK: usize = 2 << 20;
/// More links than any tool puts into a node of a file (Kubo: 174, or 1024 in newer profiles).
pub const MAX_LINKS: usize = 4096;
/// Deeper than any file within [`MAX_FILE`] needs, chains of single links aside.
pub const MAX_DEPTH: usize = 32;
/// Longer than any model: 16 TiB.
pub const MAX_FILE: u64 = 16 << 40;

/// Whether the bytes hash to the CID.
pub fn matches(cid: &Cid, bytes: &[u8]) -> Result<bool, DagError> {
    if cid.hash().code() == IDENTITY {
        return Ok(cid.hash().digest() == bytes);
    }
    let code = hash_code(cid)?;
    Ok(code.digest(bytes).digest() == cid.hash().digest())
}

/// Refuses, before anything is asked for, a CID whose block could not be checked or used.
pub fn check_cid(cid: &Cid) -> Result<(), DagError> {
    if !matches!(cid.codec(), RAW | DAG_PB) {
        return Err(DagError::Codec { codec: cid.codec() });
    }
    if cid.hash().code() != IDENTITY {
        hash_code(cid)?;
    }
    Ok(())
}

/// The content of a CID that carries it within itself.
pub fn inline(cid: &Cid) -> Option<Bytes> {
    let hash = cid.hash();
    (hash.code() == IDENTITY).then(|| Bytes::copy_from_slice(hash.digest()))
}

/// CID of a block in the form of `ipfs add --cid-version=1`.
pub fn cid_of(codec: u64, block: &[u8]) -> Cid {
    Cid::new_v1(codec, sha2_256(block))
}

fn sha2_256(block: &[u8]) -> Multihash<64> {
    Code::Sha2_256.digest(block)
}

// A truncated digest never equals a whole one, so only the functions themselves are listed.
fn hash_code(cid: &Cid) -> Result<Code, DagError> {
    let code = cid.hash().code();
    match Code::try_from(code) {
        Ok(known @ (Code::Sha2_256 | Code::Sha2_512 | Code::Blake3_256)) => Ok(known),
        _ => Err(DagError::Hash { code }),
    }
}
