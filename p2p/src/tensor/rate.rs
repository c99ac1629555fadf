//! How fast large frames come in, over all peers: what a link is worth to whoever plans with it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Smaller payloads say more about latency than about the link.
const LARGE: usize = 64 * 1024;
/// Payloads that are remembered.
const PAYLOADS: usize = 4;

/// See the module. Bytes per second of payloads, the newest last.
#[derive(Default)]
pub(super) struct Rate(Mutex<VecDeque<u64>>);

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
        let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
        payloads.push_back((rate as u64).max(1));
    }

    /// Bytes per second; 0 while no large payload came. The second best of the newest: those that came
    /// while the machine computed seem slower than the link is, and one that waited in a buffer faster.
    pub fn bytes_s(&self) -> u64 {
        let payloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rates: Vec<u64> = payloads.iter().copied().collect();
        rates.sort_unstable_by(|a, b| b.cmp(a));
        let second = rates.get(1).or(rates.first());
        second.copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_payloads_count_and_the_second_best_of_the_newest_is_told() {
        let rate = Rate::default();
        rate.saw(LARGE - 1, Duration::from_secs(1));
        assert_eq!(rate.bytes_s(), 0);
        rate.saw(1 << 20, Duration::from_secs(2));
        assert_eq!(rate.bytes_s(), 1 << 19);
        rate.saw(1 << 20, Duration::from_secs(1));
        rate.saw(1 << 20, Duration::ZERO);
        assert_eq!(rate.bytes_s(), 1 << 20, "one was in a buffer");
        for _ in 0..PAYLOADS - 1 {
            rate.saw(1 << 20, Duration::from_secs(4));
        }
        assert_eq!(rate.bytes_s(), 1 << 18, "the link is slow now");
    }
}
