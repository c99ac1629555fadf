//! What the session's actor does around the machine: it carries commands out, and feeds events.

use std::time::Duration;

use accel_inference::LayerRange;
use accel_p2p::PeerId;
use accel_p2p::wire::{SessionId, TensorFrame};
use rand::Rng;
use rand::seq::SliceRandom;

use super::messages::{Held, Message, Replay, Report, Step};
use super::storm::EXPIRY;
use super::weather::Millis;
use super::{Happening, Simulation, fixtures, toy};
use crate::error::{ErrorKind, Failure, MEMORY_IN_USE};
use crate::planner::Weighed;
use crate::session::event::{Command, Event, RouteStage, StageReport, Timer};
use crate::session::incoming;
use crate::session::machine::{PEER_WAITS, WAITS};
use crate::stage::NEXT_STAGE_LOST;

/// How long a call may go without an answer.
const CALL: Millis = 8_000;
/// How long it takes to find that nobody is there.
const DIAL: Millis = 300;
const STEP: Millis = 2_000;
const LEASES: Millis = 5_000;

/// A call that was not answered yet.
pub(super) struct Call {
    epoch: u64,
    stage: usize,
    ask: Ask,
}

/// What is asked of a stage.
#[derive(Debug, Clone, Copy)]
enum Ask {
    Prepare { keeps: bool },
    Commit { length: u64, donor: Option<PeerId> },
}

impl Simulation {
    pub(super) fn feed(&mut self, event: Event) {
        if !self.running {
            return;
        }
        match &event {
            Event::Journaled { index } => {
                self.disk.written(*index);
                self.checks.durable(*index);
            }
            Event::Emitted { index } => self.deliver_some(*index),
            _ => {}
        }
        let commands = self.machine.on(event);
        self.execute(commands);
    }

    pub(super) fn execute(&mut self, commands: Vec<Command>) {
        for command in commands {
            if self.tells {
                println!("       -> {command:?}");
            }
            self.check_replicas(&command);
            self.checks.command(&command, &self.machine);
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::JournalOpen => self.soon(Event::Opened),
            Command::JournalClaim { claim } => {
                self.disk.claim(claim);
                self.soon(Event::Opened);
            }
            Command::Plan {
                epoch, excluding, ..
            } => {
                let event = match self.route(&excluding) {
                    Some(route) => Event::Planned {
                        epoch,
                        route,
                        weighed: self.weighed(),
                    },
                    None => Event::NoPlan {
                        epoch,
                        failure: Failure::unavailable("no_peers", "too few peers", "wait"),
                    },
                };
                self.soon(event);
            }
            Command::Prepare {
                epoch,
                stage,
                keeps,
            } => self.call(epoch, stage, Ask::Prepare { keeps }),
            Command::Commit {
                epoch,
                stage,
                length,
                donor,
            } => self.call(epoch, stage, Ask::Commit { length, donor }),
            Command::Abort { epoch, stage } => self.end(stage.peer, &Message::Abort { epoch }),
            Command::Release { epoch, stage } => self.end(stage.peer, &Message::Release { epoch }),
            Command::Forward {
                epoch,
                step,
                position,
                sample,
                until,
                tokens,
            } => {
                self.unleash();
                let rows = tokens.into_iter().map(u64::from).collect();
                let first = self.index(self.machine.route_of(epoch)[0].peer);
                let step = Step {
                    epoch,
                    step,
                    position,
                    sample,
                    until,
                    rows,
                    claims: Vec::new(),
                };
                self.send(0, first, Message::Step(step));
            }
            Command::Replay {
                epoch,
                step,
                stage,
                position,
                rows,
                until,
            } => {
                let to = self.index(self.machine.route_of(epoch)[stage].peer);
                let replay = Replay {
                    epoch,
                    step,
                    position,
                    rows,
                    until,
                };
                self.send(0, to, Message::Replay(replay));
            }
            Command::Copy {
                epoch,
                step,
                donor,
                stage,
                position,
                rows,
            } => {
                let donor = self.machine.party(epoch, donor);
                let donor = donor.expect("a donor of the plan");
                let from = self.index(donor.peer);
                let copy = Replay {
                    epoch,
                    step,
                    position,
                    rows,
                    until: self.index(self.machine.route_of(epoch)[stage].peer),
                };
                self.send(0, from, Message::Copy(copy));
            }
            Command::JournalToken { index, drawn } => {
                self.disk.write(index, drawn.clone());
                self.replicate(drawn);
                let takes = self.rng.random_range(1..20);
                self.journaled_at = self.journaled_at.max(self.now + takes);
                self.later(self.journaled_at, Event::Journaled { index });
            }
            Command::Emit { index, text, .. } => {
                self.sent.push_back((index, text));
                let takes = match self.weather.slow_client {
                    true => self.rng.random_range(1..2_000),
                    false => self.rng.random_range(1..5),
                };
                self.later(self.now + takes, Event::Emitted { index });
            }
            Command::FindReplicas { excluding } => self.find_replicas(&excluding),
            Command::OpenReplica { peer, claim } => self.open_replica(peer, claim),
            Command::DropReplica { peer } => self.drop_replica(peer),
            Command::Arm(Timer::Replicas) => self.wait_for_replicas(),
            Command::Arm(timer @ Timer::Feed { .. }) => {
                self.later(self.now + STEP, Event::Timeout(timer));
            }
            Command::Arm(timer) => self.arm(timer),
            Command::Close(outcome) => self.closed(&outcome),
            Command::Reconnect { .. }
            | Command::Recovering { .. }
            | Command::Weighed { .. }
            | Command::Rebuilding { .. }
            | Command::Recovered
            | Command::Switching { .. }
            | Command::Moved
            | Command::MoveDropped => {}
        }
    }

    pub(super) fn soon(&mut self, event: Event) {
        let time = self.now + self.rng.random_range(1..10);
        self.later(time, event);
    }

    /// The machine that runs now is told something, unless another takes its place before.
    pub(super) fn later(&mut self, time: Millis, event: Event) {
        self.at(time, Happening::Event(self.process, event));
    }

    fn arm(&mut self, timer: Timer) {
        let second: Millis = 1_000;
        let within = match timer {
            Timer::Givers { .. } => 20,
            Timer::Commit { .. } => 10 * second,
            Timer::Memory { .. } => 30 * second / Millis::from(WAITS),
            Timer::Peers { .. } | Timer::Replicas => 30 * second / Millis::from(PEER_WAITS),
            Timer::Step { .. } | Timer::Feed { .. } => STEP,
            Timer::Pause { after, .. } => millis(after),
        };
        self.timer += 1;
        self.at(self.now + within, Happening::Timer(self.timer, timer));
    }

    pub(super) fn index(&self, peer: PeerId) -> usize {
        let mut all = 0..self.peers.len();
        let found = all.find(|index| fixtures::peer(*index as u8) == peer);
        found.expect("a peer of the simulation")
    }

    /// Any route over connected peers, as a planner might choose it.
    pub(super) fn route(&mut self, excluding: &[PeerId]) -> Option<Vec<RouteStage>> {
        let usable = |index: &usize| {
            let is_known = *index == 0 || self.now < self.heard[*index] + EXPIRY;
            let is_wanted = !excluding.contains(&fixtures::peer(*index as u8));
            is_known && is_wanted && self.connected[*index]
        };
        let mut order: Vec<usize> = (0..self.peers.len()).filter(usable).collect();
        order.shuffle(&mut self.rng);
        let mut route = Vec::new();
        let mut next = 0;
        for index in order {
            let most = self.weather.capacities[index].min(toy::LAYERS - next);
            if most == 0 {
                break;
            }
            route.push(RouteStage {
                peer: fixtures::peer(index as u8),
                layers: LayerRange::new(next, next + most),
            });
            next += most;
        }
        (next == toy::LAYERS).then_some(route)
    }

    /// What a planner might have weighed it against.
    fn weighed(&mut self) -> Option<Weighed> {
        self.rng.random_bool(0.5).then(|| Weighed {
            keep_ns: self
                .rng
                .random_bool(0.8)
                .then(|| self.rng.random_range(0..1_000)),
            anew_ns: self.rng.random_range(0..1_000),
        })
    }

    fn call(&mut self, epoch: u64, stage: usize, ask: Ask) {
        let party = self.machine.party(epoch, stage);
        let RouteStage { peer, layers } = party.expect("somebody of the plan");
        let to = self.index(peer);
        let call = self.order;
        self.calls.insert(call, Call { epoch, stage, ask });
        if !self.connected[to] {
            return self.at(
                self.now + 1,
                Happening::Answer(call, Err("peer_unreachable")),
            );
        }
        let message = match ask {
            Ask::Commit { length, donor } => Message::Commit {
                call,
                epoch,
                route: self.route_indices(epoch),
                length,
                donor: donor.map(|donor| self.index(donor)),
            },
            Ask::Prepare { keeps } => Message::Prepare {
                call,
                epoch,
                layers,
                keeps,
                only: stage >= self.machine.route_of(epoch).len(),
            },
        };
        self.at(self.now + CALL, Happening::Answer(call, Err("peer_silent")));
        self.send(0, to, message);
    }

    fn route_indices(&self, epoch: u64) -> Vec<usize> {
        let stages = self.machine.route_of(epoch).iter();
        stages.map(|stage| self.index(stage.peer)).collect()
    }

    /// The first answer counts.
    pub(super) fn answered(&mut self, call: u64, answer: Result<Held, &'static str>) {
        let Some(Call { epoch, stage, ask }) = self.calls.remove(&call) else {
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
        self.feed(event);
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
    fn end(&mut self, peer: PeerId, message: &Message) {
        let to = self.index(peer);
        for attempt in 0..3 {
            for time in self.arrivals(0, to) {
                let arrives = Happening::Arrive {
                    from: 0,
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
        if self.running && self.machine.is_held() {
            for (peer, epoch) in self.machine.leased() {
                let to = self.index(peer);
                self.send(0, to, Message::Renew { epoch });
            }
        }
        self.at(self.now + LEASES, Happening::RenewLeases);
    }

    /// Nobody is there. Whoever sent a step finds out now and then.
    pub(super) fn arrive_nowhere(&mut self, from: usize, to: usize, message: &Message) {
        let (Message::Step(Step { epoch, .. })
        | Message::Replay(Replay { epoch, .. })
        | Message::Copy(Replay { epoch, .. })) = message
        else {
            return;
        };
        if self.rng.random_range(0..10) < 3 {
            return;
        }
        let (time, epoch) = (self.now + DIAL, *epoch);
        if from != 0 {
            let code = NEXT_STAGE_LOST;
            return self.at(
                time,
                Happening::Report(from, Report::Failed { epoch, code }),
            );
        }
        let peer = fixtures::peer(to as u8);
        let failure = Failure::unavailable("peer_unreachable", "nobody is there", "wait");
        let unreachable = Event::Unreachable {
            epoch,
            peer,
            failure,
        };
        self.later(time, unreachable);
    }

    /// A frame of the tensor plane came, and means what it means to the real actor.
    pub(super) fn hear(&mut self, from: usize, report: Report) {
        let peers = |stages: &[RouteStage]| stages.iter().map(|stage| stage.peer).collect();
        let frame = frame(report);
        let route: Vec<PeerId> = peers(self.machine.route_of(frame.epoch()));
        let donors: Vec<PeerId> = peers(&self.machine.donors_of(frame.epoch()));
        let event = incoming::event(&route, &donors, fixtures::peer(from as u8), frame);
        if let Some(event) = event {
            self.feed(event);
        }
    }
}

fn frame(report: Report) -> TensorFrame {
    let session = SessionId([0; 16]);
    match report {
        Report::Token {
            epoch,
            step,
            position,
            token,
            ..
        } => TensorFrame::Token {
            session,
            epoch,
            step,
            position,
            token,
            logprob: 0.0,
            top: Vec::new(),
        },
        Report::Applied { epoch, step } => TensorFrame::Applied {
            session,
            epoch,
            step,
            length: 0,
        },
        Report::Failed { epoch, code } => {
            TensorFrame::failed(session, epoch, 0, code, "the stage says so")
        }
    }
}

fn millis(span: Duration) -> Millis {
    span.as_millis() as Millis
}
