//! What the session's actor does around the machine: it carries commands out, and feeds events.

use std::time::Duration;

use accel_inference::LayerRange;
use accel_p2p::PeerId;
use accel_p2p::wire::{SessionId, TensorFrame};
use rand::Rng;
use rand::seq::SliceRandom;

use super::calls::Ask;
use super::messages::{Message, Replay, Report, Step};
use super::storm::EXPIRY;
use super::weather::Millis;
use super::{Happening, Simulation, fixtures, toy};
use crate::error::Failure;
use crate::planner::Weighed;
use crate::session::event::{Command, Event, RouteStage, Timer};
use crate::session::incoming;
use crate::session::machine::{PEER_WAITS, WAITS};
use crate::session::recovery::wager::{Odds, Wager};
use crate::stage::NEXT_STAGE_LOST;

/// How long it takes to find that nobody is there.
const DIAL: Millis = 300;
const STEP: Millis = 2_000;

impl Simulation {
    /// The coordinator on a node is told something, if there is one.
    pub(super) fn feed(&mut self, at: usize, event: Event) {
        let Some(desk) = self.desks.get_mut(&at) else {
            return;
        };
        match &event {
            Event::Journaled { index } => {
                if !self.disks[at].is_of(desk.claim) {
                    // Another has the session: its journal does not take it.
                    return self.feed(at, Event::Deposed);
                }
                self.disks[at].written(*index);
                desk.conduct.durable(*index);
            }
            Event::Emitted { index } => {
                let index = *index;
                self.deliver_some(at, index);
            }
            _ => {}
        }
        let commands = self.desk(at).machine.on(event);
        self.execute(at, commands);
    }

    pub(super) fn execute(&mut self, at: usize, commands: Vec<Command>) {
        for command in commands {
            if self.tells {
                println!("     {at} -> {command:?}");
            }
            self.check_replicas(at, &command);
            let desk = self.desks.get_mut(&at);
            let desk = desk.unwrap_or_else(|| panic!("{command:?} after the end"));
            self.rules.command(&command, desk);
            self.obey(at, command);
        }
    }

    fn obey(&mut self, at: usize, command: Command) {
        match command {
            Command::Plan {
                epoch, excluding, ..
            } => self.plan(at, epoch, &excluding),
            Command::Prepare {
                epoch,
                stage,
                keeps,
            } => self.call(at, epoch, stage, Ask::Prepare { keeps }),
            Command::Commit {
                epoch,
                stage,
                length,
                donor,
            } => self.call(at, epoch, stage, Ask::Commit { length, donor }),
            Command::Abort { epoch, stage } => self.end(at, stage.peer, &Message::Abort { epoch }),
            Command::Release { epoch, stage } => {
                self.end(at, stage.peer, &Message::Release { epoch });
            }
            Command::Leave { epoch, stage } => self.end(at, stage.peer, &Message::Leave { epoch }),
            Command::Forward { .. } | Command::Replay { .. } | Command::Copy { .. } => {
                self.unleash();
                self.set_going(at, command);
            }
            Command::FindStandIns {
                epoch, excluding, ..
            } => self.find_stand_ins(at, epoch, &excluding),
            Command::FindReplicas { excluding } => self.find_replicas(at, &excluding),
            Command::OpenReplica { peer, claim } => self.open_replica(at, peer, claim),
            Command::DropReplica { peer } => self.drop_replica(at, peer),
            Command::Arm(Timer::Replicas) => self.wait_for_replicas(at),
            Command::Arm(timer @ Timer::Feed { .. }) => {
                self.later(at, self.now + STEP, Event::Timeout(timer));
            }
            Command::Arm(timer) => self.arm(at, timer),
            Command::Close(outcome) => self.closed(at, outcome),
            Command::JournalOpen
            | Command::JournalClaim { .. }
            | Command::JournalToken { .. }
            | Command::Emit { .. } => self.write(at, command),
            Command::Reconnect { .. }
            | Command::Recovering { .. }
            | Command::Weighed { .. }
            | Command::Wagered { .. }
            | Command::Rebuilding { .. }
            | Command::Recovered
            | Command::Switching { .. }
            | Command::Moved
            | Command::MoveDropped { .. } => {}
        }
    }

    fn plan(&mut self, at: usize, epoch: u64, excluding: &[PeerId]) {
        let event = match self.route(at, excluding) {
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
        self.soon(at, event);
    }

    /// Of what that is worth, anything may be believed.
    fn find_stand_ins(&mut self, at: usize, epoch: u64, excluding: &[PeerId]) {
        let Some(route) = self.route(at, excluding) else {
            return;
        };
        let asked = self.rng.random_range(0..10);
        let wager = Wager {
            stand_ins: Duration::from_millis(self.rng.random_range(0..10_000)),
            patience: Duration::from_secs(5),
            odds: Odds {
                asked,
                answered: self.rng.random_range(0..=asked),
            },
        };
        let found = Event::StandInsFound {
            epoch,
            route,
            wager,
        };
        self.soon(at, found);
    }

    /// To the journal, and to the client.
    fn write(&mut self, at: usize, command: Command) {
        match command {
            Command::JournalClaim { claim } => match self.disks[at].claim(claim) {
                true => self.soon(at, Event::Opened),
                false => self.soon(at, Event::Deposed),
            },
            Command::JournalToken { index, drawn } => {
                let takes = self.rng.random_range(1..20);
                self.replicate(at, drawn.clone());
                let (now, desk) = (self.now, self.desk(at));
                let claim = desk.claim;
                desk.journaled_at = desk.journaled_at.max(now + takes);
                let time = desk.journaled_at;
                if self.disks[at].is_of(claim) {
                    self.disks[at].write(index, drawn);
                }
                self.later(at, time, Event::Journaled { index });
            }
            Command::Emit { index, text, .. } => {
                self.desk(at).sent.push_back((index, text));
                let takes = match self.weather.slow_client {
                    true => self.rng.random_range(1..2_000),
                    false => self.rng.random_range(1..5),
                };
                self.later(at, self.now + takes, Event::Emitted { index });
            }
            _ => self.soon(at, Event::Opened),
        }
    }

    /// What the stages are to do.
    fn set_going(&mut self, at: usize, command: Command) {
        let machine = &self.desks[&at].machine;
        match command {
            Command::Forward {
                epoch,
                step,
                position,
                sample,
                until,
                tokens,
            } => {
                let first = machine.route_of(epoch)[0].peer;
                let step = Step {
                    coordinator: at,
                    epoch,
                    step,
                    position,
                    sample,
                    until,
                    rows: tokens.into_iter().map(u64::from).collect(),
                    claims: Vec::new(),
                };
                self.send(at, self.index(first), Message::Step(step));
            }
            Command::Replay {
                epoch,
                step,
                stage,
                position,
                rows,
                until,
            } => {
                let to = machine.route_of(epoch)[stage].peer;
                let replay = Replay {
                    epoch,
                    step,
                    position,
                    rows,
                    until,
                };
                self.send(at, self.index(to), Message::Replay(replay));
            }
            Command::Copy {
                epoch,
                step,
                donor,
                stage,
                position,
                rows,
            } => {
                let donor = machine.party(epoch, donor).expect("a donor of the plan");
                let copy = Replay {
                    epoch,
                    step,
                    position,
                    rows,
                    until: self.index(machine.route_of(epoch)[stage].peer),
                };
                self.send(at, self.index(donor.peer), Message::Copy(copy));
            }
            _ => {}
        }
    }

    pub(super) fn soon(&mut self, at: usize, event: Event) {
        let time = self.now + self.rng.random_range(1..10);
        self.later(at, time, event);
    }

    fn arm(&mut self, at: usize, timer: Timer) {
        let second: Millis = 1_000;
        let within = match timer {
            Timer::Givers { .. } => 20,
            Timer::Commit { .. } => 10 * second,
            Timer::Memory { .. } => 30 * second / Millis::from(WAITS),
            Timer::Peers { .. } | Timer::Replicas => 30 * second / Millis::from(PEER_WAITS),
            Timer::Step { .. } | Timer::Feed { .. } => STEP,
            Timer::Pause { after, .. } => millis(after),
        };
        let desk = self.desk(at);
        desk.timer += 1;
        let due = Happening::Timer(desk.process, desk.timer, timer);
        self.at(self.now + within, due);
    }

    pub(super) fn index(&self, peer: PeerId) -> usize {
        let mut all = 0..self.peers.len();
        let found = all.find(|index| fixtures::peer(*index as u8) == peer);
        found.expect("a peer of the simulation")
    }

    /// Any route over connected peers, as a planner might choose it.
    pub(super) fn route(&mut self, at: usize, excluding: &[PeerId]) -> Option<Vec<RouteStage>> {
        let view = &self.views[at];
        let usable = |index: &usize| {
            let is_known = *index == at || self.now < view.heard[*index] + EXPIRY;
            let is_wanted = !excluding.contains(&fixtures::peer(*index as u8));
            is_known && is_wanted && view.connected[*index]
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
            next_ns: 0,
        })
    }

    /// Nobody is there. Whoever sent a step finds out now and then.
    pub(super) fn arrive_nowhere(&mut self, from: usize, to: usize, message: &Message) {
        let (coordinator, epoch) = match message {
            Message::Step(step) => (step.coordinator, step.epoch),
            Message::Replay(replay) | Message::Copy(replay) => (from, replay.epoch),
            _ => return,
        };
        if self.rng.random_range(0..10) < 3 {
            return;
        }
        let time = self.now + DIAL;
        if from != coordinator {
            let code = NEXT_STAGE_LOST;
            let report = Report::Failed { epoch, code };
            return self.at(time, Happening::Report(from, coordinator, report));
        }
        let peer = fixtures::peer(to as u8);
        let failure = Failure::unavailable("peer_unreachable", "nobody is there", "wait");
        let unreachable = Event::Unreachable {
            epoch,
            peer,
            failure,
        };
        if self.desks.contains_key(&from) {
            self.later(from, time, unreachable);
        }
    }

    /// A frame of the tensor plane came, and means what it means to the real actor.
    pub(super) fn hear(&mut self, from: usize, at: usize, report: Report) {
        let Some(desk) = self.desks.get(&at) else {
            return;
        };
        if let Report::Moved { claim } = report {
            if claim == desk.claim {
                self.feed(at, Event::Deposed);
            }
            return;
        }
        let peers = |stages: &[RouteStage]| stages.iter().map(|stage| stage.peer).collect();
        let frame = frame(report);
        let route: Vec<PeerId> = peers(desk.machine.route_of(frame.epoch()));
        let donors: Vec<PeerId> = peers(&desk.machine.donors_of(frame.epoch()));
        let event = incoming::event(&route, &donors, fixtures::peer(from as u8), frame);
        if let Some(event) = event {
            self.feed(at, event);
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
        Report::Moved { .. } => unreachable!("no frame says that"),
        Report::Failed { epoch, code } => {
            TensorFrame::failed(session, epoch, 0, code, "the stage says so")
        }
    }
}

fn millis(span: Duration) -> Millis {
    span.as_millis() as Millis
}
