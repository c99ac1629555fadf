//! Replicas: peers that keep the journal. Streams to them carry letters in order, one at a time; a
//! letter may still be on its way when its sender is dead, and is then refused once a newer
//! coordinator was there. What a peer keeps is on its disk, and outlasts its crashes. A client that
//! comes back after its coordinator has lost the disk gets what the peers have.

use std::collections::BTreeMap;

use accel_p2p::PeerId;
use rand::Rng;
use rand::seq::SliceRandom;

use super::journals::Disk;
use super::storm::EXPIRY;
use super::weather::Millis;
use super::{Happening, Simulation, fixtures};
use crate::error::Failure;
use crate::session::event::{Command, Drawn, Event, Timer};
use crate::session::machine::{PEER_WAITS, REPLICAS};
use crate::tolerance::FaultTolerance;

/// How long a letter may go without an answer.
pub(super) const SILENCE: Millis = 5_000;
/// How long it takes to find that nobody is there.
const DIAL: Millis = 300;

/// A coordinator's ways to the peers that keep its journal.
#[derive(Debug, Default)]
pub(super) struct Post {
    streams: BTreeMap<usize, Stream>,
    /// What the replicas are to have.
    log: Vec<Drawn>,
}

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
    from: usize,
    to: usize,
    claim: u64,
    opens: bool,
    first: usize,
    tokens: Vec<Drawn>,
}

impl Post {
    /// To begin with, the replicas are to have so much.
    pub(super) fn of(log: Vec<Drawn>) -> Self {
        let streams = BTreeMap::new();
        Self { streams, log }
    }

    fn has(&self, stream: u64) -> bool {
        self.streams.values().any(|open| open.id == stream)
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
    pub(super) fn check_replicas(&self, at: usize, command: &Command) {
        if let Command::Emit { index, .. } = command
            && self.disks[at].ended().is_none()
        {
            let safe = self.others_with(at, index + 1);
            assert!(safe >= self.replicas(), "token {index} is on {safe} peers");
        }
    }

    /// How many other disks have so many tokens.
    pub(super) fn others_with(&self, at: usize, tokens: u64) -> usize {
        let disks = self.disks.iter().enumerate();
        let has =
            disks.filter(|(index, disk)| *index != at && disk.is_open() && disk.len() >= tokens);
        has.count()
    }

    /// Whether others may have the session.
    pub(super) fn others_may_have_it(&self) -> bool {
        self.replicas() > 0 || self.disks.iter().any(Disk::may_leave)
    }

    pub(super) fn find_replicas(&mut self, at: usize, excluding: &[PeerId]) {
        let view = &self.views[at];
        let usable = |index: &usize| {
            let is_wanted = !excluding.contains(&fixtures::peer(*index as u8));
            let is_known = self.now < view.heard[*index] + EXPIRY;
            *index != at && is_wanted && is_known && view.connected[*index]
        };
        let mut found: Vec<usize> = (0..self.peers.len()).filter(usable).collect();
        found.shuffle(&mut self.rng);
        let peers = found.iter().map(|index| fixtures::peer(*index as u8));
        let peers = peers.collect();
        self.soon(at, Event::ReplicasFound { peers });
    }

    pub(super) fn wait_for_replicas(&mut self, at: usize) {
        let time = self.now + 30_000 / Millis::from(PEER_WAITS);
        self.later(at, time, Event::Timeout(Timer::Replicas));
    }

    pub(super) fn open_replica(&mut self, at: usize, peer: PeerId, claim: u64) {
        let to = self.index(peer);
        self.streams += 1;
        let stream = Stream {
            id: self.streams,
            claim,
            sent: 0,
            is_busy: true,
        };
        let letter = Letter {
            stream: stream.id,
            from: at,
            to,
            claim,
            opens: true,
            first: 0,
            tokens: Vec::new(),
        };
        self.desk(at).post.streams.insert(to, stream);
        self.post(letter);
    }

    pub(super) fn drop_replica(&mut self, at: usize, peer: PeerId) {
        let to = self.index(peer);
        self.desk(at).post.streams.remove(&to);
    }

    pub(super) fn replicate(&mut self, at: usize, drawn: Drawn) {
        let post = &mut self.desk(at).post;
        post.log.push(drawn);
        let peers: Vec<usize> = post.streams.keys().copied().collect();
        for peer in peers {
            self.write_on(at, peer);
        }
    }

    /// Sends whatever has come together, once the letter before was answered.
    fn write_on(&mut self, at: usize, to: usize) {
        let Some(desk) = self.desks.get_mut(&at) else {
            return;
        };
        let Post { streams, log } = &mut desk.post;
        let Some(stream) = streams.get_mut(&to).filter(|stream| !stream.is_busy) else {
            return;
        };
        let tokens = log.get(stream.sent..).unwrap_or_default().to_vec();
        if tokens.is_empty() {
            return;
        }
        stream.is_busy = true;
        let letter = Letter {
            stream: stream.id,
            from: at,
            to,
            claim: stream.claim,
            opens: false,
            first: stream.sent,
            tokens,
        };
        self.post(letter);
    }

    fn post(&mut self, letter: Letter) {
        let Letter {
            stream, to, first, ..
        } = letter;
        let silent = Happening::LetterAnswered(to, stream, first, Err("peer_silent"));
        self.at(self.now + SILENCE, silent);
        let time = self.now + self.rng.random_range(1..=5);
        self.at(time, Happening::Letter(letter));
    }

    pub(super) fn letter_arrives(&mut self, letter: Letter) {
        let peer = &self.peers[letter.to];
        if peer.stalled_until > self.now {
            return self.at(peer.stalled_until, Happening::Letter(letter));
        }
        let Letter {
            stream,
            from,
            to,
            first,
            ..
        } = letter;
        let is_there = peer.up && self.now >= self.broken_until;
        if self.is_cut(from, to) {
            return;
        }
        let (after, answer) = match is_there {
            true => (self.rng.random_range(1..25), self.take_letter(letter)),
            false => (DIAL, Err("peer_unreachable")),
        };
        // What was kept is kept, also if nobody hears of it.
        if !self.is_cut(to, from) {
            let answered = Happening::LetterAnswered(to, stream, first, answer);
            self.at(self.now + after, answered);
        }
    }

    /// What the peer answers: how many tokens it has of those that were sent.
    fn take_letter(&mut self, letter: Letter) -> Result<usize, &'static str> {
        let disk = &mut self.disks[letter.to];
        if !letter.opens {
            return disk.append(letter.claim, letter.first, letter.tokens);
        }
        disk.keep(letter.claim)?;
        // Its own coordinator of the session, if there is one, hears of that.
        if self.desks.contains_key(&letter.to) {
            self.soon(letter.to, Event::Deposed);
        }
        Ok(0)
    }

    /// Whose stream it is.
    pub(super) fn writer(&self, stream: u64) -> Option<usize> {
        let mut desks = self.desks.iter();
        let found = desks.find(|(_, desk)| desk.post.has(stream));
        found.map(|(at, _)| *at)
    }

    /// The first answer to the letter that is under way counts.
    pub(super) fn letter_answered(
        &mut self,
        peer: usize,
        stream: u64,
        first: usize,
        answer: Result<usize, &'static str>,
    ) {
        let Some(at) = self.writer(stream) else {
            return;
        };
        let streams = &mut self.desk(at).post.streams;
        let is_it = |open: &&mut Stream| open.id == stream && open.is_busy && open.sent == first;
        let Some(open) = streams.get_mut(&peer).filter(is_it) else {
            return;
        };
        let id = fixtures::peer(peer as u8);
        match answer {
            Ok(sent) => {
                (open.sent, open.is_busy) = (sent, false);
                let tokens = sent as u64;
                self.feed(at, Event::Replicated { peer: id, tokens });
                self.write_on(at, peer);
            }
            Err(code) => {
                streams.remove(&peer);
                let failure = Failure::unavailable(code, "a replica is gone", "wait");
                self.feed(at, Event::ReplicaLost { peer: id, failure });
            }
        }
    }

    /// Whoever the client comes back to asks all peers that can be asked. Whether there is as much as
    /// the client has already.
    pub(super) fn gather(&mut self, at: usize) -> bool {
        let can_be_asked = |index: &usize| {
            let peer = &self.peers[*index];
            let is_joined = !self.is_cut(at, *index) && !self.is_cut(*index, at);
            peer.up
                && peer.stalled_until <= self.now
                && self.views[at].connected[*index]
                && is_joined
        };
        let others = (0..self.peers.len()).filter(|index| *index != at);
        let others: Vec<usize> = others.filter(can_be_asked).collect();
        for index in others {
            if self.replicas() > 0 || self.disks[index].may_leave() {
                let mut own = std::mem::take(&mut self.disks[at]);
                own.adopt(&self.disks[index]);
                self.disks[at] = own;
            }
        }
        self.disks[at].is_open() && self.rules.received <= self.disks[at].len()
    }
}
