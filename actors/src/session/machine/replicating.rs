//! The machine's part in replication: which peers keep the journal, and how much of it is as safe as
//! the request wants it. A peer that is lost is replaced by another one, which is given everything;
//! meanwhile the session computes, and nothing is emitted. When nobody is found for a while, the
//! session stops and stays where it is: its client may come back when there are peers.

use accel_p2p::PeerId;

use super::{Machine, PEER_WAITS, claim_of, stopping};
use crate::error::{Failure, SESSION_MOVED, TOO_FEW_REPLICAS};
use crate::session::event::{Command, Outcome, Timer};

/// Peers that have every token besides the coordinator, with `fault_tolerance: high`.
pub(crate) const REPLICAS: usize = 2;

/// A peer that keeps the journal.
#[derive(Debug)]
struct Place {
    peer: PeerId,
    /// How many tokens it has, durably; none before it has said anything.
    tokens: Option<u64>,
}

/// What the machine remembers of replicas.
#[derive(Debug)]
pub(super) struct Replication {
    /// How many there must be.
    wanted: usize,
    places: Vec<Place>,
    /// Peers that were lost, until nobody else is there.
    avoided: Vec<PeerId>,
    /// Whether an answer about peers, or the time to ask again, is waited for.
    looks: bool,
    /// How often nobody was found since a token was emitted.
    waits: u32,
}

impl Replication {
    pub(super) fn new(wanted: usize) -> Self {
        Self {
            wanted,
            places: Vec::new(),
            avoided: Vec::new(),
            looks: false,
            waits: 0,
        }
    }

    /// How many tokens are on as many peers as must have them.
    pub(super) fn durable(&self) -> u64 {
        if self.wanted == 0 {
            return u64::MAX;
        }
        if self.lacks() > 0 {
            return 0;
        }
        let tokens = self.places.iter().map(|place| place.tokens.unwrap_or(0));
        tokens.min().unwrap_or(0)
    }

    /// The most tokens that a peer has.
    pub(super) fn most(&self) -> Option<u64> {
        self.places.iter().filter_map(|place| place.tokens).max()
    }

    /// There must be a peer that keeps the journal from now on.
    pub(super) fn want_one(&mut self) {
        self.wanted = self.wanted.max(1);
    }

    pub(super) fn made_progress(&mut self) {
        self.waits = 0;
    }

    fn lacks(&self) -> usize {
        self.wanted.saturating_sub(self.places.len())
    }

    fn has(&self, peer: PeerId) -> bool {
        self.places.iter().any(|place| place.peer == peer)
    }

    /// Takes a peer off the list; whether it was there.
    fn lose(&mut self, peer: PeerId) -> bool {
        let before = self.places.len();
        self.places.retain(|place| place.peer != peer);
        let is_lost = self.places.len() < before;
        if is_lost {
            self.avoided.push(peer);
        }
        is_lost
    }
}

impl Machine {
    /// The session is in the journal here: from now on it is to be elsewhere, too. One that is only
    /// told again needs no more safety than it has.
    pub(super) fn begin_replicas(&mut self) {
        let is_over = self.resumed.as_ref().is_some_and(|past| past.is_over);
        match is_over {
            true => self.replication.wanted = 0,
            false => self.replicate(),
        }
    }

    /// Looks for as many peers as are lacking.
    pub(super) fn replicate(&mut self) {
        if self.replication.lacks() > 0 && !self.replication.looks {
            self.look_for_replicas();
        }
    }

    pub(super) fn look_for_replicas(&mut self) {
        self.replication.looks = true;
        let taken = self.replication.places.iter().map(|place| place.peer);
        let excluding = taken.chain(self.replication.avoided.iter().copied());
        let excluding = excluding.collect();
        self.out.push(Command::FindReplicas { excluding });
    }

    pub(super) fn on_replicas_found(&mut self, peers: Vec<PeerId>) {
        self.replication.looks = false;
        let claim = claim_of(self.epoch);
        for peer in peers {
            if self.replication.lacks() == 0 {
                return;
            }
            if !self.replication.has(peer) {
                let tokens = None;
                self.replication.places.push(Place { peer, tokens });
                self.out.push(Command::OpenReplica { peer, claim });
            }
        }
        if self.replication.lacks() > 0 {
            self.wait_for_replicas();
        }
    }

    fn wait_for_replicas(&mut self) {
        let nobody_is_there =
            self.replication.places.is_empty() && self.replication.avoided.is_empty();
        if self.is_handing_over() && nobody_is_there {
            return self.suspend(stopping());
        }
        // Better one that failed before than none.
        self.replication.avoided.clear();
        self.replication.waits += 1;
        if self.replication.waits > PEER_WAITS {
            let failure = self.too_few_replicas();
            return self.close(Outcome::Suspended(failure));
        }
        self.replication.looks = true;
        self.out.push(Command::Arm(Timer::Replicas));
    }

    pub(super) fn on_replicated(&mut self, peer: PeerId, tokens: u64) {
        let mut places = self.replication.places.iter_mut();
        if let Some(place) = places.find(|place| place.peer == peer) {
            place.tokens = Some(tokens.max(place.tokens.unwrap_or(0)));
            self.emit_durable();
            self.leave_when_copied();
        }
    }

    pub(super) fn on_replica_lost(&mut self, peer: PeerId, failure: &Failure) {
        if !self.replication.has(peer) {
            return;
        }
        if failure.code == SESSION_MOVED {
            return self.depose();
        }
        self.replica_gone(peer);
    }

    pub(super) fn replica_gone(&mut self, peer: PeerId) {
        if self.replication.lose(peer) {
            self.out.push(Command::DropReplica { peer });
            self.replicate();
        }
    }

    fn too_few_replicas(&self) -> Failure {
        let message = format!(
            "fault_tolerance `high` needs {} more peers that keep the journal; for {} s there were {}",
            self.replication.wanted,
            self.tolerance.peer_wait.as_secs(),
            self.replication.places.len()
        );
        let hint = "start another node and come back with Last-Event-ID: the answer goes on";
        Failure::unavailable(TOO_FEW_REPLICAS, message, hint)
    }

    /// Those that have said that they have it; it may be without a token yet.
    pub(crate) fn keepers(&self) -> impl Iterator<Item = PeerId> {
        let places = self.replication.places.iter();
        let places = places.filter(|place| place.tokens.is_some());
        places.map(|place| place.peer)
    }

    /// The peers that keep the journal, or are about to.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = PeerId> {
        self.replication.places.iter().map(|place| place.peer)
    }
}

#[cfg(test)]
mod tests;
