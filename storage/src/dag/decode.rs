//! What a block means within a file.

use std::ops::Range;

use bytes::Bytes;
use cid::Cid;
use ipld_dagpb::PbNode;
use quick_protobuf::BytesReader;

use super::unixfs::UnixFs;
use super::{DAG_PB, MAX_BLOCK, MAX_FILE, MAX_LINKS, RAW};
use crate::error::DagError;

const TAG_PB_LINK: u32 = 0x12;

/// A block as part of a file: its own bytes of the file come first, then those of its children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNode {
    /// Bytes of the file under this node.
    pub len: u64,
    /// Where within the block its own bytes of the file lie.
    pub data: Range<usize>,
    /// The parts of the file that follow, in order.
    pub children: Vec<Child>,
}

/// A link to a part of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// The block.
    pub cid: Cid,
    /// Bytes of the file under it, as the parent says.
    pub len: u64,
}

/// Reads a block whose hash was checked. Sizes are checked against each other, not yet against
/// what the parent said.
pub fn decode(cid: &Cid, block: &Bytes) -> Result<FileNode, DagError> {
    if block.len() > MAX_BLOCK {
        return Err(DagError::TooLarge {
            bytes: block.len(),
            limit: MAX_BLOCK,
        });
    }
    match cid.codec() {
        RAW => Ok(FileNode {
            len: block.len() as u64,
            data: 0..block.len(),
            children: Vec::new(),
        }),
        DAG_PB => decode_node(block),
        codec => Err(DagError::Codec { codec }),
    }
}

fn decode_node(block: &Bytes) -> Result<FileNode, DagError> {
    let links = count_links(block)?;
    if links > MAX_LINKS {
        return Err(DagError::TooManyLinks {
            links,
            limit: MAX_LINKS,
        });
    }
    let node = PbNode::from_bytes(block.clone())
        .map_err(|e| DagError::Malformed(format!("dag-pb: {e}")))?;
    let Some(message) = &node.data else {
        return Err(DagError::Malformed("no UnixFS data".to_owned()));
    };
    let unixfs = UnixFs::decode(message)?;
    if unixfs.blocksizes.len() != node.links.len() {
        return Err(DagError::Malformed(format!(
            "{} sizes for {} links",
            unixfs.blocksizes.len(),
            node.links.len()
        )));
    }
    let len = total_len(&unixfs)?;
    let data = position(block, unixfs.data);
    let sizes = unixfs.blocksizes.iter();
    let children = node
        .links
        .iter()
        .zip(sizes)
        .map(|(link, &len)| Child { cid: link.cid, len });
    Ok(FileNode {
        len,
        data,
        children: children.collect(),
    })
}

/// Counts links without building them: a block of links of a few bytes each would take many times
/// its size in memory.
fn count_links(block: &[u8]) -> Result<usize, DagError> {
    let malformed = |e: quick_protobuf::Error| DagError::Malformed(format!("dag-pb: {e}"));
    let mut reader = BytesReader::from_bytes(block);
    let mut links = 0;
    while !reader.is_eof() {
        let tag = reader.next_tag(block).map_err(malformed)?;
        links += usize::from(tag == TAG_PB_LINK);
        reader.read_unknown(block, tag).map_err(malformed)?;
    }
    Ok(links)
}

fn total_len(unixfs: &UnixFs<'_>) -> Result<u64, DagError> {
    let own = unixfs.data.len() as u64;
    let mut len = own;
    for size in &unixfs.blocksizes {
        len = len.saturating_add(*size);
        if len > MAX_FILE {
            return Err(DagError::FileTooLong {
                bytes: len,
                limit: MAX_FILE,
            });
        }
    }
    match unixfs.filesize {
        Some(claimed) if claimed != len => Err(DagError::SizeMismatch {
            claimed,
            actual: len,
        }),
        _ => Ok(len),
    }
}

/// Where a slice of the block lies within it.
fn position(block: &Bytes, part: &[u8]) -> Range<usize> {
    if part.is_empty() {
        return 0..0;
    }
    let start = part.as_ptr().addr() - block.as_ptr().addr();
    start..start + part.len()
}

#[cfg(test)]
mod tests {
    use ipld_dagpb::PbLink;
    use proptest::prelude::*;

    use super::super::cid_of;
    use super::*;

    fn node(links: Vec<PbLink>, data: Vec<u8>) -> (Cid, Bytes) {
        let data = Some(Bytes::from(data));
        let block = Bytes::from(PbNode { links, data }.into_bytes());
        (cid_of(DAG_PB, &block), block)
    }

    fn link() -> PbLink {
        PbLink {
            cid: cid_of(RAW, b"x"),
            name: Some(String::new()),
            size: Some(1),
        }
    }

    fn refusal(links: Vec<PbLink>, data: Vec<u8>) -> DagError {
        let (cid, block) = node(links, data);
        decode(&cid, &block).unwrap_err()
    }

    #[test]
    fn a_leaf_in_dag_pb_tells_where_its_bytes_are() {
        // type File, data "hello", filesize 5
        let data = b"\x08\x02\x12\x05hello\x18\x05".to_vec();
        let (cid, block) = node(Vec::new(), data);
        let leaf = decode(&cid, &block).unwrap();
        assert_eq!(leaf.len, 5);
        assert_eq!(&block[leaf.data], b"hello");
    }

    #[test]
    fn packed_sizes_are_read_too() {
        let (cid, block) = node(
            vec![link(), link()],
            b"\x08\x02\x18\x03\x22\x02\x01\x02".to_vec(),
        );
        let lens: Vec<_> = decode(&cid, &block).unwrap().children;
        assert_eq!(lens.iter().map(|c| c.len).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn sizes_that_contradict_each_other_are_refused() {
        let lie = refusal(vec![link()], b"\x08\x02\x18\x09\x20\x01".to_vec());
        let expected = DagError::SizeMismatch {
            claimed: 9,
            actual: 1,
        };
        assert_eq!(lie, expected);
        let without_size = refusal(vec![link()], b"\x08\x02".to_vec());
        assert!(matches!(without_size, DagError::Malformed(_)));
        let mut huge = b"\x08\x02".to_vec();
        for _ in 0..2 {
            huge.extend(b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        }
        let overflow = refusal(vec![link(), link()], huge);
        assert!(matches!(overflow, DagError::FileTooLong { .. }));
    }

    #[test]
    fn what_is_not_a_file_is_named() {
        let refused = refusal(Vec::new(), b"\x08\x01".to_vec());
        assert_eq!(refused, DagError::NotAFile { kind: "directory" });
    }

    #[test]
    fn a_huge_fanout_is_refused_before_it_takes_memory() {
        let block = Bytes::from(b"\x12\x00".repeat(MAX_LINKS + 1));
        let refused = decode(&cid_of(DAG_PB, &block), &block).unwrap_err();
        assert!(matches!(refused, DagError::TooManyLinks { .. }));
        let block = Bytes::from(vec![0; MAX_BLOCK + 1]);
        let refused = decode(&cid_of(RAW, &block), &block).unwrap_err();
        assert!(matches!(refused, DagError::TooLarge { .. }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let block = Bytes::from(bytes);
            let _ = decode(&cid_of(DAG_PB, &block), &block);
        }

        #[test]
        fn no_change_to_a_node_makes_it_panic(at in 0usize..64, value: u8, cut in 0usize..80) {
            let (_, block) = node(vec![link()], b"\x08\x02\x12\x02hi\x18\x03\x20\x01".to_vec());
            let mut bytes = block.to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(cut);
            let block = Bytes::from(bytes);
            let _ = decode(&cid_of(DAG_PB, &block), &block);
        }
    }
}
