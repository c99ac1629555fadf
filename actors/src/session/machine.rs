//! The session machine: pure, so that every order of events can be tried out.
//!
//! ```text
//! Opening ─► Placing ─► Committing ─► Running ─► Draining ─► Ended
//!              ▲ ▲ │        │            │
//!              │ ├─┴────────┘  refused or lost meanwhile: another route, new epoch
//!              │ └─ Waiting    for memory that others hold, or for peers: for a bounded time
//!              └─── Pausing ◄────────────┘  a fault: as the recovery strategy decides
//! ```
//! From any of them but the last two to HandingOver, when the node stops.
//!
//! `sent` counts the tokens (prompt, then answer) that all stages of the live epoch have or were
//! sent. A new epoch starts at what all of them keep, at zero if that is nothing; before, some may be
//! fed what only they lack (`rebuilding.rs`).

mod distrusting;
#[cfg(test)]
pub(super) mod fixtures;
mod handing_over;
mod moving;
mod placement;
mod racing;
mod rebuilding;
mod recovering;
mod replicating;
mod resuming;
#[cfg(test)]
mod simulation;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use accel_p2p::PeerId;

use super::event::{Command, Drawn, Event, Outcome, RouteStage, StageReport, Timer};
use super::rebuild::Feed;
use super::text::TextPipe;
use crate::error::Failure;
use crate::request::FinishReason;
pub(crate) use handing_over::stopping;
use moving::Move;
pub(crate) use placement::{PEER_WAITS, WAITS};
pub(crate) use recovering::Tolerance;
use recovering::{Recovery, Then};
pub(crate) use replicating::REPLICAS;
use replicating::Replication;
pub(crate) use resuming::{Past, claim_of, next_claim};
pub(crate) use steps::CHUNK;
use steps::{InFlight, UNREAD_TOKENS};

/// What a session is, besides its tokens.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) prompt: Vec<u32>,
    /// The longest answer.
    pub(crate) max_new: u64,
    /// Token ids are below this.
    pub(crate) vocab: u32,
    /// Bytes that a position takes between stages.
    pub(crate) row_bytes: u64,
    /// Bytes that it takes in the KV cache of a layer; 0 where that is not known.
    pub(crate) kv_bytes: u64,
}

#[derive(Debug)]
enum Phase {
    Opening,
    Planning,
    Waiting,
    Placing { ready: Vec<bool> },
    Committing { live: Vec<bool> },
    Running,
    Pausing(Then),
    HandingOver,
    Draining(Outcome),
    Ended,
}

/// See the module.
pub(crate) struct Machine {
    opening: Opening,
    text: Box<dyn TextPipe>,
    tolerance: Tolerance,
    phase: Phase,
    route: Vec<RouteStage>,
    /// The route over which it last ran.
    ran_over: Vec<RouteStage>,
    /// Whoever may hold something of the session, in the route or not: each is told when that ends.
    holders: Vec<RouteStage>,
    /// Of these, whoever is not in the route and served layers that another stage has now: with
    /// the number of that stage.
    givers: Vec<(RouteStage, usize)>,
    /// Whether these have a moment to say what they can give.
    waits_for_givers: bool,
    /// Whether anybody was ever given a step of it, as far as this machine knows.
    has_computed: bool,
    reports: BTreeMap<usize, StageReport>,
    /// Peers that refused, until everyone may be asked anew.
    excluded: Vec<PeerId>,
    recovery: Recovery,
    /// Whether somebody lied: what stages keep may come of it, until the next token.
    distrusts: bool,
    replication: Replication,
    placements: u32,
    waits: u32,
    refusal: Option<Failure>,
    epoch: u64,
    /// The newest epoch that any stage was asked for.
    newest: u64,
    /// A route that is got ready while the session runs.
    moving: Option<Move>,
    /// For whom stand-ins are looked for, while the present route may still answer.
    doubted: Option<PeerId>,
    /// What peers had under an epoch that have something else of the new route.
    left_behind: Vec<(u64, RouteStage)>,
    /// Whether the session moved behind the last token.
    has_switched: bool,
    /// Stages that are live before the others of their epoch, and the positions that they have.
    arrived: BTreeMap<usize, u64>,
    step: u64,
    sent: usize,
    /// What some stages are fed before all go on.
    feed: Option<Feed>,
    in_flight: VecDeque<InFlight>,
    answer: Vec<u32>,
    /// Tokens that were not emitted yet, with their text.
    unemitted: VecDeque<(u64, String, Drawn)>,
    /// How many tokens are durable.
    journaled: u64,
    /// How many tokens the client has taken.
    emitted: u64,
    /// What was there already of a session that is gone on with.
    resumed: Option<resuming::Resumed>,
    out: Vec<Command>,
}

impl Machine {
    /// A session that is to run over `route`. The first commands come from [`Self::start`].
    pub(crate) fn new(
        opening: Opening,
        route: Vec<RouteStage>,
        text: Box<dyn TextPipe>,
        tolerance: Tolerance,
    ) -> Self {
        Self {
            opening,
            text,
            tolerance,
            phase: Phase::Opening,
            route,
            holders: Vec::new(),
            givers: Vec::new(),
            waits_for_givers: false,
            ran_over: Vec::new(),
            has_computed: false,
            reports: BTreeMap::new(),
            excluded: Vec::new(),
            recovery: Recovery::default(),
            distrusts: false,
            replication: Replication::new(tolerance.replicas),
            placements: 0,
            waits: 0,
            refusal: None,
            epoch: 0,
            newest: 0,
            moving: None,
            doubted: None,
            left_behind: Vec::new(),
            has_switched: false,
            arrived: BTreeMap::new(),
            step: 0,
            sent: 0,
            feed: None,
            in_flight: VecDeque::new(),
            answer: Vec::new(),
            unemitted: VecDeque::new(),
            journaled: 0,
            emitted: 0,
            resumed: None,
            out: Vec::new(),
        }
    }

    /// The first commands.
    pub(crate) fn start(&mut self) -> Vec<Command> {
        match &self.resumed {
            None => vec![Command::JournalOpen],
            Some(resumed) if !resumed.is_over => {
                let claim = resumed.claim;
                vec![Command::JournalClaim { claim }]
            }
            Some(_) => self.on(Event::Opened),
        }
    }

    /// Takes in what happened; says what is to be done, in order.
    pub(crate) fn on(&mut self, event: Event) -> Vec<Command> {
        if !matches!(self.phase, Phase::Ended) {
            self.dispatch(event);
        }
        std::mem::take(&mut self.out)
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Opened => self.on_opened(),
            Event::Planned {
                epoch,
                route,
                weighed,
            } => self.on_planned(epoch, route, weighed),
            Event::MoveOffered { route } => self.on_move_offered(route),
            Event::NoPlan { epoch, failure } => self.on_no_plan(epoch, failure),
            Event::StandInsFound {
                epoch,
                route,
                wager,
            } => self.on_stand_ins_found(epoch, route, &wager),
            Event::Prepared {
                epoch,
                stage,
                report,
            } => self.on_prepared(epoch, stage, report),
            Event::Committed { epoch, stage } => self.on_committed(epoch, stage),
            Event::Refused {
                epoch,
                stage,
                failure,
            } => self.on_refused(epoch, stage, failure),
            Event::Applied { epoch, step, stage } => self.on_applied(epoch, step, stage),
            Event::Token {
                epoch,
                step,
                position,
                drawn,
            } => {
                self.on_token(epoch, step, position, drawn);
            }
            Event::StepFailed {
                epoch,
                culprit,
                failure,
            } => self.on_step_failed(epoch, culprit, failure),
            Event::Unreachable {
                epoch,
                peer,
                failure,
            } => self.on_unreachable(epoch, peer, failure),
            Event::Distrusted {
                epoch,
                peers,
                kind,
                failure,
            } => self.on_distrusted(epoch, &peers, kind, failure),
            Event::GiveUp(failure) => self.give_up(failure),
            Event::Journaled { index } => self.on_journaled(index),
            Event::ReplicasFound { peers } => self.on_replicas_found(peers),
            Event::Replicated { peer, tokens } => self.on_replicated(peer, tokens),
            Event::ReplicaLost { peer, failure } => self.on_replica_lost(peer, &failure),
            Event::JournalFailed(failure) => self.fail(failure),
            Event::Emitted { index } => self.on_emitted(index),
            Event::PeerLost(peer) => self.on_peer_lost(peer),
            Event::PeerHeard(peer) => self.on_peer_heard(peer),
            Event::Timeout(timer) => self.on_timeout(timer),
            Event::Cancel => self.on_cancel(),
            Event::Suspend(failure) => self.suspend(failure),
            Event::HandOver => self.on_hand_over(),
            Event::Deposed => self.depose(),
        }
    }

    fn take_token(&mut self, drawn: Drawn) {
        let index = self.answer.len() as u64;
        let piece = self.text.push(drawn.token);
        self.answer.push(drawn.token);
        self.out.push(Command::JournalToken {
            index,
            drawn: drawn.clone(),
        });
        self.unemitted.push_back((index, piece.text, drawn));
        if piece.stopped {
            self.finish(FinishReason::Stop, String::new());
        } else if self.answer.len() as u64 >= self.opening.max_new {
            let text_tail = self.text.finish();
            self.finish(FinishReason::Length, text_tail);
        } else {
            self.forward();
        }
    }

    fn on_journaled(&mut self, index: u64) {
        // One append may make several tokens durable; they leave in order all the same.
        self.journaled = self.journaled.max(index + 1);
        self.emit_durable();
    }

    /// Emits what is durable, as far as the client keeps up: of a session that is gone on with,
    /// that may be thousands of tokens at once.
    fn emit_durable(&mut self) {
        let durable = self.journaled.min(self.replication.durable());
        let end = durable.min(self.emitted + UNREAD_TOKENS);
        while self
            .unemitted
            .front()
            .is_some_and(|(index, ..)| *index < end)
        {
            if let Some((index, text, drawn)) = self.unemitted.pop_front() {
                self.out.push(Command::Emit { index, text, drawn });
            }
        }
    }

    fn on_emitted(&mut self, index: u64) {
        self.emitted = self.emitted.max(index + 1);
        self.replication.made_progress();
        self.emit_durable();
        match self.phase {
            Phase::Running => self.forward(),
            Phase::Draining(_) => self.close_when_drained(),
            _ => {}
        }
    }

    /// The answer is complete: the stages are free at once, the client gets what is on its way.
    fn finish(&mut self, finish: FinishReason, text_tail: String) {
        self.release_all();
        self.phase = Phase::Draining(Outcome::Done {
            finish,
            completion_tokens: self.answer.len() as u64,
            text_tail,
        });
        self.close_when_drained();
    }

    fn close_when_drained(&mut self) {
        if self.emitted < self.answer.len() as u64 {
            return;
        }
        if let Phase::Draining(outcome) = std::mem::replace(&mut self.phase, Phase::Ended) {
            self.out.push(Command::Close(outcome));
        }
    }

    /// Nobody is to hold anything of the session any more.
    fn release_all(&mut self) {
        self.moving = None;
        self.left_behind.clear();
        let epoch = self.newest;
        for stage in std::mem::take(&mut self.holders) {
            self.out.push(Command::Release { epoch, stage });
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.close(Outcome::Failed(failure));
    }

    fn close(&mut self, outcome: Outcome) {
        self.release_all();
        self.phase = Phase::Ended;
        self.out.push(Command::Close(outcome));
    }

    fn on_timeout(&mut self, timer: Timer) {
        match (timer, &self.phase) {
            (Timer::Commit { epoch }, Phase::Committing { .. }) if epoch == self.epoch => {
                self.on_commit_timeout();
            }
            (Timer::Givers { epoch }, Phase::Placing { .. }) if epoch == self.epoch => {
                self.commit_when_ready(true);
            }
            (Timer::Memory { epoch } | Timer::Peers { epoch }, Phase::Waiting)
                if epoch == self.epoch =>
            {
                self.place_again(false);
            }
            (Timer::Step { epoch, step, .. }, Phase::Running) if epoch == self.epoch => {
                self.on_step_timeout(step);
            }
            (Timer::Feed { epoch, step }, _) => self.on_feed_timeout(epoch, step),
            (Timer::Replicas, _) => self.look_for_replicas(),
            (Timer::Pause { epoch, .. }, Phase::Pausing(then)) if epoch == self.epoch => {
                let then = *then;
                self.after_pause(then);
            }
            _ => {}
        }
    }

    /// The newest plan.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The route over which it runs, or last ran.
    pub(crate) fn ran_over(&self) -> &[RouteStage] {
        &self.ran_over
    }

    /// Whether anybody may hold something of it.
    pub(crate) fn is_held(&self) -> bool {
        !self.holders.is_empty()
    }

    /// Whether the stages of its route are reserved for it.
    fn holds_stages(&self) -> bool {
        match &self.phase {
            Phase::Placing { .. } | Phase::Committing { .. } | Phase::Running => true,
            Phase::Pausing(then) => then.holds_stages(),
            _ => false,
        }
    }

    /// Tokens that the client has been given.
    pub(crate) fn emitted(&self) -> u64 {
        self.emitted
    }

    /// Tokens of the answer that were drawn.
    pub(crate) fn tokens(&self) -> u64 {
        self.answer.len() as u64
    }

    /// Who computes what, with their reports.
    pub(crate) fn route(&self) -> impl Iterator<Item = (&RouteStage, StageReport)> {
        let stages = self.route.iter().enumerate();
        stages.map(|(index, stage)| (stage, self.reports.get(&index).copied().unwrap_or_default()))
    }

    /// Who is prepared under this number: a stage of the route, or behind them one of the donors.
    pub(crate) fn party(&self, epoch: u64, index: usize) -> Option<RouteStage> {
        let route = self.route_of(epoch);
        let stage = route.get(index).cloned();
        stage.or_else(|| {
            let behind = index.checked_sub(route.len())?;
            self.donors_of(epoch).into_iter().nth(behind)
        })
    }

    /// A word for where the session stands.
    pub(crate) fn state(&self) -> &'static str {
        match &self.phase {
            Phase::Draining(_) => "decoding",
            Phase::HandingOver => "handing_over",
            Phase::Ended => "ended",
            _ if self.recovery.is_under_way() => "recovering",
            Phase::Running if self.answer.is_empty() => "prefill",
            Phase::Running => "decoding",
            _ => "placing",
        }
    }
}
