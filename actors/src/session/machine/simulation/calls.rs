//! Calls of coordinators: what they ask of stages, and what comes back; leases and endings as well.

use accel_p2p::PeerId;
use rand::Rng;

use super::messages::{Held, Message};
use super::weather::Millis;
use super::{Happening, Machine, Simulation};
use crate::error::{ErrorKind, Failure, MEMORY_IN_USE};
use crate::session::event::{Event, RouteStage, StageReport};

/// How long a call may go without an answer.
const CALL: Millis = 8_000;
/// How often leases are renewed.
const LEASES: Millis = 5_000;

/// A call that was not answered yet.
pub(super) struct Call {
    epoch: u64,
    stage: usize,
    ask: Ask,
}

/// What is asked of a stage.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    Prepare { keeps: bool },
    Commit { length: u64, donor: Option<PeerId> },
}

impl Simulation {
    pub(super) fn call(&mut self, at: usize, epoch: u64, stage: usize, ask: Ask) {
        let call = self.order;
        let desk = self.desk(at);
        let party = desk.machine.party(epoch, stage);
        let RouteStage { peer, layers } = party.expect("somebody of the plan");
        desk.calls.insert(call, Call { epoch, stage, ask });
        let machine = &self.desks[&at].machine;
        let to = self.index(peer);
        if !self.views[at].connected[to] {
            return self.at(
                self.now + 1,
                Happening::Answer(call, Err("peer_unreachable")),
            );
        }
        let message = match ask {
            Ask::Commit { length, donor } => Message::Commit {
                call,
                epoch,
                route: self.route_indices(machine, epoch),
                length,
                donor: donor.map(|donor| self.index(donor)),
            },
            Ask::Prepare { keeps } => Message::Prepare {
                call,
                epoch,
                layers,
                keeps,
                only: stage >= machine.route_of(epoch).len(),
                beside: machine.is_beside(epoch, stage).then(|| machine.epoch()),
            },
        };
        self.at(self.now + CALL, Happening::Answer(call, Err("peer_silent")));
        self.send(at, to, message);
    }

    fn route_indices(&self, machine: &Machine, epoch: u64) -> Vec<usize> {
        let stages = machine.route_of(epoch).iter();
        stages.map(|stage| self.index(stage.peer)).collect()
    }

    /// The first answer counts.
    pub(super) fn answered(&mut self, call: u64, answer: Result<Held, &'static str>) {
        let mut desks = self.desks.iter_mut();
        let asked = desks.find_map(|(at, desk)| Some((*at, desk.calls.remove(&call)?)));
        let Some((at, Call { epoch, stage, ask })) = asked else {
            return;
        };
        let event = match (answer, ask) {
            (Ok(_), Ask::Commit { .. }) => Event::Committed { epoch, stage },
            (Ok(held), Ask::Prepare { .. }) => Event::Prepared {
                epoch,
                stage,
                report: self.report(held),
            },
            (Err(code), _) => Event::Refused {
                epoch,
                stage,
                failure: self.refusal(code),
            },
        };
        self.feed(at, event);
    }

    /// Of speeds, anything may be measured, or nothing.
    fn report(&mut self, held: Held) -> StageReport {
        let Held { cached, outputs } = held;
        StageReport {
            cached,
            outputs,
            prefill_ns: self.rng.random_range(0..1_000),
            plane_bytes_s: self.rng.random_range(0..1_000_000_000),
            ..StageReport::default()
        }
    }

    fn refusal(&mut self, code: &'static str) -> Failure {
        let (kind, code) = match (code, self.rng.random_range(0..3)) {
            ("insufficient_memory", 0) => (ErrorKind::Overloaded, MEMORY_IN_USE),
            ("insufficient_memory", 1) => (ErrorKind::NotFound, "content_not_found"),
            (code, _) => (ErrorKind::Unavailable, code),
        };
        Failure::new(kind, code, "a peer refused", "wait")
    }

    /// An ending is told three times, since nobody says whether it was heard.
    pub(super) fn end(&mut self, at: usize, peer: PeerId, message: &Message) {
        let to = self.index(peer);
        for attempt in 0..3 {
            for time in self.arrivals(at, to) {
                let arrives = Happening::Arrive {
                    from: at,
                    to,
                    message: message.clone(),
                };
                self.at(time + attempt * 1_000, arrives);
            }
        }
    }

    pub(super) fn renew_leases(&mut self) {
        if self.is_over() {
            return;
        }
        let held = self.desks.iter().filter(|(_, desk)| desk.machine.is_held());
        let leased = held.flat_map(|(at, desk)| {
            let leased = desk.machine.leased().into_iter();
            leased.map(|(peer, epoch)| (*at, peer, epoch))
        });
        for (at, peer, epoch) in leased.collect::<Vec<_>>() {
            self.send(at, self.index(peer), Message::Renew { epoch });
        }
        self.at(self.now + LEASES, Happening::RenewLeases);
    }
}
