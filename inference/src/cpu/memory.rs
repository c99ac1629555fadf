//! Memory for weights: few large pieces, on huge pages where the system gives them.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// Size of a huge page on the systems that matter, and alignment of a piece.
const HUGE_PAGE: usize = 2 << 20;
/// Alignment of what is taken from the piece: a cache line.
const LINE: usize = 64;

/// Size of a piece; a larger part gets a piece of its own.
const PIECE: usize = 32 << 20;

/// Memory from which parts are taken; they live as long as the arena. Pages are taken from the
/// system when they are first written, so what is left of a piece costs nothing.
#[derive(Default)]
pub(crate) struct Arena {
    pieces: Mutex<Vec<Piece>>,
}

struct Piece {
    start: NonNull<u8>,
    layout: Layout,
    used: usize,
}

// SAFETY: a piece is plain memory that belongs to the arena; parts of it are written only by who
// took them.
unsafe impl Send for Piece {}

impl Arena {
    /// A part of `bytes` at a cache line, or `None` when there is no memory. Its content is not
    /// initialised.
    pub(crate) fn take(&self, bytes: usize) -> Option<NonNull<u8>> {
        let bytes = bytes.max(1).checked_next_multiple_of(LINE)?;
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if pieces.last().is_none_or(|piece| piece.left() < bytes) {
            pieces.push(Piece::new(bytes)?);
        }
        let piece = pieces.last_mut()?;
        // SAFETY: as many bytes are left in the piece.
        let part = unsafe { piece.start.add(piece.used) };
        piece.used += bytes;
        Some(part)
    }
}

impl Piece {
    fn new(bytes: usize) -> Option<Self> {
        let size = bytes.max(PIECE).checked_next_multiple_of(HUGE_PAGE)?;
        let layout = Layout::from_size_align(size, HUGE_PAGE).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        ask_for_huge_pages(start, size);
        let used = 0;
        Some(Self {
            start,
            layout,
            used,
        })
    }

    fn left(&self) -> usize {
        self.layout.size() - self.used
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(start: NonNull<u8>, size: usize) {
    use rustix::mm::{Advice, madvise};
    // SAFETY: advice about pages that this process owns; it does not change their content.
    let advised = unsafe { madvise(start.as_ptr().cast(), size, Advice::LinuxHugepage) };
    if let Err(error) = advised {
        tracing::debug!(%error, "no huge pages for the weights; small ones are slower");
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: NonNull<u8>, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_aligned_and_large_ones_fit() {
        let arena = Arena::default();
        let first = arena.take(1).unwrap();
        let second = arena.take(LINE + 1).unwrap();
        assert_eq!(second.as_ptr() as usize - first.as_ptr() as usize, LINE);
        assert!(first.as_ptr().addr().is_multiple_of(LINE));
        assert!(arena.take(PIECE + 1).is_some());
        assert!(arena.take(usize::MAX).is_none());
    }
}
