//! Interruptions: the coordinator crashes and is started again with its disk, or is stopped and hands
//! the session over, or the client's connection breaks, or the client comes back before that was
//! noticed. Each time the client comes back for what it has not got, and another machine goes on from
//! the disk; where others may have the session, that is on any node, and the coordinator before may
//! still be at work. Where peers have the journal, the coordinator may lose its disk as well.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::checks::Conduct;
use super::copies::Post;
use super::desk::Desk;
use super::journals::Disk;
use super::weather::Millis;
use super::{HOME, Happening, Machine, Numbers, Opening, Seen, Simulation, Tolerance};
use super::{named, strategy, toy};
use crate::error::{Failure, TOO_FEW_REPLICAS};
use crate::session::event::{Event, Outcome};
use crate::session::machine::{Past, next_claim, stopping};
use crate::session::record::Ended;

/// How long a node that stops waits for its sessions to be handed over.
const HAND_OVER: Millis = 3_000;
/// The client asks again after this.
const AGAIN: Millis = 1_000;

/// What stops a session for a while.
#[derive(Debug, Clone, Copy)]
pub(super) enum Interruption {
    Crash,
    Stop,
    ClientGone,
    TakenUp,
    /// The client goes away, and its coordinator does not hear of that, or late.
    Unnoticed,
}

impl Interruption {
    pub(super) fn any(rng: &mut StdRng) -> Self {
        [
            Self::Crash,
            Self::Stop,
            Self::ClientGone,
            Self::TakenUp,
            Self::Unnoticed,
        ][rng.random_range(0..5)]
    }
}

/// The client.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// The coordinator whose stream it reads.
    pub(super) listens: Option<u32>,
    /// Where that is, or was.
    home: usize,
    /// Whether it will come back.
    returns: bool,
    /// What it was told at the end.
    pub(super) told: Option<Outcome>,
}

impl Simulation {
    /// The client takes some of what is on its way, at most up to this token.
    pub(super) fn deliver_some(&mut self, at: usize, index: u64) {
        let sent = &self.desk(at).sent;
        let arrived = sent.iter().filter(|(sent, _)| *sent <= index).count();
        let taken = self.rng.random_range(0..=arrived);
        self.deliver(at, taken);
    }

    fn deliver(&mut self, at: usize, count: usize) {
        let sent: Vec<_> = self.desk(at).sent.drain(..count).collect();
        if self.serves(at) {
            for (index, text) in sent {
                self.rules.receive(index, &text);
            }
        }
    }

    fn deliver_part(&mut self, at: usize) {
        let all = self.desk(at).sent.len();
        let part = self.rng.random_range(0..=all);
        self.deliver(at, part);
    }

    fn deliver_all(&mut self, at: usize) {
        let all = self.desk(at).sent.len();
        self.deliver(at, all);
    }

    /// The machine has ended.
    pub(super) fn closed(&mut self, at: usize, outcome: Outcome) {
        let serves = self.serves(at);
        self.deliver_all(at);
        match &outcome {
            Outcome::Done { finish, .. } => self.write_end(at, Ended::Done(*finish)),
            Outcome::Failed(failure) => {
                let Failure { code, message, .. } = failure.clone();
                self.write_end(at, Ended::Failed(code, message));
            }
            Outcome::Moved(failure) => {
                let (claim, newest) = (self.desk(at).claim, self.newest_claim);
                assert!(newest > claim, "nobody is newer: {failure:?}");
            }
            Outcome::HandedOver(_) => {
                let tokens = self.desk(at).machine.tokens();
                assert!(self.others_with(at, tokens) > 0, "somebody has all");
                let next = self.desk(at).claim + 1;
                self.newest_claim = self.newest_claim.max(next);
                self.disks[at].settle(&mut self.rng);
                self.disks[at].keep(next).expect("nobody else had it");
            }
            Outcome::Suspended(failure) if failure.code == TOO_FEW_REPLICAS => {
                assert!(self.replicas() > 0, "{failure:?}");
            }
            Outcome::Suspended(_) => assert!(self.weather.interruptions > 0),
            Outcome::Cancelled => self.write_end(at, Ended::Cancelled),
        }
        self.desks.remove(&at);
        let is_stopped = match &outcome {
            Outcome::HandedOver(_) => true,
            Outcome::Suspended(failure) => *failure == stopping(),
            _ => false,
        };
        let may_lose_disk = is_stopped && self.others_may_have_it();
        if is_stopped {
            self.exit(at, may_lose_disk);
        }
        if !serves {
            return;
        }
        match outcome {
            Outcome::Done { .. } | Outcome::Failed(_) | Outcome::Cancelled => {
                self.client.told = Some(outcome);
            }
            Outcome::Moved(_) | Outcome::HandedOver(_) | Outcome::Suspended(_) => self.leave(),
        }
    }

    /// The outcome is written behind the tokens, unless another has the session now.
    fn write_end(&mut self, at: usize, ended: Ended) {
        let claim = self.desk(at).claim;
        if self.disks[at].is_of(claim) {
            self.disks[at].close(ended);
        }
    }

    /// The client hears nothing more, and will come back.
    fn leave(&mut self) {
        if let Some(at) = self.serving() {
            self.client.home = at;
            self.desk(at).sent.clear();
        }
        self.client.listens = None;
        self.client.returns = true;
        let back = self.now + self.rng.random_range(0..4_000);
        self.at(back, Happening::ClientReturns);
    }

    /// Whether nothing of the session follows.
    pub(super) fn is_over(&self) -> bool {
        self.desks.is_empty() && !self.client.returns
    }

    pub(super) fn interrupt(&mut self, how: Interruption) {
        let Some(at) = self.serving() else {
            return;
        };
        self.client.home = at;
        if let Interruption::Stop = how {
            self.later(at, self.now + HAND_OVER, Event::Suspend(stopping()));
            return self.feed(at, Event::HandOver);
        }
        self.deliver_part(at);
        match how {
            Interruption::Stop => {}
            Interruption::Crash => {
                self.coordinator_dies(at);
                self.exit(at, self.replicas() > 0);
            }
            Interruption::ClientGone => {
                self.leave();
                self.feed(at, Event::Cancel);
            }
            Interruption::TakenUp => {
                self.leave();
                self.feed(at, taken_up());
            }
            Interruption::Unnoticed => {
                self.leave();
                if self.rng.random() {
                    let notices = self.now + self.rng.random_range(0..8_000);
                    self.later(at, notices, Event::Cancel);
                }
            }
        }
    }

    /// With its node. It owes nobody anything, and leases run out.
    pub(super) fn coordinator_dies(&mut self, at: usize) {
        if !self.desks.contains_key(&at) {
            return;
        }
        if self.serves(at) {
            self.deliver_part(at);
            self.leave();
        }
        self.desks.remove(&at);
        self.disks[at].settle(&mut self.rng);
    }

    /// The coordinator's process is gone, and its disk, too, where others may have what it had.
    fn exit(&mut self, at: usize, may_lose_disk: bool) {
        self.crash(at);
        self.disks[at].settle(&mut self.rng);
        let others_have_it = self.others_with(at, self.rules.received) > 0;
        if may_lose_disk && others_have_it && self.rng.random() {
            self.disks[at] = Disk::default();
        }
        let back = self.now + self.rng.random_range(100..4_000);
        self.at(back, Happening::Return(at));
    }

    /// Where the client comes back to: to its coordinator, or to any other node.
    fn asked(&mut self) -> usize {
        match self.rng.random_bool(0.6) {
            true => self.rng.random_range(0..self.peers.len()),
            false => self.client.home,
        }
    }

    /// It asks for what follows on what it has.
    pub(super) fn client_returns(&mut self) {
        let at = self.asked();
        let peer = &self.peers[at];
        if !peer.up || peer.stalled_until > self.now {
            return self.at(self.now + AGAIN, Happening::ClientReturns);
        }
        if self.desks.contains_key(&at) {
            self.feed(at, taken_up());
        }
        self.disks[at].settle(&mut self.rng);
        if !self.gather(at) {
            // Nobody is to have it, or those who do cannot be asked yet.
            return self.at(self.now + AGAIN, Happening::ClientReturns);
        }
        self.client.returns = false;
        self.client.home = at;
        if !self.desks.is_empty() {
            self.rules.see(Seen::Rivals);
        }
        self.take_up(at);
    }

    fn take_up(&mut self, at: usize) {
        self.processes += 1;
        let process = self.processes;
        let disk = &self.disks[at];
        let ended = disk.ended().cloned();
        let chance = u16::from(self.rng.random::<u8>()) << 8 | process as u16;
        let past = Past {
            tokens: disk.tokens().to_vec(),
            seen: self.rules.received,
            claim: next_claim(disk.newest(), chance).expect("not too often"),
            ended,
        };
        let (tokens, claim) = (past.tokens.clone(), past.claim);
        self.newest_claim = self.newest_claim.max(claim);
        let text = Box::new(Numbers {
            stop: self.weather.stop,
        });
        let machine = Machine::resumed(self.opening(), past, text, self.tolerance(true));
        let conduct = Conduct::resumed(self.rules.received, tokens.len() as u64, machine.epoch());
        let mut desk = Desk::new(process, claim, machine, conduct);
        desk.post = Post::of(tokens);
        let commands = desk.machine.start();
        self.desks.insert(at, desk);
        self.client.listens = Some(process);
        self.execute(at, commands);
    }

    pub(super) fn opening(&self) -> Opening {
        Opening {
            prompt: self.rules.prompt().to_vec(),
            max_new: self.weather.max_new,
            vocab: toy::VOCAB,
            row_bytes: 8,
            kv_bytes: 8,
        }
    }

    pub(super) fn tolerance(&mut self, is_resumed: bool) -> Tolerance {
        let replicas = self.replicas();
        Tolerance {
            strategy: strategy(self.weather.level),
            salt: self.rng.random(),
            peer_wait: Duration::from_secs(30),
            resumable: is_resumed || self.weather.interruptions > 0 || replicas > 0,
            replicas,
            rebuild: self.weather.rebuild.and_then(named),
            witnessed: false,
        }
    }

    /// The request comes to a node that has nothing of it.
    pub(super) fn ask(&mut self) {
        let text = Box::new(Numbers {
            stop: self.weather.stop,
        });
        let tolerance = self.tolerance(false);
        let machine = Machine::new(self.opening(), Vec::new(), text, tolerance);
        let desk = Desk::new(self.processes, 0, machine, Conduct::default());
        self.desks.insert(HOME, desk);
        self.client.listens = Some(self.processes);
        self.disks[HOME].open();
        let route = self.route(HOME, &[]);
        let desk = self.desk(HOME);
        desk.machine.route = route.expect("there is room for all layers");
        let commands = desk.machine.start();
        self.execute(HOME, commands);
    }
}

fn taken_up() -> Event {
    Event::Suspend(Failure::unavailable("session_taken_up", "another", "wait"))
}
