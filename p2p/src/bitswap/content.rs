//! From bytes to CID: a block is what its hash says, whoever sent it.

use bytes::Bytes;
use cid::{Cid, Version};
use multihash_codetable::{Code, MultihashDigest};

use super::message::{Block, put_varint};

/// The CID that the block's prefix and bytes amount to; `None` for an unknown hash function or a
/// prefix that makes no sense.
pub(crate) fn cid_of(block: &Block) -> Option<Cid> {
    let mut rest = block.prefix.as_ref();
    let version = take_varint(&mut rest)?;
    let codec = take_varint(&mut rest)?;
    let hash = take_varint(&mut rest)?;
    let hash_len = take_varint(&mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    let digest = Code::try_from(hash).ok()?.digest(&block.data);
    if u64::from(digest.size()) != hash_len {
        return None;
    }
    match version {
        0 => Cid::new_v0(digest).ok(),
        1 => Some(Cid::new_v1(codec, digest)),
        _ => None,
    }
}

/// What is sent in place of a CID.
pub(crate) fn prefix_of(cid: &Cid) -> Bytes {
    let version = match cid.version() {
        Version::V0 => 0,
        Version::V1 => 1,
    };
    let mut prefix = Vec::with_capacity(8);
    put_varint(&mut prefix, version);
    put_varint(&mut prefix, cid.codec());
    put_varint(&mut prefix, cid.hash().code());
    put_varint(&mut prefix, u64::from(cid.hash().size()));
    prefix.into()
}

/// CIDv1 of raw bytes under sha2-256.
#[cfg(test)]
pub(crate) fn raw_cid(data: &[u8]) -> Cid {
    const RAW: u64 = 0x55;
    Cid::new_v1(RAW, Code::Sha2_256.digest(data))
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(prefix: Bytes, data: &'static [u8]) -> Block {
        Block {
            prefix,
            data: Bytes::from_static(data),
        }
    }

    #[test]
    fn the_cid_is_computed_from_prefix_and_bytes() {
        let cid = raw_cid(b"hello");
        assert_eq!(cid_of(&block(prefix_of(&cid), b"hello")), Some(cid));
        assert_ne!(cid_of(&block(prefix_of(&cid), b"hellO")), Some(cid));

        let v0 = Cid::new_v0(Code::Sha2_256.digest(b"hello")).unwrap();
        assert_eq!(cid_of(&block(prefix_of(&v0), b"hello")), Some(v0));
    }

    #[test]
    fn a_senseless_prefix_gives_no_cid() {
        let cases: [&'static [u8]; 6] = [
            b"",
            &[1, 0x55, 0x12],
            &[1, 0x55, 0x12, 31],
            &[2, 0x55, 0x12, 32],
            &[1, 0x55, 0x12, 32, 0],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80],
        ];
        for prefix in cases {
            assert_eq!(
                cid_of(&block(Bytes::from_static(prefix), b"hello")),
                None,
                "{prefix:?}"
            );
        }
    }
}
