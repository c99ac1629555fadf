//! Trees as others build them: other chunk sizes, widths, CID versions and layouts.

use accel_storage::dag::{DAG_PB, RAW, cid_of};
use bytes::Bytes;
use cid::Cid;
use ipld_dagpb::{PbLink, PbNode};
use multihash::Multihash;

/// A tree under construction.
#[derive(Default)]
pub struct Blocks(pub Vec<(Cid, Bytes)>);

/// A part of a file: its root, its length, and the size of its blocks.
#[derive(Clone, Copy)]
pub struct Part {
    pub cid: Cid,
    pub len: u64,
    pub tree: u64,
}

/// How a tree is built.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub chunk: usize,
    pub width: usize,
    pub raw_leaves: bool,
    pub version_0: bool,
}

/// The form of `ipfs add` without options.
pub const KUBO_V0: Form = Form {
    chunk: 262_144,
    width: 174,
    raw_leaves: false,
    version_0: true,
};

impl Blocks {
    /// A balanced tree over the content.
    pub fn balanced(&mut self, content: &[u8], form: Form) -> Part {
        let mut parts: Vec<Part> = match content {
            [] => vec![self.leaf(&[], form)],
            _ => {
                let chunks = content.chunks(form.chunk);
                chunks.map(|chunk| self.leaf(chunk, form)).collect()
            }
        };
        while parts.len() > 1 {
            let groups = parts.chunks(form.width);
            parts = groups.map(|group| self.node(&[], group, form)).collect();
        }
        parts[0]
    }

    /// A tree in which every node carries content of its own before its children.
    pub fn trickle(&mut self, content: &[u8], form: Form) -> Part {
        let (own, mut rest) = content.split_at(content.len().min(form.chunk));
        let mut children = Vec::new();
        while !rest.is_empty() {
            // Each next child is twice as large, and none so small that the tree becomes a chain.
            let share = rest.len() / form.width;
            let size = (form.chunk << children.len().min(8))
                .max(share)
                .min(rest.len());
            let size = if children.len() + 1 == form.width {
                rest.len()
            } else {
                size
            };
            let (part, after) = rest.split_at(size);
            children.push(if size > form.chunk {
                self.trickle(part, form)
            } else {
                self.leaf(part, form)
            });
            rest = after;
        }
        self.node(own, &children, form)
    }

    pub fn leaf(&mut self, chunk: &[u8], form: Form) -> Part {
        if form.raw_leaves {
            return self.raw(chunk);
        }
        self.node(chunk, &[], form)
    }

    pub fn raw(&mut self, chunk: &[u8]) -> Part {
        let cid = cid_of(RAW, chunk);
        self.0.push((cid, Bytes::copy_from_slice(chunk)));
        Part {
            cid,
            len: chunk.len() as u64,
            tree: chunk.len() as u64,
        }
    }

    pub fn node(&mut self, own: &[u8], children: &[Part], form: Form) -> Part {
        let sizes: Vec<u64> = children.iter().map(|child| child.len).collect();
        let len = own.len() as u64 + sizes.iter().sum::<u64>();
        self.claiming(own, children, &sizes, len, form)
    }

    /// A node that may say anything about sizes.
    pub fn claiming(
        &mut self,
        own: &[u8],
        children: &[Part],
        sizes: &[u64],
        len: u64,
        form: Form,
    ) -> Part {
        let links = children.iter().map(|child| PbLink {
            cid: child.cid,
            name: Some(String::new()),
            size: Some(child.tree),
        });
        let data = Some(unixfs(2, own, len, sizes).into());
        let links = links.collect();
        let block = Bytes::from(PbNode { links, data }.into_bytes());
        let v1 = cid_of(DAG_PB, &block);
        let cid = match form.version_0 {
            true => Cid::new_v0(*v1.hash()).unwrap(),
            false => v1,
        };
        let own = block.len() as u64;
        // Saturates, because hostile trees are larger than any number.
        let sizes = children.iter().map(|child| child.tree);
        let tree = sizes.fold(own, u64::saturating_add);
        self.0.push((cid, block));
        Part { cid, len, tree }
    }
}

/// Content that is its own CID.
pub fn inline(content: &[u8]) -> Part {
    let hash = Multihash::wrap(0, content).unwrap();
    Part {
        cid: Cid::new_v1(RAW, hash),
        len: content.len() as u64,
        tree: content.len() as u64,
    }
}

/// A UnixFS message, written by hand.
pub fn unixfs(kind: u8, data: &[u8], filesize: u64, blocksizes: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0x08, kind];
    if !data.is_empty() {
        bytes.push(0x12);
        varint(&mut bytes, data.len() as u64);
        bytes.extend_from_slice(data);
    }
    bytes.push(0x18);
    varint(&mut bytes, filesize);
    for size in blocksizes {
        bytes.push(0x20);
        varint(&mut bytes, *size);
    }
    bytes
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
