//! How well the peers do their part, as the sessions of this node see it: a score to show, and a
//! circuit breaker that keeps new placements away from whoever fails.
//!
//! | File | Holds |
//! |---|---|
//! | `breaker.rs` | closed, open, half open; pure |
//! | `score.rs` | 0 to 100; pure |

pub(crate) mod breaker;
mod score;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use accel_p2p::PeerId;

pub use breaker::BreakerLimits;
use breaker::{Breaker, BreakerState};
use score::Record;

use crate::session::recovery::wager::Odds;

/// Peers that are remembered; the one that was longest not heard of makes room.
const MOST_PEERS: usize = 4096;

/// How a peer is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    /// 0 to 100.
    pub(crate) score: u8,
    pub(crate) breaker: BreakerState,
    /// How long small requests take, if any was made.
    pub(crate) ping: Option<Duration>,
}

struct Patient {
    breaker: Breaker,
    record: Record,
    seen: Instant,
}

/// See the module.
pub(crate) struct Health {
    limits: BreakerLimits,
    patients: Mutex<HashMap<PeerId, Patient>>,
    odds: Mutex<Odds>,
}

impl Health {
    pub(crate) fn new(limits: BreakerLimits) -> Self {
        Self {
            limits,
            patients: Mutex::default(),
            odds: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Patient>> {
        self.patients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, peer: PeerId, now: Instant, change: impl FnOnce(&mut Patient) -> T) -> T {
        let mut patients = self.lock();
        if patients.len() >= MOST_PEERS && !patients.contains_key(&peer) {
            let oldest = patients.iter().min_by_key(|(_, patient)| patient.seen);
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                patients.remove(&oldest);
            }
        }
        let patient = patients.entry(peer).or_insert_with(|| Patient {
            breaker: Breaker::new(self.limits),
            record: Record::default(),
            seen: now,
        });
        patient.seen = now;
        change(patient)
    }

    /// The peer did its part of a step. `slowness` is what the step took, as a multiple of what was
    /// predicted for its route.
    pub(crate) fn succeeded(&self, peer: PeerId, slowness: Option<f64>, now: Instant) {
        self.with(peer, now, |patient| {
            patient.breaker.succeed();
            patient.record.succeeded(slowness);
        });
    }

    /// The peer did not do what it was asked for. Whether its breaker opens by this.
    pub(crate) fn failed(&self, peer: PeerId, now: Instant) -> bool {
        self.with(peer, now, |patient| {
            patient.record.failed();
            patient.breaker.fail(now)
        })
    }

    /// The connection to the peer was lost without a goodbye. Whether its breaker opens by this.
    pub(crate) fn dropped(&self, peer: PeerId, now: Instant) -> bool {
        self.with(peer, now, |patient| {
            patient.record.dropped(now);
            patient.breaker.trip(now)
        })
    }

    /// The peer answered a small request.
    pub(crate) fn answered(&self, peer: PeerId, after: Duration, now: Instant) {
        self.with(peer, now, |patient| patient.record.answered(after));
    }

    /// Whether a placement should have the peer.
    pub(crate) fn admits(&self, peer: PeerId, now: Instant) -> bool {
        let patients = self.lock();
        patients
            .get(&peer)
            .is_none_or(|patient| patient.breaker.admits(now))
    }

    /// A placement has the peer.
    pub(crate) fn placed(&self, peer: PeerId, now: Instant) {
        if let Some(patient) = self.lock().get_mut(&peer) {
            patient.breaker.pass(now);
        }
    }

    /// A route that did not answer in time was asked again; whether it answered then.
    pub(crate) fn asked_again(&self, answered: bool) {
        let mut odds = self.odds.lock().unwrap_or_else(PoisonError::into_inner);
        odds.note(answered);
    }

    /// How often routes answered that were asked again.
    pub(crate) fn odds(&self) -> Odds {
        *self.odds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the peer is. Who was never asked for anything is well.
    pub(crate) fn diagnosis(&self, peer: PeerId, now: Instant) -> Diagnosis {
        let patients = self.lock();
        let Some(patient) = patients.get(&peer) else {
            return Diagnosis {
                score: 100,
                breaker: BreakerState::Closed,
                ping: None,
            };
        };
        Diagnosis {
            score: patient.record.score(now),
            breaker: patient.breaker.state(now),
            ping: patient.record.ping(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_was_lost_is_left_alone_for_a_while_and_then_tried() {
        let limits = BreakerLimits::default();
        let (health, now, peer) = (Health::new(limits), Instant::now(), PeerId::random());
        assert!(health.admits(peer, now));
        assert!(health.dropped(peer, now));
        assert!(!health.dropped(peer, now), "told of once");
        assert!(!health.admits(peer, now));
        let later = now + limits.open;
        for _ in 0..limits.trials {
            assert!(health.admits(peer, later));
            health.placed(peer, later);
        }
        assert!(!health.admits(peer, later));
        for _ in 0..limits.successes {
            health.succeeded(peer, None, later);
        }
        assert!(health.admits(peer, later));
        assert_eq!(health.diagnosis(peer, later).breaker, BreakerState::Closed);
    }

    #[test]
    fn no_more_peers_are_remembered_than_there_is_room_for() {
        let health = Health::new(BreakerLimits::default());
        let start = Instant::now();
        let peers: Vec<PeerId> = (0..=MOST_PEERS).map(|_| PeerId::random()).collect();
        for (index, peer) in peers.iter().enumerate() {
            health.dropped(*peer, start + Duration::from_millis(index as u64));
        }
        assert_eq!(health.lock().len(), MOST_PEERS);
        assert!(health.admits(peers[0], start), "the oldest is forgotten");
        assert!(!health.admits(peers[1], start));
    }
}
