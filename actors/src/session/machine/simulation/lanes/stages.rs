//! The way to the stages: commands of the machines, calls, messages, crashes.

use std::time::Duration;

use accel_p2p::PeerId;
use rand::Rng;
use rand::seq::SliceRandom;

use super::super::messages::{Effect, Held, Message, Replay, Report, Step};
use super::super::peer::Peer;
use super::{Happening, Lanes, Millis, NONCE, Run, STORM, fixtures, stage, toy};
use crate::error::Failure;
use crate::session::event::{Command, Event, Outcome, RouteStage, StageReport, Timer};
use crate::session::jury::Lane;

/// How long a call may go without an answer.
const CALL: Millis = 8_000;
const DIAL: Millis = 300;
/// More positions than any of these sessions has.
const LIMIT: u64 = 1_000;

impl Lanes {
    pub(super) fn obey_all(&mut self, lane: Lane, commands: Vec<Command>) {
        for command in commands {
            if self.tells {
                println!("       {lane:?} -> {command:?}");
            }
            self.obey(lane, command);
        }
    }

    fn run_of(&mut self, lane: Lane) -> &mut Run {
        self.runs.get_mut(&lane).expect("the lane runs")
    }

    fn obey(&mut self, lane: Lane, command: Command) {
        let number = self.run_of(lane).number;
        match command {
            Command::JournalOpen | Command::JournalClaim { .. } => self.soon(number, Event::Opened),
            Command::Plan {
                epoch, excluding, ..
            } => self.plan(lane, epoch, &excluding),
            Command::Prepare { .. }
            | Command::Commit { .. }
            | Command::Abort { .. }
            | Command::Release { .. } => self.place(lane, command),
            Command::Forward { .. } | Command::Replay { .. } => self.compute(lane, command),
            Command::JournalToken { index, .. } => self.soon(number, Event::Journaled { index }),
            Command::Emit { index, drawn, .. } => {
                if lane == Lane::Primary {
                    assert_eq!(self.expected.get(index as usize), Some(&drawn.token));
                    assert_eq!(index, self.emitted, "in order, once");
                    self.emitted += 1;
                }
                self.soon(number, Event::Emitted { index });
            }
            Command::Arm(timer) => self.arm(lane, timer),
            Command::Close(outcome) => self.closed(lane, outcome),
            Command::Copy { .. }
            | Command::FindStandIns { .. }
            | Command::Leave { .. }
            | Command::Wagered { .. }
            | Command::FindReplicas { .. }
            | Command::OpenReplica { .. }
            | Command::DropReplica { .. } => panic!("not in a witnessed session: {command:?}"),
            Command::Reconnect { .. }
            | Command::Recovering { .. }
            | Command::Weighed { .. }
            | Command::Rebuilding { .. }
            | Command::Recovered
            | Command::Switching { .. }
            | Command::Moved
            | Command::MoveDropped { .. } => {}
        }
    }

    fn place(&mut self, lane: Lane, command: Command) {
        let run = self.run_of(lane);
        let number = run.number;
        match command {
            Command::Prepare {
                epoch,
                stage,
                keeps,
            } => {
                let RouteStage { peer, layers } = run.machine.route[stage].clone();
                let message = |call| Message::Prepare {
                    call,
                    epoch,
                    layers,
                    keeps,
                    only: false,
                    beside: None,
                };
                self.call(lane, peer, (epoch, stage, true), message);
            }
            Command::Commit {
                epoch,
                stage,
                length,
                donor,
            } => {
                assert_eq!(donor, None, "nobody is given rows of a KV cache");
                let peer = run.machine.route[stage].peer;
                let route = self.nodes(lane);
                let message = |call| Message::Commit {
                    call,
                    epoch,
                    route,
                    length,
                    donor: None,
                };
                self.call(lane, peer, (epoch, stage, false), message);
            }
            Command::Abort { epoch, stage } => {
                self.end(number, stage.peer, &Message::Abort { epoch });
            }
            Command::Release { epoch, stage } => {
                self.end(number, stage.peer, &Message::Release { epoch });
            }
            other => unreachable!("{other:?} places nothing"),
        }
    }

    fn compute(&mut self, lane: Lane, command: Command) {
        let number = self.run_of(lane).number;
        match command {
            Command::Forward {
                epoch,
                step,
                position,
                sample,
                until,
                tokens,
            } => {
                // The lane beside the first does not know where the answer ends.
                let known = self.prompt.iter().chain(&self.expected).chain(&[toy::END]);
                assert!(known.skip(position as usize).take(tokens.len()).eq(&tokens));
                let first = self.nodes(lane)[0];
                let step = Step {
                    coordinator: 0,
                    epoch,
                    step,
                    position,
                    sample,
                    until,
                    rows: tokens.into_iter().map(u64::from).collect(),
                    claims: Vec::new(),
                };
                self.send(number, 0, first, Message::Step(step));
            }
            Command::Replay {
                epoch,
                step,
                stage,
                position,
                rows,
                until,
            } => {
                let to = self.nodes(lane)[stage];
                let replay = Replay {
                    epoch,
                    step,
                    position,
                    rows,
                    until,
                };
                self.send(number, 0, to, Message::Replay(replay));
            }
            other => unreachable!("{other:?} computes nothing"),
        }
    }

    pub(super) fn arm(&mut self, lane: Lane, timer: Timer) {
        let within = match timer {
            Timer::Givers { .. } => 20,
            Timer::Commit { .. } => 10_000,
            Timer::Memory { .. } => 1_500,
            Timer::Peers { .. } | Timer::Replicas => 500,
            Timer::Step { .. } | Timer::Feed { .. } => 2_000,
            Timer::Pause { after, .. } => millis(after),
        };
        let run = self.run_of(lane);
        run.timer += 1;
        let (number, count) = (run.number, run.timer);
        self.at(self.now + within, Happening::Timer(number, count, timer));
    }

    fn nodes(&self, lane: Lane) -> Vec<usize> {
        let stages = self
            .runs
            .get(&lane)
            .expect("the lane runs")
            .machine
            .route
            .iter();
        stages.map(|stage| self.node(stage.peer)).collect()
    }

    pub(super) fn node(&self, peer: PeerId) -> usize {
        let mut all = 1..self.up.len();
        let found = all.find(|node| fixtures::peer(*node as u8) == peer);
        found.expect("a node of the simulation")
    }

    /// Along the cuts, on nodes that no other lane has, and that did not lie.
    fn plan(&mut self, lane: Lane, epoch: u64, excluding: &[PeerId]) {
        let others = self.routes.iter().filter(|(of, _)| **of != lane);
        let taken: Vec<usize> = match lane {
            Lane::Third => self.partial.clone(),
            _ => others.flat_map(|(_, nodes)| nodes.clone()).collect(),
        };
        let is_free = |node: &usize| {
            let is_wanted = !excluding.contains(&fixtures::peer(*node as u8));
            let is_trusted = !self.quarantined.contains(node);
            self.up[*node] && is_wanted && is_trusted && !taken.contains(node)
        };
        let mut nodes: Vec<usize> = (1..self.up.len()).filter(is_free).collect();
        nodes.shuffle(&mut self.rng);
        nodes.truncate(self.cuts.len());
        let number = self.run_of(lane).number;
        if nodes.len() < self.cuts.len() {
            let failure = Failure::unavailable("too_few_peers", "too few", "wait");
            return self.soon(number, Event::NoPlan { epoch, failure });
        }
        let pairs = nodes.iter().zip(&self.cuts);
        let route = pairs.map(|(node, layers)| stage(*node, *layers)).collect();
        if lane != Lane::Third {
            self.routes.insert(lane, nodes);
        }
        let weighed = None;
        let planned = Event::Planned {
            epoch,
            route,
            weighed,
        };
        self.soon(number, planned);
    }

    fn call(
        &mut self,
        lane: Lane,
        peer: PeerId,
        ask: (u64, usize, bool),
        message: impl FnOnce(u64) -> Message,
    ) {
        let (node, call) = (self.node(peer), self.order);
        let run = self.run_of(lane);
        run.calls.insert(call, ask);
        let number = run.number;
        if !self.up[node] {
            let answer = Happening::Answer(number, call, Err("peer_unreachable"));
            return self.at(self.now + DIAL, answer);
        }
        self.at(
            self.now + CALL,
            Happening::Answer(number, call, Err("peer_silent")),
        );
        self.send(number, 0, node, message(call));
    }

    pub(super) fn answered(&mut self, number: u64, call: u64, answer: Result<Held, &'static str>) {
        let Some(lane) = self.lane(number) else {
            return;
        };
        let Some((epoch, stage, is_prepare)) = self.run_of(lane).calls.remove(&call) else {
            return;
        };
        let event = match answer {
            Ok(held) if is_prepare => Event::Prepared {
                epoch,
                stage,
                report: StageReport {
                    cached: held.cached,
                    outputs: held.outputs,
                    ..StageReport::default()
                },
            },
            Ok(_) => Event::Committed { epoch, stage },
            Err(code) => Event::Refused {
                epoch,
                stage,
                failure: Failure::unavailable(code, "refused", "wait"),
            },
        };
        self.feed(lane, event);
    }

    fn end(&mut self, number: u64, peer: PeerId, message: &Message) {
        let node = self.node(peer);
        for attempt in 0..3 {
            let time = self.now + 2 + attempt * 1_000;
            self.at(time, Happening::Arrive(number, 0, node, message.clone()));
        }
    }

    fn rages(&self) -> bool {
        self.lossy && self.now < STORM
    }

    fn send(&mut self, number: u64, from: usize, to: usize, message: Message) {
        let rages = self.rages();
        if rages && self.rng.random_range(0..100) < 2 {
            return;
        }
        let copies = if rages && self.rng.random_range(0..100) < 5 {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let usual = self.now + self.rng.random_range(1..=5);
            let last = self.arrived.entry((number, from, to)).or_default();
            *last = usual.max(*last);
            let time = *last;
            self.at(time, Happening::Arrive(number, from, to, message.clone()));
        }
    }

    pub(super) fn arrive(&mut self, number: u64, from: usize, to: usize, message: Message) {
        if !self.up[to] {
            return;
        }
        let (liar, now) = (self.liar, self.now);
        let seat = self.seats.entry((number, to)).or_insert_with(|| {
            let mut peer = Peer::new(to, LIMIT, true);
            peer.nonce = Some(NONCE);
            peer.lie = liar
                .filter(|(node, ..)| *node == to)
                .map(|(_, lie, share)| (lie, share));
            peer.dice ^= number << 8;
            peer
        });
        seat.expire(now);
        let effects = seat.take(from, message, now, false);
        self.carry_out(number, to, effects);
    }

    pub(super) fn carry_out(&mut self, number: u64, node: usize, effects: Vec<Effect>) {
        for effect in effects {
            let (now, next) = (self.now, self.rng.random_range(1..=5));
            match effect {
                Effect::Answer(call, answer) => {
                    self.at(now + next, Happening::Answer(number, call, answer));
                }
                Effect::Prepare { call, epoch } => {
                    let life = self.seats[&(number, node)].life;
                    let prepared = Happening::Prepared(number, node, life, call, epoch);
                    self.at(now + 10 * next, prepared);
                }
                Effect::Compute(finished) => {
                    let last = self.arrived.entry((number, node, node)).or_default();
                    *last = (now + 10).max(*last);
                    let time = *last;
                    self.at(time, Happening::Finished(number, node, finished));
                }
                Effect::Send(to, message) => self.send(number, node, to, message),
                Effect::Report(_, report) => {
                    self.at(now + next, Happening::Report(number, node, report))
                }
            }
        }
    }

    pub(super) fn crash(&mut self, node: usize) {
        if !std::mem::replace(&mut self.up[node], false) {
            return;
        }
        for ((_, of), seat) in &mut self.seats {
            if *of == node {
                seat.crash();
            }
        }
        let numbers: Vec<u64> = self.runs.values().map(|run| run.number).collect();
        for number in numbers {
            self.soon(number, Event::PeerLost(fixtures::peer(node as u8)));
        }
        let back = self.now + self.rng.random_range(100..8_000);
        self.at(back, Happening::Return(node));
    }

    pub(super) fn come_back(&mut self, node: usize) {
        self.up[node] = true;
        for ((_, of), seat) in &mut self.seats {
            if *of == node {
                seat.up = true;
            }
        }
        let numbers: Vec<u64> = self.runs.values().map(|run| run.number).collect();
        for number in numbers {
            self.soon(number, Event::PeerHeard(fixtures::peer(node as u8)));
        }
    }

    pub(super) fn renew(&mut self) {
        if self.outcome.is_some() {
            return;
        }
        let lanes: Vec<Lane> = self.runs.keys().copied().collect();
        for lane in lanes {
            let run = self.run_of(lane);
            let (number, epoch, is_held) = (run.number, run.machine.epoch(), run.machine.is_held());
            for node in self.nodes(lane).into_iter().filter(|_| is_held) {
                self.send(number, 0, node, Message::Renew { epoch });
            }
        }
        self.at(self.now + 5_000, Happening::Renew);
    }

    fn closed(&mut self, lane: Lane, outcome: Outcome) {
        self.runs.remove(&lane);
        match (lane, outcome) {
            (Lane::Primary, outcome) => {
                self.outcome = Some(outcome);
                for other in [Lane::Shadow, Lane::Third] {
                    self.cancel(other);
                }
            }
            (_, Outcome::Done { .. } | Outcome::Cancelled) => {}
            (Lane::Third, _) if self.jury.third_is_gone().is_empty() => {}
            (_, Outcome::Failed(failure)) => self.feed(Lane::Primary, Event::GiveUp(failure)),
            (_, outcome) => panic!("a lane beside the first ended: {outcome:?}"),
        }
    }

    pub(super) fn cancel(&mut self, lane: Lane) {
        if let Some(run) = self.runs.get(&lane) {
            let number = run.number;
            self.soon(number, Event::Cancel);
        }
    }

    /// Whether what a stage reports was meant for the lane at all.
    pub(super) fn at_of(&self, lane: Lane, from: usize) -> Option<usize> {
        self.nodes(lane).iter().position(|node| *node == from)
    }

    /// What the token of a position is, in a run without any fault.
    pub(super) fn is_true(&self, position: u64, token: u32) -> bool {
        let index = (position as usize).saturating_sub(self.prompt.len());
        match self.expected.get(index) {
            Some(expected) => *expected == token,
            // The end is no token of the answer, and nothing is known of what is behind it.
            None => index > self.expected.len() || token == toy::END,
        }
    }
}

/// What a report is, as an event of the lane.
pub(super) fn failed(
    nodes: &[usize],
    at: usize,
    report: &Report,
    peer: impl Fn(usize) -> PeerId,
) -> Option<Event> {
    use crate::session::recovery::FaultKind;
    use crate::stage::BOUNDARY_DISPUTED;
    let Report::Failed { epoch, code } = report else {
        return None;
    };
    let failure = Failure::unavailable(*code, "the stage says so", "wait");
    let before = at.checked_sub(1).map(|before| nodes[before]);
    Some(match before.filter(|_| *code == BOUNDARY_DISPUTED) {
        Some(before) => Event::Distrusted {
            epoch: *epoch,
            peers: vec![peer(before), peer(nodes[at])],
            kind: FaultKind::BoundaryDisputed,
            failure,
        },
        None => Event::StepFailed {
            epoch: *epoch,
            culprit: Some(peer(nodes[at])),
            failure,
        },
    })
}

fn millis(span: Duration) -> Millis {
    span.as_millis() as Millis
}
