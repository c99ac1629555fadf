//! How fast large frames come in, over all peers: what a link is worth to whoever plans with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Smaller payloads say more about latency than about the link.
const LARGE: usize = 64 * 1024;
/// The newest payload counts for one part of so many.
const PARTS: u64 = 4;

/// See the module.
#[derive(Default)]
pub(super) struct Rate(AtomicU64);

impl Rate {
    /// A payload came in within a time, from its first byte on.
    pub fn saw(&self, bytes: usize, took: Duration) {
        if bytes < LARGE {
            return;
        }
        let newest = bytes as f64 / took.as_secs_f64().max(1e-6);
        let newest = (newest as u64).max(1);
        let before = self.bytes_s();
        let rate = match before {
            0 => newest,
            before => before / PARTS * (PARTS - 1) + newest / PARTS,
        };
        // Two readers at once may lose one payload's part of the mean.
        self.0.store(rate, Ordering::Relaxed);
    }

    /// Bytes per second; 0 while no large payload came.
    pub fn bytes_s(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_payloads_count_and_the_newest_moves_the_mean_by_its_part() {
        let rate = Rate::default();
        rate.saw(LARGE - 1, Duration::from_secs(1));
        assert_eq!(rate.bytes_s(), 0);
        rate.saw(1 << 20, Duration::from_secs(1));
        assert_eq!(rate.bytes_s(), 1 << 20);
        rate.saw(5 << 20, Duration::from_secs(1));
        assert_eq!(rate.bytes_s(), 2 << 20);
    }
}
