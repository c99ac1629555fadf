//! How well each peer serves blocks: pure bookkeeping that ranks whom to ask first.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;

/// What a peer is believed to need for a block before it ever sent one.
const UNKNOWN_LATENCY: f64 = 0.05;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// How long a peer that sent a wrong block is not asked again.
const PENALTY: Duration = Duration::from_secs(60);
/// Peers remembered; the ones that were quiet longest are forgotten.
const MAX_PEERS: usize = 1024;

/// Records of all peers that were asked for blocks.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    peers: HashMap<PeerId, Record>,
}

#[derive(Debug)]
struct Record {
    /// Mean seconds from want to block.
    latency: f64,
    /// Failures since the last block.
    failures: u32,
    penalised_until: Option<Instant>,
    last_block: Option<Instant>,
    touched: Instant,
}

impl Ledger {
    fn record(&mut self, peer: PeerId, now: Instant) -> &mut Record {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            let quietest = self.peers.iter().min_by_key(|(_, record)| record.touched);
            if let Some(quietest) = quietest.map(|(peer, _)| *peer) {
                self.peers.remove(&quietest);
            }
        }
        let record = self.peers.entry(peer).or_insert(Record {
            latency: UNKNOWN_LATENCY,
            failures: 0,
            penalised_until: None,
            last_block: None,
            touched: now,
        });
        record.touched = now;
        record
    }

    /// A wanted block came.
    pub(super) fn delivered(&mut self, peer: PeerId, took: Duration, now: Instant) {
        let record = self.record(peer, now);
        record.latency += NEWEST * (took.as_secs_f64() - record.latency);
        record.failures = 0;
        record.last_block = Some(now);
    }

    /// A want was not answered, or could not be sent.
    pub(super) fn failed(&mut self, peer: PeerId, now: Instant) {
        let record = self.record(peer, now);
        record.failures = record.failures.saturating_add(1);
    }

    /// A wrong block came.
    pub(super) fn wrong(&mut self, peer: PeerId, now: Instant) {
        self.record(peer, now).penalised_until = Some(now + PENALTY);
    }

    pub(super) fn is_penalised(&self, peer: &PeerId, now: Instant) -> bool {
        let until = self
            .peers
            .get(peer)
            .and_then(|record| record.penalised_until);
        until.is_some_and(|until| until > now)
    }

    /// Whether the peer sent any block within the last `span`: it is slow, not silent.
    pub(super) fn is_delivering(&self, peer: &PeerId, span: Duration, now: Instant) -> bool {
        let last_block = self.peers.get(peer).and_then(|record| record.last_block);
        last_block.is_some_and(|last| now.duration_since(last) < span)
    }

    /// Orders peers by how soon a block is expected from them, given how many are already
    /// outstanding there; leaves out who is penalised. Equals keep their order.
    pub(super) fn rank(
        &self,
        peers: &[PeerId],
        outstanding: impl Fn(&PeerId) -> usize,
        now: Instant,
    ) -> Vec<PeerId> {
        let allowed = peers.iter().filter(|peer| !self.is_penalised(peer, now));
        let mut ranked: Vec<(f64, PeerId)> = allowed
            .map(|peer| (self.expected(peer, outstanding(peer)), *peer))
            .collect();
        ranked.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        ranked.into_iter().map(|(_, peer)| peer).collect()
    }

    fn expected(&self, peer: &PeerId, outstanding: usize) -> f64 {
        let record = self.peers.get(peer);
        let latency = record.map_or(UNKNOWN_LATENCY, |record| record.latency);
        let failures = record.map_or(0, |record| record.failures.min(10));
        latency * (1 + outstanding) as f64 * f64::from(1u32 << failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: fn(&PeerId) -> usize = |_| 0;

    fn peers() -> [PeerId; 3] {
        std::array::from_fn(|_| PeerId::random())
    }

    #[test]
    fn strangers_keep_the_order_in_which_they_are_given() {
        let peers = peers();
        assert_eq!(Ledger::default().rank(&peers, IDLE, Instant::now()), peers);
    }

    #[test]
    fn the_quick_come_before_the_slow_and_who_fails_comes_last() {
        let ([quick, slow, failing], now) = (peers(), Instant::now());
        let mut ledger = Ledger::default();
        for _ in 0..20 {
            ledger.delivered(quick, Duration::from_millis(5), now);
            ledger.delivered(slow, Duration::from_millis(200), now);
            ledger.failed(failing, now);
        }
        let ranked = ledger.rank(&[failing, slow, quick], IDLE, now);
        assert_eq!(ranked, [quick, slow, failing]);
    }

    #[test]
    fn a_busy_peer_gives_way_to_an_idle_one() {
        let ([busy, idle, _], now) = (peers(), Instant::now());
        let mut ledger = Ledger::default();
        for peer in [busy, idle] {
            ledger.delivered(peer, Duration::from_millis(10), now);
        }
        let outstanding = |peer: &PeerId| if *peer == busy { 8 } else { 0 };
        assert_eq!(ledger.rank(&[busy, idle], outstanding, now), [idle, busy]);
    }

    #[test]
    fn who_sent_a_wrong_block_is_left_out_for_a_while() {
        let ([liar, honest, _], now) = (peers(), Instant::now());
        let mut ledger = Ledger::default();
        ledger.wrong(liar, now);
        assert_eq!(ledger.rank(&[liar, honest], IDLE, now), [honest]);
        assert_eq!(ledger.rank(&[liar, honest], IDLE, now + PENALTY).len(), 2);
    }

    #[test]
    fn no_more_than_so_many_peers_are_remembered() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        for _ in 0..2 * MAX_PEERS {
            ledger.failed(PeerId::random(), now);
        }
        assert_eq!(ledger.peers.len(), MAX_PEERS);
    }
}
