//! The machine's steps: what is sent to the stages, and what their answers mean.

use std::ops::Range;

use super::{Machine, Phase};
use crate::error::Failure;
use crate::request::FinishReason;
use crate::session::event::{Command, Drawn, Timer};
use crate::session::rebuild::Source;

/// Positions per step, at most: enough to make full use of a stage's arithmetic, and no more,
/// because whoever shares the stage waits for as long as the step takes.
pub(crate) const CHUNK: usize = 256;
/// Steps under way at once, at most; the stages keep as many results for repeats.
const STEPS_IN_FLIGHT: usize = 4;
/// Tokens that are drawn but not yet taken by the client: a slow reader pauses its session.
pub(super) const UNREAD_TOKENS: u64 = 32;

/// A step that was sent and not yet answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    step: u64,
    position: usize,
    end: usize,
    sample: bool,
    source: Source,
    /// The last stage that applies it.
    until: usize,
}

impl InFlight {
    /// One that feeds some stages, and draws nothing.
    pub(super) fn feed(step: u64, positions: Range<usize>, source: Source, until: usize) -> Self {
        Self {
            step,
            position: positions.start,
            end: positions.end,
            sample: false,
            source,
            until,
        }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn end(&self) -> usize {
        self.end
    }

    pub(super) fn rows(&self) -> usize {
        self.end - self.position
    }

    pub(super) fn is_step(&self, step: u64) -> bool {
        self.step == step
    }

    /// Whether this stage's word that it applied this step answers it.
    pub(super) fn is_answer(&self, step: u64, stage: usize) -> bool {
        self.step == step && self.until == stage
    }

    /// Whether it goes to its last stage alone.
    pub(super) fn feeds_one(&self) -> bool {
        matches!(self.source, Source::Cache(_))
    }
}

impl Machine {
    /// Sends as much as may be under way: chunks of what the stages do not have yet. The one that
    /// ends with the newest token draws the next.
    pub(super) fn forward(&mut self) {
        if self.feed_some() || self.follow() {
            return;
        }
        let until = self.route.len().saturating_sub(1);
        let total = self.opening.prompt.len() + self.answer.len();
        let unread = self.answer.len() as u64 - self.emitted;
        while self.sent < total && self.has_room() {
            let end = total.min(self.sent + CHUNK);
            let sample = end == total;
            if sample && unread >= UNREAD_TOKENS {
                return;
            }
            self.send(self.sent..end, sample, Source::Tokens, until);
            self.sent = end;
        }
    }

    /// Whether another chunk may be under way: one for each stage to compute, and one that travels.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight.len() < (self.route.len() + 1).min(STEPS_IN_FLIGHT)
    }

    /// Sends positions as a step.
    pub(super) fn send(
        &mut self,
        positions: Range<usize>,
        sample: bool,
        source: Source,
        until: usize,
    ) {
        self.step += 1;
        self.has_computed = true;
        let sent = InFlight {
            step: self.step,
            position: positions.start,
            end: positions.end,
            sample,
            source,
            until,
        };
        self.out.push(self.command(self.epoch, sent));
        if self.in_flight.is_empty() {
            self.arm(self.step, positions.len() as u32);
        }
        self.in_flight.push_back(sent);
    }

    /// The command that sends a step.
    pub(super) fn command(&self, epoch: u64, sent: InFlight) -> Command {
        let InFlight {
            step,
            sample,
            until,
            ..
        } = sent;
        let position = sent.position as u64;
        match sent.source {
            Source::Tokens => Command::Forward {
                epoch,
                step,
                position,
                sample,
                until,
                tokens: self.tokens_between(sent.position, sent.end),
            },
            Source::Outputs(stage) => Command::Replay {
                epoch,
                step,
                stage,
                position,
                rows: (sent.end - sent.position) as u32,
                until,
            },
            Source::Cache(donor) => Command::Copy {
                epoch,
                step,
                donor,
                stage: until,
                position,
                rows: (sent.end - sent.position) as u32,
            },
        }
    }

    /// Sends what was not answered once more, as it was.
    pub(super) fn send_again(&mut self) {
        let unanswered: Vec<InFlight> = self.in_flight.iter().copied().collect();
        if let Some(oldest) = unanswered.first() {
            self.arm(oldest.step, CHUNK as u32);
        }
        for sent in unanswered {
            self.out.push(self.command(self.epoch, sent));
        }
    }

    /// The stages have nothing any more of what was sent.
    pub(super) fn forget_steps(&mut self) {
        self.sent = 0;
        self.feed = None;
        self.in_flight.clear();
    }

    /// Whether this step is under way and draws a token.
    pub(crate) fn expects_token(&self, epoch: u64, step: u64) -> bool {
        let is_it = |sent: &InFlight| sent.step == step && sent.sample;
        let runs = epoch == self.epoch && matches!(self.phase, Phase::Running);
        runs && self.in_flight.iter().any(is_it)
    }

    /// Whether this step is the one that has to be answered next.
    pub(super) fn waits_for(&self, step: u64) -> bool {
        let oldest = self.in_flight.front();
        oldest.is_some_and(|oldest| oldest.step == step)
    }

    fn tokens_between(&self, from: usize, to: usize) -> Vec<u32> {
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

    pub(super) fn on_applied(&mut self, epoch: u64, step: u64, stage: usize) {
        if self.moves_to(epoch) {
            return self.newcomer_applied(step, stage);
        }
        let is_its = |sent: &InFlight| sent.is_answer(step, stage);
        if self.in_flight.iter().any(is_its) && self.answered(epoch, step, false).is_some() {
            self.forward();
        }
    }

    pub(super) fn on_token(&mut self, epoch: u64, step: u64, position: u64, drawn: Drawn) {
        let Some(done) = self.answered(epoch, step, true) else {
            return;
        };
        if position != done.end as u64 || drawn.token >= self.opening.vocab {
            let message = format!(
                "the last stage answered step {step} with token {} at position {position}, which cannot be",
                drawn.token
            );
            let hint = "send the request again; update accel on all nodes if it happens again";
            return self.fail(Failure::unavailable("bad_token", message, hint));
        }
        self.made_progress();
        if self.text.is_end(drawn.token) {
            let text_tail = self.text.finish();
            return self.finish(FinishReason::Stop, text_tail);
        }
        self.take_token(drawn);
    }
}
