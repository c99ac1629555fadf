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
pub(crate) struct Arena {
    pieces: Mutex<Vec<Piece>>,
    least: usize,
}

impl Default for Arena {
    fn default() -> Self {
        Self::of_pieces(PIECE)
    }
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
    /// For a part that is soon given back: a huge page would be filled with zeros for it.
    pub(crate) fn for_one_part() -> Self {
        Self::of_pieces(LINE)
    }

    fn of_pieces(least: usize) -> Self {
        let pieces = Mutex::default();
        Self { pieces, least }
    }

    /// A part of `bytes` at a cache line, or `None` when there is no memory. Its content is not
    /// initialised.
    pub(crate) fn take(&self, bytes: usize) -> Option<NonNull<u8>> {
        let bytes = bytes.max(1).checked_next_multiple_of(LINE)?;
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        // What large parts left of earlier pieces is for small ones.
        let fits = |piece: &Piece| piece.left() >= bytes;
        let place = match pieces.iter().position(fits) {
            Some(place) => place,
            None => {
                pieces.push(Piece::new(bytes.max(self.least))?);
                pieces.len() - 1
            }
        };
        let piece = pieces.get_mut(place)?;
        // SAFETY: as many bytes are left in the piece.
        let part = unsafe { piece.start.add(piece.used) };
        piece.used += bytes;
        Some(part)
    }

    /// Gives back to the system what was touched only because huge pages are whole.
    pub(crate) fn trim(&self) {
        let pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.iter().for_each(Piece::trim);
    }
}

impl Piece {
    fn new(bytes: usize) -> Option<Self> {
        let align = if bytes < HUGE_PAGE { LINE } else { HUGE_PAGE };
        let size = bytes.checked_next_multiple_of(align)?;
        let layout = Layout::from_size_align(size, align).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        if align == HUGE_PAGE {
            ask_for_huge_pages(start, size);
        }
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

    #[cfg(target_os = "linux")]
    fn trim(&self) {
        use rustix::mm::{Advice, madvise};
        let kept = self.used.next_multiple_of(rustix::param::page_size());
        let rest = self.layout.size().saturating_sub(kept);
        // Small pieces share their pages with others.
        if rest == 0 || self.layout.align() < HUGE_PAGE {
            return;
        }
        // SAFETY: the pages are whole ones of this piece, of which nobody has a part from `kept`
        // on; the content of what is taken there later is not initialised, as it was not before.
        let advised = unsafe {
            let start = self.start.add(kept).as_ptr().cast();
            madvise(start, rest, Advice::LinuxDontNeed)
        };
        if let Err(error) = advised {
            tracing::debug!(%error, "the rest of the last huge page is kept");
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn trim(&self) {}
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
    fn parts_are_disjoint_and_aligned_large_ones_fit_and_trimming_keeps_them() {
        let arena = Arena::default();
        let first = arena.take(1).unwrap();
        let second = arena.take(LINE + 1).unwrap();
        assert_eq!(second.as_ptr() as usize - first.as_ptr() as usize, LINE);
        assert!(first.as_ptr().addr().is_multiple_of(LINE));
        assert!(arena.take(PIECE + 1).is_some());
        let third = arena.take(1).unwrap();
        assert_eq!(third.as_ptr() as usize - second.as_ptr() as usize, 2 * LINE);
        assert!(arena.take(usize::MAX).is_none());

        // SAFETY: both parts have a byte, and nobody else uses them.
        unsafe {
            first.write(7);
            arena.trim();
            let later = arena.take(HUGE_PAGE).unwrap();
            later.write(9);
            assert_eq!((first.read(), later.read()), (7, 9));
        }

        let one = Arena::for_one_part();
        assert!(one.take(1).unwrap().as_ptr().addr().is_multiple_of(LINE));
        assert!(one.take(HUGE_PAGE).is_some());
    }
}
