//! How fast a loaded stage reads prompts: a mean over its last chunks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Batches of fewer rows read the weights for too little to say what a row costs.
const ROWS: usize = 16;
/// The newest batch counts for one part of so many.
const PARTS: u64 = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// A batch of so many rows was computed. Called by the stage's one thread.
    pub(super) fn saw(&self, rows: usize, took: Duration) {
        if rows < ROWS {
            return;
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let newest = (nanos / rows as u64).max(1);
        let mean = match self.row_ns() {
            0 => newest,
            before => before / PARTS * (PARTS - 1) + newest / PARTS,
        };
        self.0.store(mean.max(1), Ordering::Relaxed);
    }

    /// Nanoseconds for a row; 0 while that is not known.
    pub(super) fn row_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_chunks_and_follows_the_newest_by_its_part() {
        let pace = Pace::default();
        pace.saw(1, Duration::from_millis(9));
        assert_eq!(pace.row_ns(), 0, "a token says little about a prompt");
        pace.saw(100, Duration::from_micros(400));
        assert_eq!(pace.row_ns(), 4_000);
        pace.saw(100, Duration::from_micros(800));
        assert_eq!(pace.row_ns(), 5_000);
        pace.saw(16, Duration::ZERO);
        assert!(pace.row_ns() > 0);
    }
}
