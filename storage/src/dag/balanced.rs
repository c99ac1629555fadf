//! The tree that `ipfs add --cid-version=1` builds: leaves of [`CHUNK`] bytes, nodes of up to
//! [`MAX_WIDTH`] links, every leaf at the same depth.

use bytes::Bytes;
use cid::Cid;
use ipld_dagpb::{PbLink, PbNode};

use super::{DAG_PB, RAW, cid_of, unixfs};

/// Bytes of the file in a leaf.
pub const CHUNK: usize = 262_144;
/// Links in a node.
pub const MAX_WIDTH: usize = 174;

/// A finished subtree.
#[derive(Debug, Clone)]
pub struct Link {
    cid: Cid,
    /// Bytes of the file under it.
    file_len: u64,
    /// Bytes of all its blocks, as dag-pb links record them.
    tree_len: u64,
}

/// The link to a raw leaf.
pub fn leaf_link(chunk: &[u8]) -> Link {
    Link {
        cid: cid_of(RAW, chunk),
        file_len: chunk.len() as u64,
        tree_len: chunk.len() as u64,
    }
}

impl Link {
    /// CID of the subtree's root.
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// Bytes of the file under it.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }
}

/// Builds the tree from its leaves in order, holding only the unfinished right edge.
#[derive(Debug, Default)]
pub struct Balanced {
    // levels[0] are leaves not yet in a node, levels[1] nodes of leaves not yet in a node, ...
    levels: Vec<Vec<Link>>,
}

impl Balanced {
    /// Adds the next leaf; finished nodes go to `emit`.
    pub fn push(&mut self, leaf: Link, emit: &mut dyn FnMut(Cid, Bytes)) {
        self.push_at(0, leaf, emit);
    }

    /// Joins what is left and returns the root; an empty file is one empty leaf.
    pub fn finish(mut self, emit: &mut dyn FnMut(Cid, Bytes)) -> Link {
        let mut level = 0;
        loop {
            let links = self.levels.get_mut(level).map(std::mem::take);
            let links = links.unwrap_or_default();
            let is_top = self.levels.iter().skip(level + 1).all(Vec::is_empty);
            match (links.as_slice(), is_top) {
                ([], true) => return leaf_link(&[]),
                ([root], true) => return root.clone(),
                ([], false) => {}
                _ => self.push_at(level + 1, join(links, emit), emit),
            }
            level += 1;
        }
    }

    fn push_at(&mut self, level: usize, link: Link, emit: &mut dyn FnMut(Cid, Bytes)) {
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Vec::new);
        }
        let links = self.levels.get_mut(level).expect("just made");
        links.push(link);
        if links.len() == MAX_WIDTH {
            let full = std::mem::take(links);
            self.push_at(level + 1, join(full, emit), emit);
        }
    }
}

fn join(links: Vec<Link>, emit: &mut dyn FnMut(Cid, Bytes)) -> Link {
    let sizes: Vec<u64> = links.iter().map(|link| link.file_len).collect();
    let file_len = sizes.iter().sum();
    let children_len: u64 = links.iter().map(|link| link.tree_len).sum();
    let pb_links = links.iter().map(|link| PbLink {
        cid: link.cid,
        // Kubo writes the empty name out.
        name: Some(String::new()),
        size: Some(link.tree_len),
    });
    let node = PbNode {
        links: pb_links.collect(),
        data: Some(unixfs::encode_file(file_len, &sizes).into()),
    };
    let block = Bytes::from(node.into_bytes());
    let cid = cid_of(DAG_PB, &block);
    let tree_len = children_len + block.len() as u64;
    emit(cid, block);
    Link {
        cid,
        file_len,
        tree_len,
    }
}
