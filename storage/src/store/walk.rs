//! The order in which a tree is visited: depth first, and only where wanted bytes are missing.
//! Pure.
//!
//! Every node visited covers at least one wanted byte, so a tree of empty or shared nodes, however
//! many, is not walked; a tree cannot loop, because a block cannot contain its own hash, and depth
//! is bounded all the same.

use std::ops::Range;

use cid::Cid;

use crate::dag::{Child, FileNode, MAX_DEPTH, check_cid};
use crate::error::DagError;
use crate::ranges::RangeSet;

/// Above this many waiting links only one node is expanded at a time, so that what waits is bounded
/// by depth and width, and not by how many nodes are under way.
const MANY: usize = 16 * 1024;

/// A part of the file to visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub cid: Cid,
    /// Where in the file it begins.
    pub offset: u64,
    /// How long it is, as its parent says.
    pub len: u64,
    depth: usize,
}

impl Item {
    pub(super) fn root(cid: Cid, len: u64) -> Self {
        Self {
            cid,
            offset: 0,
            len,
            depth: 0,
        }
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.len)
    }
}

/// What is still to be visited.
#[derive(Debug)]
pub(super) struct Walk {
    wanted: RangeSet,
    // The next item is last.
    waiting: Vec<Item>,
}

impl Walk {
    pub(super) fn new(wanted: RangeSet, root: Item) -> Self {
        Self {
            wanted,
            waiting: vec![root],
        }
    }

    /// Whether more may be started with this many under way.
    pub(super) fn has_room(&self, under_way: usize, limit: usize) -> bool {
        let limit = if self.waiting.len() > MANY { 1 } else { limit };
        under_way < limit
    }

    /// The next part with wanted bytes that are not present.
    pub(super) fn next(&mut self, present: &RangeSet) -> Option<Item> {
        while let Some(item) = self.waiting.pop() {
            if self.wanted.any_missing_from(present, &item.range()) {
                return Some(item);
            }
        }
        None
    }

    /// Checks a visited node against its parent's word and enters its children.
    pub(super) fn expand(&mut self, item: &Item, node: FileNode) -> Result<(), DagError> {
        check_len(item, &node)?;
        if !node.children.is_empty() && item.depth >= MAX_DEPTH {
            return Err(DagError::TooDeep { limit: MAX_DEPTH });
        }
        let first = self.waiting.len();
        let mut offset = item.offset + node.data.len() as u64;
        for Child { cid, len } in node.children {
            let child = Item {
                cid,
                offset,
                len,
                depth: item.depth + 1,
            };
            offset += len;
            if self.wanted.overlap(&child.range()) > 0 {
                check_cid(&child.cid)?;
                self.waiting.push(child);
            }
        }
        if let Some(children) = self.waiting.get_mut(first..) {
            children.reverse();
        }
        Ok(())
    }

    /// Wanted bytes within a part of the file.
    pub(super) fn wanted_within(&self, range: &Range<u64>) -> u64 {
        self.wanted.overlap(range)
    }
}

/// A node that is longer or shorter than its parent said would shift everything after it.
pub(super) fn check_len(item: &Item, node: &FileNode) -> Result<(), DagError> {
    if node.len != item.len {
        return Err(DagError::SizeMismatch {
            claimed: item.len,
            actual: node.len,
        });
    }
    Ok(())
}
