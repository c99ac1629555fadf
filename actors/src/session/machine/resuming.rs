//! The machine's part in going on with a session that is in the journal: what was journaled and
//! not yet seen by the client is emitted, then the session goes on like one that lost all its
//! peers. A session that had ended is only told.

use super::{Machine, Opening, Phase, Tolerance};
use crate::error::{Failure, SESSION_MOVED};
use crate::request::FinishReason;
use crate::session::event::{Command, Drawn, Outcome};
use crate::session::record::Ended;
use crate::session::recovery::{FaultKind, Remedy};
use crate::session::text::TextPipe;

/// Epochs of a coordinator: its claim is above, the number of its placement below these bits.
const PLACEMENT_BITS: u32 = 32;
/// Claims: how often the session was taken over is above, chance below these bits. Of two nodes
/// that take over at the same time, one is newer.
const CHANCE_BITS: u32 = 16;
/// The highest claim that leaves room for placements.
const HIGHEST_CLAIM: u64 = u32::MAX as u64;
/// Why the session stood still, as far as its journal tells.
const REASON: &str = "the coordinator or the client was interrupted";

/// The claim of whoever goes on after `newest`; none when that was done too often.
pub(crate) fn next_claim(newest: u64, chance: u16) -> Option<u64> {
    let count = (newest >> CHANCE_BITS) + 1;
    let has_room = count <= HIGHEST_CLAIM >> CHANCE_BITS;
    has_room.then_some((count << CHANCE_BITS) | u64::from(chance))
}

/// The claim under which an epoch was begun.
pub(crate) fn claim_of(epoch: u64) -> u64 {
    epoch >> PLACEMENT_BITS
}

/// What the journal knows of a session.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Past {
    /// The tokens so far.
    pub(crate) tokens: Vec<Drawn>,
    /// How it ended, if it did.
    pub(crate) ended: Option<Ended>,
    /// How many tokens the client has.
    pub(crate) seen: u64,
    /// The claim under which it goes on.
    pub(crate) claim: u64,
}

/// What the machine remembers of it.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) claim: u64,
    /// Whether the journal has its outcome: then there is nothing to be written any more.
    pub(super) is_over: bool,
    /// How the session ends, when there is nothing to compute.
    pub(super) ending: Option<Outcome>,
    /// How many tokens there were.
    tokens: u64,
    /// Characters of the text that the client has.
    seen_chars: usize,
}

impl Machine {
    /// A session that goes on from its past. The first commands come from [`Self::start`].
    pub(crate) fn resumed(
        opening: Opening,
        past: Past,
        text: Box<dyn TextPipe>,
        tolerance: Tolerance,
    ) -> Self {
        let mut machine = Self::new(opening, Vec::new(), text, tolerance);
        let stopped = machine.take_past(past.tokens);
        let tokens = machine.tokens();
        machine.epoch = past.claim << PLACEMENT_BITS;
        machine.newest = machine.epoch;
        // The stages of coordinators before may hold something.
        machine.has_computed = true;
        machine.journaled = tokens;
        machine.emitted = past.seen.min(tokens);
        let mut seen_chars = 0;
        for _ in 0..machine.emitted {
            if let Some((_, text, _)) = machine.unemitted.pop_front() {
                seen_chars += text.chars().count();
            }
        }
        machine.resumed = Some(Resumed {
            claim: past.claim,
            is_over: past.ended.is_some(),
            ending: machine.ending(past.ended, stopped),
            tokens,
            seen_chars,
        });
        machine
    }

    /// Whether a stop text was complete at the end; nothing counts that comes behind one.
    fn take_past(&mut self, tokens: Vec<Drawn>) -> bool {
        for drawn in tokens {
            let piece = self.text.push(drawn.token);
            let index = self.tokens();
            self.answer.push(drawn.token);
            self.unemitted.push_back((index, piece.text, drawn));
            if piece.stopped {
                return true;
            }
        }
        false
    }

    /// How a session ends of which no token is missing; none when there is something to compute.
    fn ending(&mut self, ended: Option<Ended>, stopped: bool) -> Option<Outcome> {
        let finish = match ended {
            Some(Ended::Done(finish)) => finish,
            Some(Ended::Failed(code, message)) => return Some(over(code, message)),
            Some(Ended::Cancelled) => {
                return Some(over("cancelled".into(), "the session was cancelled".into()));
            }
            None if stopped => FinishReason::Stop,
            None if self.tokens() >= self.opening.max_new => FinishReason::Length,
            None => return None,
        };
        let text_tail = match stopped {
            true => String::new(),
            false => self.text.finish(),
        };
        Some(Outcome::Done {
            finish,
            completion_tokens: self.tokens(),
            text_tail,
        })
    }

    /// The claim is durable, or none is needed.
    pub(super) fn go_on(&mut self) {
        self.emit_durable();
        let ending = self.resumed.as_mut().and_then(|past| past.ending.take());
        if let Some(outcome) = ending {
            self.phase = Phase::Draining(outcome);
            return self.close_when_drained();
        }
        let positions = self.opening.prompt.len() as u64 + self.tokens();
        let strategy = self.tolerance.strategy;
        self.recovery = super::Recovery::interrupted(REASON, positions);
        self.out.push(Command::Recovering {
            fault: FaultKind::Interrupted,
            strategy: strategy.map_or("none", |strategy| strategy.name()),
            remedy: Remedy::FailOver,
            replayed: positions,
            reason: REASON.to_owned(),
        });
        self.place_again(false);
    }

    /// The client is gone. What is complete is complete all the same.
    pub(super) fn on_cancel(&mut self) {
        if let Phase::Draining(outcome) = &self.phase {
            let outcome = outcome.clone();
            return self.close(outcome);
        }
        let message = "the client is gone";
        let hint = "come back with Last-Event-ID: the answer goes on";
        self.suspend(Failure::unavailable("client_gone", message, hint));
    }

    /// Stops here, so that somebody can go on, if anybody may.
    pub(super) fn suspend(&mut self, failure: Failure) {
        self.close(match self.tolerance.resumable {
            true => Outcome::Suspended(failure),
            false => Outcome::Cancelled,
        });
    }

    /// A newer coordinator goes on with the session: nothing is done against it.
    pub(super) fn depose(&mut self) {
        let message = "another coordinator goes on with the session";
        let hint = "come back with Last-Event-ID, to this node or to another of the swarm";
        let failure = Failure::unavailable(SESSION_MOVED, message, hint);
        self.close(Outcome::Moved(failure));
    }

    /// How many tokens there were when the session was gone on with.
    pub(crate) fn tokens_before(&self) -> u64 {
        self.resumed.as_ref().map_or(0, |past| past.tokens)
    }

    /// How many characters of its text the client had then.
    pub(crate) fn seen_chars(&self) -> usize {
        self.resumed.as_ref().map_or(0, |past| past.seen_chars)
    }
}

fn over(code: String, message: String) -> Outcome {
    let hint = "the session is over; send the request again";
    Outcome::Failed(Failure::unavailable(code, message, hint))
}

#[cfg(test)]
mod tests;
