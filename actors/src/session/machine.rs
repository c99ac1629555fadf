//! The session machine: pure, so that every order of events can be tried out.
//!
//! ```text
//! Opening ─► Placing ─► Committing ─► Running ─► Draining ─► Ended
//!               ▲  │        │
//!               ├──┴────────┘  refused or lost before the first token: another route, new epoch
//!               └─ Waiting     other sessions hold the memory: all over again, for a bounded time
//! ```
//!
//! `sent` counts the tokens (prompt, then answer) that went to the stages of the live epoch. A new
//! epoch starts at zero, so rebuilding the KV caches elsewhere is the same code as the prompt.

mod placement;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use std::collections::{BTreeMap, VecDeque};

use accel_p2p::PeerId;

use super::event::{Command, Drawn, Event, Outcome, RouteStage, StageReport, Timer};
use super::text::TextPipe;
use crate::error::Failure;
use crate::request::FinishReason;
pub(crate) use placement::WAITS;

/// Positions per step, at most: enough to make full use of a stage's arithmetic, and no more,
/// because whoever shares the stage waits for as long as the step takes.
pub(crate) const CHUNK: usize = 256;
/// Steps under way at once, at most; the stages keep as many results for repeats.
const STEPS_IN_FLIGHT: usize = 4;
/// Tokens that are drawn but not yet taken by the client: a slow reader pauses its session.
const UNREAD_TOKENS: u64 = 32;

/// What a session is, besides its tokens.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) prompt: Vec<u32>,
    /// The longest answer.
    pub(crate) max_new: u64,
    /// Token ids are below this.
    pub(crate) vocab: u32,
}

#[derive(Debug)]
enum Phase {
    Opening,
    Planning,
    Waiting,
    Placing { ready: Vec<bool> },
    Committing { live: Vec<bool> },
    Running,
    Draining(Outcome),
    Ended,
}

/// A step that was sent and not yet answered.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    step: u64,
    end: u64,
    sample: bool,
}

/// See the module.
pub(crate) struct Machine {
    opening: Opening,
    text: Box<dyn TextPipe>,
    phase: Phase,
    route: Vec<RouteStage>,
    reports: BTreeMap<usize, StageReport>,
    excluded: Vec<PeerId>,
    placements: u32,
    waits: u32,
    refusal: Option<Failure>,
    epoch: u64,
    step: u64,
    sent: usize,
    in_flight: VecDeque<InFlight>,
    answer: Vec<u32>,
    /// Tokens that wait for the journal, with what is to be emitted.
    unjournaled: VecDeque<(u64, String, Drawn)>,
    emitted: u64,
    out: Vec<Command>,
}

impl Machine {
    /// A session that is to run over `route`. The first commands come from [`Self::start`].
    pub(crate) fn new(opening: Opening, route: Vec<RouteStage>, text: Box<dyn TextPipe>) -> Self {
        Self {
            opening,
            text,
            phase: Phase::Opening,
            route,
            reports: BTreeMap::new(),
            excluded: Vec::new(),
            placements: 0,
            waits: 0,
            refusal: None,
            epoch: 0,
            step: 0,
            sent: 0,
            in_flight: VecDeque::new(),
            answer: Vec::new(),
            unjournaled: VecDeque::new(),
            emitted: 0,
            out: Vec::new(),
        }
    }

    /// The first commands.
    pub(crate) fn start(&mut self) -> Vec<Command> {
        vec![Command::JournalOpen]
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
            Event::Planned { epoch, route } => self.on_planned(epoch, route),
            Event::NoPlan { epoch, failure } => self.on_no_plan(epoch, failure),
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
            Event::Applied { epoch, step } => self.on_applied(epoch, step),
            Event::Token {
                epoch,
                step,
                position,
                drawn,
            } => {
                self.on_token(epoch, step, position, drawn);
            }
            Event::StepFailed { epoch, failure } => self.on_step_failed(epoch, failure),
            Event::Journaled { index } => self.on_journaled(index),
            Event::JournalFailed(failure) => self.fail(failure),
            Event::Emitted { index } => self.on_emitted(index),
            Event::PeerLost(peer) => self.on_peer_lost(peer),
            Event::Timeout(timer) => self.on_timeout(timer),
            Event::Cancel => self.close(Outcome::Cancelled),
        }
    }

    /// Sends as much as may be under way: chunks of what the stages do not have yet. The one that
    /// ends with the newest token draws the next.
    fn forward(&mut self) {
        let total = self.opening.prompt.len() + self.answer.len();
        let unread = self.answer.len() as u64 - self.emitted;
        while self.sent < total && self.in_flight.len() < self.window() {
            let end = total.min(self.sent + CHUNK);
            let sample = end == total;
            if sample && unread >= UNREAD_TOKENS {
                return;
            }
            self.send_step(end, sample);
        }
    }

    /// Chunks of a prompt that may be under way: one for each stage to compute, and one that
    /// travels.
    fn window(&self) -> usize {
        (self.route.len() + 1).min(STEPS_IN_FLIGHT)
    }

    fn send_step(&mut self, end: usize, sample: bool) {
        self.step += 1;
        let tokens = self.tokens(self.sent, end);
        let rows = tokens.len() as u32;
        self.out.push(Command::Forward {
            epoch: self.epoch,
            step: self.step,
            position: self.sent as u64,
            sample,
            tokens,
        });
        if self.in_flight.is_empty() {
            self.arm(self.step, rows);
        }
        let (step, end_position) = (self.step, end as u64);
        self.in_flight.push_back(InFlight {
            step,
            end: end_position,
            sample,
        });
        self.sent = end;
    }

    fn tokens(&self, from: usize, to: usize) -> Vec<u32> {
        let all = self.opening.prompt.iter().chain(&self.answer);
        all.skip(from).take(to - from).copied().collect()
    }

    fn arm(&mut self, step: u64, rows: u32) {
        let epoch = self.epoch;
        self.out
            .push(Command::Arm(Timer::Step { epoch, step, rows }));
    }

    /// Takes the step that was answered off the list, and all before it: stages apply steps in
    /// order, so whoever answers one has applied the earlier ones.
    fn answered(&mut self, epoch: u64, step: u64, sample: bool) -> Option<InFlight> {
        if epoch != self.epoch || !matches!(self.phase, Phase::Running) {
            return None;
        }
        let is_it = |sent: &InFlight| sent.step == step && sent.sample == sample;
        let index = self.in_flight.iter().position(is_it)?;
        let done = self.in_flight.drain(..=index).next_back();
        if let Some(next) = self.in_flight.front() {
            let step = next.step;
            self.arm(step, CHUNK as u32);
        }
        done
    }

    fn on_applied(&mut self, epoch: u64, step: u64) {
        if self.answered(epoch, step, false).is_some() {
            self.forward();
        }
    }

    fn on_token(&mut self, epoch: u64, step: u64, position: u64, drawn: Drawn) {
        let Some(done) = self.answered(epoch, step, true) else {
            return;
        };
        if position != done.end || drawn.token >= self.opening.vocab {
            let message = format!(
                "the last stage answered step {step} with token {} at position {position}, which cannot be",
                drawn.token
            );
            let hint = "send the request again; update accel on all nodes if it happens again";
            return self.fail(Failure::unavailable("bad_token", message, hint));
        }
        self.placements = 0;
        if self.text.is_end(drawn.token) {
            let text_tail = self.text.finish();
            return self.finish(FinishReason::Stop, text_tail);
        }
        self.take_token(drawn);
    }

    fn take_token(&mut self, drawn: Drawn) {
        let index = self.answer.len() as u64;
        let piece = self.text.push(drawn.token);
        self.answer.push(drawn.token);
        self.out.push(Command::JournalToken {
            index,
            token: drawn.token,
        });
        self.unjournaled.push_back((index, piece.text, drawn));
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
        while self
            .unjournaled
            .front()
            .is_some_and(|(waiting, ..)| *waiting <= index)
        {
            if let Some((index, text, drawn)) = self.unjournaled.pop_front() {
                self.out.push(Command::Emit { index, text, drawn });
            }
        }
    }

    fn on_emitted(&mut self, index: u64) {
        self.emitted = self.emitted.max(index + 1);
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

    fn release_all(&mut self) {
        let epoch = self.epoch;
        for stage in self.route.clone() {
            self.out.push(Command::Release { epoch, stage });
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.close(Outcome::Failed(failure));
    }

    fn close(&mut self, outcome: Outcome) {
        match self.phase {
            Phase::Placing { .. } | Phase::Committing { .. } => self.abort_all(),
            Phase::Running => self.release_all(),
            Phase::Opening
            | Phase::Planning
            | Phase::Waiting
            | Phase::Draining(_)
            | Phase::Ended => {}
        }
        self.phase = Phase::Ended;
        self.out.push(Command::Close(outcome));
    }

    fn on_step_failed(&mut self, epoch: u64, failure: Failure) {
        if epoch == self.epoch && matches!(self.phase, Phase::Running) {
            self.fail(failure);
        }
    }

    fn on_peer_lost(&mut self, peer: PeerId) {
        let Some(stage) = self.route.iter().find(|stage| stage.peer == peer).cloned() else {
            return;
        };
        let layers = stage.layers;
        let failure = Failure::unavailable(
            "peer_lost",
            format!(
                "peer {peer}, which computes layers {}-{}, left the swarm",
                layers.first,
                layers.end.saturating_sub(1)
            ),
            "send the request again: it is placed on the peers that remain",
        );
        match self.phase {
            Phase::Placing { .. } | Phase::Committing { .. } => {
                self.placement_failed(peer, failure);
            }
            Phase::Running => self.fail(failure),
            Phase::Opening
            | Phase::Planning
            | Phase::Waiting
            | Phase::Draining(_)
            | Phase::Ended => {}
        }
    }

    fn on_timeout(&mut self, timer: Timer) {
        match timer {
            Timer::Commit { epoch } => {
                if epoch == self.epoch && matches!(self.phase, Phase::Committing { .. }) {
                    self.on_commit_timeout();
                }
            }
            Timer::Memory { epoch } => {
                if epoch == self.epoch && matches!(self.phase, Phase::Waiting) {
                    self.place_again();
                }
            }
            Timer::Step { epoch, step, .. } => {
                let waiting = self
                    .in_flight
                    .front()
                    .is_some_and(|oldest| oldest.step == step);
                if epoch == self.epoch && waiting && matches!(self.phase, Phase::Running) {
                    self.fail(Failure::unavailable(
                        "step_timeout",
                        format!("step {step} was not answered in time by the stages"),
                        "send the request again; a peer may be overloaded or cut off (`accel peers`)",
                    ));
                }
            }
        }
    }

    /// The newest plan.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether stages are reserved for it.
    pub(crate) fn holds_stages(&self) -> bool {
        matches!(
            self.phase,
            Phase::Placing { .. } | Phase::Committing { .. } | Phase::Running
        )
    }

    /// Tokens that the client has been given.
    pub(crate) fn emitted(&self) -> u64 {
        self.emitted
    }

    /// Who computes what, with their reports.
    pub(crate) fn route(&self) -> impl Iterator<Item = (&RouteStage, StageReport)> {
        let stages = self.route.iter().enumerate();
        stages.map(|(index, stage)| (stage, self.reports.get(&index).copied().unwrap_or_default()))
    }

    /// A word for where the session stands.
    pub(crate) fn state(&self) -> &'static str {
        match &self.phase {
            Phase::Opening | Phase::Planning | Phase::Waiting => "placing",
            Phase::Placing { .. } | Phase::Committing { .. } => "placing",
            Phase::Running if self.answer.is_empty() => "prefill",
            Phase::Running | Phase::Draining(_) => "decoding",
            Phase::Ended => "ended",
        }
    }
}
