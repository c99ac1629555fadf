//! Which peers are to keep a session, the best first. Peers without a stage of it come first: the loss
//! of one machine should not take a stage and a replica at once. Those that failed lately come last.
//! Among equals each session has an order of its own, so that no peer keeps them all.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use accel_p2p::{PeerId, SessionId};

use crate::directory::{PeerRecord, snapshot};
use crate::placement::Placer;

/// Adverts come by way of others, so a peer is known a little before it is connected.
const JOINING: Duration = Duration::from_secs(3);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(50);

/// A peer that may keep a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) peer: PeerId,
    /// Where its HTTP API is, if it says so in a way that others can use.
    pub(crate) api: Option<SocketAddr>,
}

/// Everyone who may keep the session.
pub(crate) async fn candidates(
    placer: &Placer,
    session: SessionId,
    stages: &[PeerId],
) -> Vec<Candidate> {
    let now = Instant::now();
    let admits = |peer| placer.health.admits(peer, now);
    choose(&trusted(placer).await, session, stages, admits)
}

/// How many may keep a new session. If `needed` are known, those that are about to connect are
/// waited for.
pub(crate) async fn expected(placer: &Placer, session: SessionId, needed: usize) -> usize {
    let deadline = Instant::now() + JOINING;
    loop {
        let records = trusted(placer).await;
        let there = choose(&records, session, &[], |_| true).len();
        let known = records.iter().filter(|record| !record.is_self).count();
        if there >= needed || known < needed || Instant::now() >= deadline {
            return there;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is known of the peers that are not in quarantine.
async fn trusted(placer: &Placer) -> Vec<PeerRecord> {
    let records = snapshot(&placer.directory).await;
    let is_trusted = |record: &&PeerRecord| !placer.quarantine.holds(record.peer);
    records.iter().filter(is_trusted).cloned().collect()
}

fn choose(
    records: &[PeerRecord],
    session: SessionId,
    stages: &[PeerId],
    admits: impl Fn(PeerId) -> bool,
) -> Vec<Candidate> {
    let mut others: Vec<&PeerRecord> = records
        .iter()
        .filter(|record| !record.is_self && record.connected)
        .collect();
    others.sort_by_cached_key(|record| {
        let peer = record.peer;
        let turn = turn(session, peer);
        (Reverse(admits(peer)), stages.contains(&peer), turn)
    });
    let candidate = |record: &PeerRecord| Candidate {
        peer: record.peer,
        api: record.body.api.filter(|api| !api.ip().is_unspecified()),
    };
    others.into_iter().map(candidate).collect()
}

fn turn(session: SessionId, peer: PeerId) -> u64 {
    let mut hasher = DefaultHasher::new();
    (session.bytes(), peer).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::advert_body;

    fn record(is_self: bool, connected: bool) -> PeerRecord {
        PeerRecord {
            peer: PeerId::random(),
            is_self,
            connected,
            body: Arc::new(advert_body()),
            seen: Instant::now(),
        }
    }

    #[test]
    fn peers_without_a_stage_come_first_and_those_that_failed_last() {
        let records = [
            record(true, true),
            record(false, false),
            record(false, true),
            record(false, true),
            record(false, true),
        ];
        let [_, _, failed, stage, idle] = &records;
        let session = SessionId([3; 16]);
        let admits = |peer| peer != failed.peer;
        let chosen = choose(&records, session, &[stage.peer], admits);
        let chosen: Vec<PeerId> = chosen.iter().map(|candidate| candidate.peer).collect();
        assert_eq!(chosen, [idle.peer, stage.peer, failed.peer]);
    }

    #[test]
    fn sessions_are_spread_over_equal_peers() {
        let records: Vec<PeerRecord> = (0..4).map(|_| record(false, true)).collect();
        let first = |n: u8| {
            choose(&records, SessionId([n; 16]), &[], |_| true)
                .first()
                .cloned()
        };
        let before = first(0);
        assert!((1..64).any(|n| first(n) != before));
    }
}
