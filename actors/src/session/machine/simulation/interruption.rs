//! Interruptions: the coordinator crashes and is started again with its disk, or is stopped and hands
//! the session over, or the client's connection breaks, or the client comes back before that was
//! noticed. Each time the client comes back for what it has not got, and another machine goes on from
//! the disk. Where peers have the journal, the coordinator may lose its disk as well.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::storm::EXPIRY;
use super::weather::Millis;
use super::{Happening, Machine, Numbers, Opening, Simulation, Tolerance, named, strategy, toy};
use crate::error::{Failure, TOO_FEW_REPLICAS};
use crate::session::event::{Drawn, Event, Outcome};
use crate::session::machine::{Past, next_claim, stopping};
use crate::session::record::Ended;

/// How long a node that stops waits for its sessions to be handed over.
const HAND_OVER: Millis = 3_000;

/// What stops a session for a while.
#[derive(Debug, Clone, Copy)]
pub(super) enum Interruption {
    Crash,
    Stop,
    ClientGone,
    TakenUp,
}

impl Interruption {
    pub(super) fn any(rng: &mut StdRng) -> Self {
        [Self::Crash, Self::Stop, Self::ClientGone, Self::TakenUp][rng.random_range(0..4)]
    }
}

/// The coordinator's journal.
#[derive(Debug, Default)]
pub(super) struct Disk {
    tokens: Vec<Drawn>,
    /// What was handed over and is not durable yet.
    writing: BTreeMap<u64, Drawn>,
    claim: u64,
    ended: Option<Ended>,
}

impl Disk {
    pub(super) fn claim(&mut self, claim: u64) {
        assert!(claim > self.claim, "claims only grow");
        self.claim = claim;
    }

    pub(super) fn tokens(&self) -> &[Drawn] {
        &self.tokens
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Takes what a peer has of it.
    pub(super) fn adopt(&mut self, claim: u64, tokens: &[Drawn]) {
        self.claim = self.claim.max(claim);
        let both = self.tokens.iter().zip(tokens);
        both.for_each(|(own, other)| assert_eq!(own, other, "two copies disagree"));
        let lacking = tokens.get(self.tokens.len()..).unwrap_or_default();
        self.tokens.extend_from_slice(lacking);
    }

    pub(super) fn write(&mut self, index: u64, drawn: Drawn) {
        self.writing.insert(index, drawn);
    }

    /// Everything up to a token is durable.
    pub(super) fn written(&mut self, index: u64) {
        while let Some(next) = self.writing.first_entry() {
            if *next.key() > index {
                return;
            }
            let (at, drawn) = next.remove_entry();
            assert_eq!(at, self.tokens.len() as u64, "no gap");
            self.tokens.push(drawn);
        }
    }

    /// Of what was being written, some may be there.
    fn settle(&mut self, rng: &mut StdRng) {
        let some = rng.random_range(0..=self.writing.len());
        if let Some(index) = self.writing.keys().take(some).next_back().copied() {
            self.written(index);
        }
        self.writing.clear();
    }
}

impl Simulation {
    /// The client takes some of what is on its way, at most up to this token.
    pub(super) fn deliver_some(&mut self, index: u64) {
        let arrived = self.sent.iter().filter(|(sent, _)| *sent <= index).count();
        let taken = self.rng.random_range(0..=arrived);
        self.deliver(taken);
    }

    fn deliver(&mut self, count: usize) {
        for (index, text) in self.sent.drain(..count) {
            self.checks.receive(index, &text);
        }
    }

    /// The machine has ended.
    pub(super) fn closed(&mut self, outcome: &Outcome) {
        self.running = false;
        match outcome {
            Outcome::Done { finish, .. } => {
                // It is written behind the tokens.
                self.disk.written(u64::MAX);
                self.disk.ended = Some(Ended::Done(*finish));
                self.deliver(self.sent.len());
            }
            Outcome::Moved(failure) => {
                let others = self.replicas() > 0 || self.copies.exist();
                assert!(others, "there is one coordinator: {failure:?}");
                self.turn_away();
            }
            Outcome::HandedOver(_) => {
                assert!(self.copies.have(self.machine.tokens()), "somebody has all");
                self.turn_away();
                self.exit(true);
            }
            Outcome::Suspended(failure) if *failure == stopping() => {
                self.turn_away();
                self.exit(self.replicas() > 0);
            }
            Outcome::Suspended(failure) if failure.code == TOO_FEW_REPLICAS => {
                assert!(self.replicas() > 0, "{failure:?}");
                self.turn_away();
            }
            Outcome::Suspended(_) => assert!(self.weather.interruptions > 0),
            Outcome::Failed(_) | Outcome::Cancelled => {}
        }
    }

    /// The session does not go on here: the client gets what is on its way, and comes back.
    fn turn_away(&mut self) {
        self.deliver(self.sent.len());
        self.leave();
    }

    /// Whatever the old machine waits for is not for the new one.
    fn leave(&mut self) {
        self.running = false;
        self.client_returns = true;
        self.calls.clear();
        self.process += 1;
        self.timer += 1;
        let back = self.now + self.rng.random_range(0..4_000);
        self.at(back, Happening::ClientReturns);
    }

    /// Whether nothing of the session follows.
    pub(super) fn is_over(&self) -> bool {
        !self.running && !self.client_returns
    }

    pub(super) fn interrupt(&mut self, how: Interruption) {
        if !self.running {
            return;
        }
        if let Interruption::Stop = how {
            self.later(self.now + HAND_OVER, Event::Suspend(stopping()));
            return self.feed(Event::HandOver);
        }
        let some = self.rng.random_range(0..=self.sent.len());
        self.deliver(some);
        self.sent.clear();
        match how {
            Interruption::Crash => {
                self.checks.forgive();
                self.exit(self.replicas() > 0);
            }
            Interruption::Stop => {}
            Interruption::ClientGone => self.feed(Event::Cancel),
            Interruption::TakenUp => {
                let failure = Failure::unavailable("session_taken_up", "another", "wait");
                self.feed(Event::Suspend(failure));
            }
        }
        self.leave();
    }

    /// The coordinator's process is gone, and its disk, too, where others may have what it had.
    fn exit(&mut self, others_have_it: bool) {
        self.peers[0].crash();
        self.disk.settle(&mut self.rng);
        if others_have_it && self.rng.random() {
            self.disk = Disk::default();
        }
        self.connected.iter_mut().skip(1).for_each(|to| *to = false);
        let long_ago = self.now.saturating_sub(EXPIRY);
        self.heard.fill(long_ago);
    }

    /// It asks for what follows on what it has.
    pub(super) fn client_returns(&mut self) {
        self.client_returns = false;
        if !self.peers[0].up {
            self.peers[0].up = true;
            for index in 1..self.peers.len() {
                let greeting = self.now + self.rng.random_range(20..500);
                self.at(greeting, Happening::Advert(index));
            }
        }
        self.disk.settle(&mut self.rng);
        let others = self.replicas() > 0 || self.copies.exist();
        if others && !self.gather() {
            // Those who have it cannot be asked yet.
            self.client_returns = true;
            return self.at(self.now + 1_000, Happening::ClientReturns);
        }
        self.copies.begin(self.disk.tokens.clone());
        let past = Past {
            tokens: self.disk.tokens.clone(),
            ended: self.disk.ended.clone(),
            seen: self.checks.received,
            claim: next_claim(self.disk.claim, self.rng.random()).expect("not too often"),
        };
        let tokens = past.tokens.len() as u64;
        let opening = Opening {
            prompt: self.checks.prompt().to_vec(),
            max_new: self.weather.max_new,
            vocab: toy::VOCAB,
            row_bytes: 8,
            kv_bytes: 8,
        };
        let tolerance = Tolerance {
            strategy: strategy(self.weather.level),
            salt: self.rng.random(),
            peer_wait: Duration::from_secs(30),
            resumable: true,
            replicas: self.replicas(),
            rebuild: self.weather.rebuild.and_then(named),
            witnessed: false,
        };
        let text = Box::new(Numbers {
            stop: self.weather.stop,
        });
        self.machine = Machine::resumed(opening, past, text, tolerance);
        self.checks.go_on(tokens, self.machine.epoch());
        self.running = true;
        let commands = self.machine.start();
        self.execute(commands);
    }
}
