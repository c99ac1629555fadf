//! Dials peers that are known and not connected: those that adverts tell of, and those through
//! which this node joined. How often and how many at once is decided purely in [`Schedule`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;

use super::Dialler;
use crate::adverts::Adverts;
use crate::network::Tasks;

const MAX_DIALS: usize = 8;
/// Beyond this many connections, peers are left to dial this node.
const MAX_CONNECTED: usize = 128;
const TICK: Duration = Duration::from_millis(500);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// A session waits 30 seconds for a peer to come back: within that it is tried several times.
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// Two nodes that learn of each other at once should not both dial: one of them waits a little.
const YIELD: Duration = Duration::from_millis(400);

/// The peers through which this node found its swarm; redialled for as long as it runs.
pub(crate) type Found = Arc<Mutex<HashMap<PeerId, Multiaddr>>>;

/// When to dial whom.
#[derive(Debug, Default)]
struct Schedule {
    peers: HashMap<PeerId, Attempts>,
    dialling: HashSet<PeerId>,
}

#[derive(Debug)]
struct Attempts {
    failures: u32,
    not_before: Instant,
}

impl Schedule {
    /// Whom of `candidates` to dial now; each is counted as being dialled until
    /// [`finished`](Self::finished).
    fn due(&mut self, own_peer: PeerId, candidates: &[PeerId], now: Instant) -> Vec<PeerId> {
        self.peers
            .retain(|peer, attempts| attempts.not_before > now || candidates.contains(peer));
        let mut due = Vec::new();
        for peer in candidates {
            let attempts = self.peers.entry(*peer).or_insert_with(|| Attempts {
                failures: 0,
                not_before: if own_peer < *peer { now } else { now + YIELD },
            });
            let is_due = attempts.not_before <= now && !self.dialling.contains(peer);
            if is_due && self.dialling.len() < MAX_DIALS {
                self.dialling.insert(*peer);
                due.push(*peer);
            }
        }
        due
    }

    fn finished(&mut self, peer: PeerId, is_connected: bool, now: Instant) {
        self.dialling.remove(&peer);
        let attempts = self.peers.entry(peer).or_insert(Attempts {
            failures: 0,
            not_before: now,
        });
        attempts.failures = match is_connected {
            true => 0,
            false => attempts.failures.saturating_add(1),
        };
        let backoff = FIRST_BACKOFF * 2u32.saturating_pow(attempts.failures.min(8));
        attempts.not_before = now + backoff.min(MAX_BACKOFF);
    }
}

/// Keeps dialling for as long as the network runs.
pub(crate) async fn dial_known(
    dialler: Dialler,
    adverts: Arc<Adverts>,
    found: Found,
    tasks: Tasks,
) {
    let mut schedule = Schedule::default();
    let mut news = adverts.subscribe();
    let (sender, mut finished) = mpsc::channel(MAX_DIALS);
    loop {
        let candidates = candidates(&dialler, &adverts, &found);
        let peers: Vec<PeerId> = candidates.keys().copied().collect();
        for peer in schedule.due(dialler.own_peer, &peers, Instant::now()) {
            let addrs = candidates.get(&peer).cloned().unwrap_or_default();
            let (dialler, sender) = (dialler.clone(), sender.clone());
            tasks.spawn(async move {
                let is_connected = dialler.connect_known(peer, addrs).await;
                let _ = sender.send((peer, is_connected)).await;
            });
        }
        tokio::select! {
            Some((peer, is_connected)) = finished.recv() => {
                schedule.finished(peer, is_connected, Instant::now());
            }
            changed = news.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Known peers that are not connected, and where to dial them.
fn candidates(
    dialler: &Dialler,
    adverts: &Adverts,
    found: &Found,
) -> HashMap<PeerId, Vec<Multiaddr>> {
    if dialler.connections.peers().len() >= MAX_CONNECTED {
        return HashMap::new();
    }
    let mut candidates: HashMap<PeerId, Vec<Multiaddr>> = adverts.addrs().into_iter().collect();
    let found = found.lock().unwrap_or_else(PoisonError::into_inner);
    for (peer, addr) in found.iter() {
        candidates.entry(*peer).or_default().push(addr.clone());
    }
    candidates.retain(|peer, addrs| {
        addrs.retain(|addr| dialler.is_dialable(addr));
        !addrs.is_empty() && !dialler.connections.is_connected(peer)
    });
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_peers() -> (PeerId, PeerId) {
        let (a, b) = (PeerId::random(), PeerId::random());
        if a < b { (a, b) } else { (b, a) }
    }

    #[test]
    fn of_two_nodes_that_learn_of_each_other_one_dials_at_once_and_the_other_later() {
        let (low, high) = two_peers();
        let now = Instant::now();
        assert_eq!(Schedule::default().due(low, &[high], now), [high]);
        let mut schedule = Schedule::default();
        assert_eq!(schedule.due(high, &[low], now), []);
        assert_eq!(schedule.due(high, &[low], now + YIELD), [low]);
    }

    #[test]
    fn a_peer_that_does_not_answer_is_dialled_ever_more_seldom() {
        let (own, peer) = two_peers();
        let (mut schedule, mut now) = (Schedule::default(), Instant::now());
        let mut last = Duration::ZERO;
        for _ in 0..5 {
            assert_eq!(schedule.due(own, &[peer], now), [peer]);
            schedule.finished(peer, false, now);
            let wait = schedule.peers[&peer].not_before - now;
            assert!(wait > last || wait == MAX_BACKOFF);
            assert!(wait <= MAX_BACKOFF);
            assert_eq!(schedule.due(own, &[peer], now), []);
            (last, now) = (wait, now + wait);
        }
    }

    #[test]
    fn only_so_many_peers_are_dialled_at_once_and_none_twice() {
        let peers: Vec<PeerId> = (0..3 * MAX_DIALS).map(|_| PeerId::random()).collect();
        let (own, now) = (PeerId::random(), Instant::now());
        let mut schedule = Schedule::default();
        let mut dialled = HashSet::new();
        for when in [now, now + YIELD, now + 2 * YIELD] {
            for peer in schedule.due(own, &peers, when) {
                assert!(dialled.insert(peer));
            }
        }
        assert_eq!(dialled.len(), MAX_DIALS);
    }
}
