//! Replicas: peers that keep the journal. Streams to them carry letters in order, one at a time; a
//! letter may still be on its way when its sender is dead, and is then refused once a newer
//! coordinator was there. What a peer keeps is on its disk, and outlasts its crashes. A client that
//! comes back after its coordinator has lost the disk gets what the peers have.

use std::collections::BTreeMap;

use accel_p2p::PeerId;
use rand::Rng;
use rand::seq::SliceRandom;

use super::storm::EXPIRY;
use super::weather::Millis;
use super::{Happening, Simulation, fixtures};
use crate::error::{Failure, SESSION_MOVED};
use crate::session::event::{Command, Drawn, Event, Timer};
use crate::session::machine::{PEER_WAITS, REPLICAS};
use crate::tolerance::FaultTolerance;

/// How long a letter may go without an answer.
const SILENCE: Millis = 5_000;
/// How long it takes to find that nobody is there.
const DIAL: Millis = 300;

/// What a peer keeps.
#[derive(Debug, Default)]
struct Kept {
    claim: u64,
    tokens: Vec<Drawn>,
}

/// The way to a peer that keeps the journal.
#[derive(Debug)]
struct Stream {
    id: u64,
    claim: u64,
    sent: usize,
    is_busy: bool,
}

/// A request to keep something.
#[derive(Debug)]
pub(super) struct Letter {
    stream: u64,
    peer: usize,
    claim: u64,
    opens: bool,
    first: usize,
    tokens: Vec<Drawn>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Copies {
    kept: BTreeMap<usize, Kept>,
    streams: BTreeMap<usize, Stream>,
    /// What the replicas are to have.
    log: Vec<Drawn>,
    /// Counts streams.
    opened: u64,
}

impl Copies {
    /// Nobody writes any more; another machine goes on with so many tokens.
    pub(super) fn begin(&mut self, tokens: Vec<Drawn>) {
        self.streams.clear();
        self.log = tokens;
    }

    /// What the peer answers: how many tokens it has of those that were sent.
    fn take(&mut self, letter: Letter) -> Result<usize, &'static str> {
        if letter.opens {
            let kept = self.kept.entry(letter.peer).or_default();
            if letter.claim < kept.claim {
                return Err(SESSION_MOVED);
            }
            kept.claim = letter.claim;
            return Ok(0);
        }
        let kept = self.kept.get_mut(&letter.peer).ok_or("journal")?;
        if letter.claim != kept.claim {
            return Err(SESSION_MOVED);
        }
        let end = letter.first + letter.tokens.len();
        for (index, drawn) in (letter.first..).zip(letter.tokens) {
            match kept.tokens.get(index) {
                Some(before) => assert_eq!(*before, drawn, "two coordinators disagree"),
                None => kept.tokens.push(drawn),
            }
        }
        assert!(end <= kept.tokens.len(), "no gap");
        Ok(end)
    }

    /// Whether a peer has anything.
    pub(super) fn exist(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Whether a peer has so many tokens.
    pub(super) fn have(&self, tokens: u64) -> bool {
        let mut kept = self.kept.values();
        kept.any(|kept| kept.tokens.len() as u64 >= tokens)
    }

    fn safe(&self, index: u64) -> usize {
        let has = |kept: &&Kept| index < kept.tokens.len() as u64;
        self.kept.values().filter(has).count()
    }
}

impl Simulation {
    pub(super) fn replicas(&self) -> usize {
        match self.weather.level {
            FaultTolerance::High => REPLICAS,
            _ => 0,
        }
    }

    /// A token that is emitted is on as many other disks as was asked for.
    pub(super) fn check_replicas(&self, command: &Command) {
        if let Command::Emit { index, .. } = command
            && !self.disk.has_ended()
        {
            let safe = self.copies.safe(*index);
            assert!(safe >= self.replicas(), "token {index} is on {safe} peers");
        }
    }

    pub(super) fn find_replicas(&mut self, excluding: &[PeerId]) {
        let usable = |index: &usize| {
            let is_wanted = !excluding.contains(&fixtures::peer(*index as u8));
            let is_known = self.now < self.heard[*index] + EXPIRY;
            is_wanted && is_known && self.connected[*index]
        };
        let mut found: Vec<usize> = (1..self.peers.len()).filter(usable).collect();
        found.shuffle(&mut self.rng);
        let peers = found.iter().map(|index| fixtures::peer(*index as u8));
        let peers = peers.collect();
        self.soon(Event::ReplicasFound { peers });
    }

    pub(super) fn wait_for_replicas(&mut self) {
        let time = self.now + 30_000 / Millis::from(PEER_WAITS);
        self.later(time, Event::Timeout(Timer::Replicas));
    }

    pub(super) fn open_replica(&mut self, peer: PeerId, claim: u64) {
        let peer = self.index(peer);
        self.copies.opened += 1;
        let stream = Stream {
            id: self.copies.opened,
            claim,
            sent: 0,
            is_busy: true,
        };
        let letter = Letter {
            stream: stream.id,
            peer,
            claim,
            opens: true,
            first: 0,
            tokens: Vec::new(),
        };
        self.copies.streams.insert(peer, stream);
        self.post(letter);
    }

    pub(super) fn drop_replica(&mut self, peer: PeerId) {
        let peer = self.index(peer);
        self.copies.streams.remove(&peer);
    }

    pub(super) fn replicate(&mut self, drawn: Drawn) {
        self.copies.log.push(drawn);
        let peers: Vec<usize> = self.copies.streams.keys().copied().collect();
        for peer in peers {
            self.write_on(peer);
        }
    }

    /// Sends whatever has come together, once the letter before was answered.
    fn write_on(&mut self, peer: usize) {
        let Copies { streams, log, .. } = &mut self.copies;
        let Some(stream) = streams.get_mut(&peer).filter(|stream| !stream.is_busy) else {
            return;
        };
        let tokens = log.get(stream.sent..).unwrap_or_default().to_vec();
        if tokens.is_empty() {
            return;
        }
        stream.is_busy = true;
        let letter = Letter {
            stream: stream.id,
            peer,
            claim: stream.claim,
            opens: false,
            first: stream.sent,
            tokens,
        };
        self.post(letter);
    }

    fn post(&mut self, letter: Letter) {
        let (stream, peer) = (letter.stream, letter.peer);
        let silent = Happening::LetterAnswered(peer, stream, letter.first, Err("peer_silent"));
        self.at(self.now + SILENCE, silent);
        let time = self.now + self.rng.random_range(1..=5);
        self.at(time, Happening::Letter(letter));
    }

    pub(super) fn letter_arrives(&mut self, letter: Letter) {
        let peer = &self.peers[letter.peer];
        if peer.stalled_until > self.now {
            return self.at(peer.stalled_until, Happening::Letter(letter));
        }
        let (index, stream, first) = (letter.peer, letter.stream, letter.first);
        let is_there = peer.up && self.now >= self.broken_until;
        let (after, answer) = match is_there {
            true => (self.rng.random_range(1..25), self.copies.take(letter)),
            false => (DIAL, Err("peer_unreachable")),
        };
        let answered = Happening::LetterAnswered(index, stream, first, answer);
        self.at(self.now + after, answered);
    }

    /// The first answer to the letter that is under way counts.
    pub(super) fn letter_answered(
        &mut self,
        peer: usize,
        stream: u64,
        first: usize,
        answer: Result<usize, &'static str>,
    ) {
        let streams = &mut self.copies.streams;
        let is_it = |open: &&mut Stream| open.id == stream && open.is_busy && open.sent == first;
        let Some(open) = streams.get_mut(&peer).filter(is_it) else {
            return;
        };
        let id = fixtures::peer(peer as u8);
        match answer {
            Ok(sent) => {
                (open.sent, open.is_busy) = (sent, false);
                let tokens = sent as u64;
                self.feed(Event::Replicated { peer: id, tokens });
                self.write_on(peer);
            }
            Err(code) => {
                streams.remove(&peer);
                let failure = Failure::unavailable(code, "a replica is gone", "wait");
                self.feed(Event::ReplicaLost { peer: id, failure });
            }
        }
    }

    /// Whoever the client comes back to asks all peers that can be asked. Whether there is as much as
    /// the client has already.
    pub(super) fn gather(&mut self) -> bool {
        let can_be_asked = |index: usize| {
            let peer = &self.peers[index];
            peer.up && peer.stalled_until <= self.now && self.connected[index]
        };
        let kept = self.copies.kept.iter();
        for (_, kept) in kept.filter(|(index, _)| can_be_asked(**index)) {
            self.disk.adopt(kept.claim, &kept.tokens);
        }
        self.checks.received <= self.disk.tokens().len() as u64
    }
}
