//! How fast a loaded stage reads prompts: the best of its last chunks.
//!
//! The best, because what is planned with it runs through one stage of a machine at a time. When a
//! prompt was read, other stages on the same cores may have read it at the same time.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Batches of fewer rows read the weights for too little to say what a row costs.
const ROWS: usize = 16;
/// Batches that are remembered.
const BATCHES: usize = 8;

/// See the module. Nanoseconds a row, the newest last.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<VecDeque<u64>>);

impl Pace {
    /// A batch of so many rows was computed.
    pub(super) fn saw(&self, rows: usize, took: Duration) {
        if rows < ROWS {
            return;
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mut batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if batches.len() == BATCHES {
            batches.pop_front();
        }
        batches.push_back((nanos / rows as u64).max(1));
    }

    /// Nanoseconds for a row; 0 while that is not known.
    pub(super) fn row_ns(&self) -> u64 {
        let batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        batches.iter().min().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_the_best_of_the_newest_chunks() {
        let pace = Pace::default();
        pace.saw(1, Duration::from_nanos(9));
        assert_eq!(pace.row_ns(), 0, "a token says little about a prompt");
        pace.saw(100, Duration::from_micros(400));
        pace.saw(100, Duration::from_micros(800));
        assert_eq!(pace.row_ns(), 4_000);
        for _ in 0..BATCHES {
            pace.saw(100, Duration::from_micros(700));
        }
        assert_eq!(pace.row_ns(), 7_000, "it is slower now");
        pace.saw(16, Duration::ZERO);
        assert_eq!(pace.row_ns(), 1);
    }
}
