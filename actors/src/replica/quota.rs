//! How much each peer may have kept here: bytes, as water in a leaking bucket. What a session in
//! good order needs is far below it; it bounds what a hostile peer can fill a disk with.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use accel_p2p::PeerId;

/// Bytes that a peer may write at once.
const BUCKET: f64 = (64 << 20) as f64;
/// Bytes per second that it may write on and on.
const LEAK: f64 = (256 << 10) as f64;
/// Peers that are remembered; the emptiest buckets make room.
const PEERS: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn level(&self, now: Instant) -> f64 {
        let leaked = now.saturating_duration_since(self.at).as_secs_f64() * LEAK;
        (self.level - leaked).max(0.0)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Quotas(Mutex<HashMap<PeerId, Bucket>>);

impl Quotas {
    /// Whether a peer may write so many bytes now; if so, they are counted.
    pub(super) fn charge(&self, peer: PeerId, bytes: usize, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buckets.get(&peer).map_or(0.0, |bucket| bucket.level(now));
        let level = before + bytes as f64;
        if level > BUCKET {
            return false;
        }
        if buckets.len() >= PEERS && !buckets.contains_key(&peer) {
            let emptiest = buckets
                .iter()
                .min_by(|(_, a), (_, b)| a.level(now).total_cmp(&b.level(now)));
            if let Some(emptiest) = emptiest.map(|(peer, _)| *peer) {
                buckets.remove(&emptiest);
            }
        }
        buckets.insert(peer, Bucket { level, at: now });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_peer_that_writes_too_much_is_refused_until_time_has_passed_and_others_are_not() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        let [greedy, modest] = [(); 2].map(|()| PeerId::random());
        assert!(quotas.charge(greedy, 60 << 20, now));
        assert!(!quotas.charge(greedy, 5 << 20, now));
        assert!(quotas.charge(modest, 5 << 20, now));
        assert!(
            quotas.charge(greedy, 4 << 20, now),
            "a refusal costs nothing"
        );
        let later = now + Duration::from_secs(20);
        assert!(quotas.charge(greedy, 5 << 20, later));
    }
}
