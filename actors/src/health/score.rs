//! How well a peer does its part, from 0 to 100. Pure.
//!
//! | Taken off | At most | For |
//! |---|---|---|
//! | error rate | 40 | the share of the last requests, some twenty, that failed |
//! | failures in a row | 20 | 5 each |
//! | drops | 20 | 5 for each connection that was lost without a goodbye in the last ten minutes |
//! | latency | 10 | steps that took more than twice what was predicted; all of it from twenty times on |
//! | ping | 10 | answers to small requests later than 50 ms; all of it from 2 s on |

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The weight of the newest of the requests.
const NEWEST: f64 = 0.1;
/// For how long a lost connection counts.
const MEMORY: Duration = Duration::from_secs(600);
/// Lost connections that are remembered.
const MOST_DROPS: usize = 8;

/// What is known of a peer.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    /// Share of failures, the newest counting most.
    error_rate: f64,
    in_a_row: u32,
    drops: VecDeque<Instant>,
    /// What steps took, as a multiple of what was predicted.
    slowness: Option<f64>,
    ping: Option<Duration>,
}

/// Moves an average towards its newest value.
fn moved(average: f64, newest: f64) -> f64 {
    average + NEWEST * (newest - average)
}

/// Where `value` lies between `good` and `bad` on a logarithmic scale: 0 to 1.
fn badness(value: f64, good: f64, bad: f64) -> f64 {
    let share = (value.max(good) / good).ln() / (bad / good).ln();
    share.clamp(0.0, 1.0)
}

impl Record {
    pub(super) fn succeeded(&mut self, slowness: Option<f64>) {
        self.error_rate = moved(self.error_rate, 0.0);
        self.in_a_row = 0;
        if let Some(newest) = slowness.filter(|slowness| slowness.is_finite()) {
            self.slowness = Some(self.slowness.map_or(newest, |before| moved(before, newest)));
        }
    }

    pub(super) fn failed(&mut self) {
        self.error_rate = moved(self.error_rate, 1.0);
        self.in_a_row = self.in_a_row.saturating_add(1);
    }

    pub(super) fn dropped(&mut self, now: Instant) {
        if self.drops.len() >= MOST_DROPS {
            self.drops.pop_front();
        }
        self.drops.push_back(now);
    }

    pub(super) fn answered(&mut self, after: Duration) {
        let before = self.ping.unwrap_or(after).as_secs_f64();
        let ping = moved(before, after.as_secs_f64());
        self.ping = Duration::try_from_secs_f64(ping).ok();
    }

    /// How long small requests take, if any was made.
    pub(super) fn ping(&self) -> Option<Duration> {
        self.ping
    }

    /// See the module.
    pub(super) fn score(&self, now: Instant) -> u8 {
        let is_recent = |at: &&Instant| now.saturating_duration_since(**at) < MEMORY;
        let drops = self.drops.iter().filter(is_recent).count();
        let slowness = self.slowness.map_or(0.0, |times| badness(times, 2.0, 20.0));
        let ping = self
            .ping
            .map_or(0.0, |ping| badness(ping.as_secs_f64(), 0.05, 2.0));
        let taken_off = 40.0 * self.error_rate
            + (5.0 * f64::from(self.in_a_row)).min(20.0)
            + (5.0 * drops as f64).min(20.0)
            + 10.0 * slowness
            + 10.0 * ping;
        (100.0 - taken_off).round().clamp(0.0, 100.0) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_never_failed_is_perfectly_well() {
        let now = Instant::now();
        let mut record = Record::default();
        assert_eq!(record.score(now), 100);
        for _ in 0..50 {
            record.succeeded(Some(1.5));
            record.answered(Duration::from_millis(40));
        }
        assert_eq!(record.score(now), 100);
    }

    #[test]
    fn each_kind_of_trouble_takes_off_at_most_its_part() {
        let now = Instant::now();
        let mut failing = Record::default();
        for _ in 0..200 {
            failing.failed();
        }
        assert_eq!(failing.score(now), 40);
        let mut dropping = Record::default();
        for _ in 0..20 {
            dropping.dropped(now);
        }
        assert_eq!(dropping.score(now), 80);
        assert_eq!(dropping.score(now + MEMORY), 100);
        let mut slow = Record::default();
        slow.succeeded(Some(1e6));
        assert_eq!(slow.score(now), 90);
        slow.answered(Duration::from_secs(60));
        assert_eq!(slow.score(now), 80);
    }

    #[test]
    fn successes_heal_what_failures_took() {
        let now = Instant::now();
        let mut record = Record::default();
        for _ in 0..5 {
            record.failed();
        }
        let ill = record.score(now);
        record.succeeded(None);
        let better = record.score(now);
        for _ in 0..60 {
            record.succeeded(None);
        }
        assert!(ill < better && better < record.score(now));
        assert_eq!(record.score(now), 100);
    }

    #[test]
    fn numbers_that_are_none_change_nothing() {
        let mut record = Record::default();
        for odd in [f64::NAN, f64::INFINITY] {
            record.succeeded(Some(odd));
        }
        assert_eq!(record.score(Instant::now()), 100);
    }
}
