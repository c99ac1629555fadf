//! How fast large frames come in, over all peers: what a link is worth to whoever plans with it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Smaller payloads say more about latency than about the link.
const LARGE: usize = 64 * 1024;
/// Payloads that are remembered. What all of them took counts, so that one that waited in a buffer and
/// seems to have come at once does not hide a slow link.
const PAYLOADS: usize = 4;

/// See the module. The newest payload is the last.
#[derive(Default)]
pub(super) struct Rate(Mutex<VecDeque<(usize, Duration)>>);

impl Rate {
    /// A payload came in within a time, from its first byte on.
    pub fn saw(&self, bytes: usize, took: Duration) {
        if bytes < LARGE {
            return;
        }
        let mut payloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if payloads.len() == PAYLOADS {
            payloads.pop_front();
        }
        payloads.push_back((bytes, took));
    }

    /// Bytes per second; 0 while no large payload came.
    pub fn bytes_s(&self) -> u64 {
        let payloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = payloads.iter().map(|(bytes, _)| bytes).sum();
        let took: Duration = payloads.iter().map(|(_, took)| took).sum();
        match bytes {
            0 => 0,
            bytes => ((bytes as f64 / took.as_secs_f64().max(1e-6)) as u64).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_payloads_count_and_the_newest_together() {
        let rate = Rate::default();
        rate.saw(LARGE - 1, Duration::from_secs(1));
        assert_eq!(rate.bytes_s(), 0);
        rate.saw(1 << 20, Duration::ZERO);
        assert!(rate.bytes_s() > 1 << 30, "it was in a buffer");
        rate.saw(1 << 20, Duration::from_secs(1));
        assert_eq!(rate.bytes_s(), 2 << 20);
        for _ in 0..PAYLOADS {
            rate.saw(1 << 20, Duration::from_secs(4));
        }
        assert_eq!(rate.bytes_s(), 1 << 18);
    }
}
