//! `parallel`: where a peer may only be slow, it is asked again while stand-ins get ready beside it; whoever
//! is first has it, and the others are let go. A peer that is gone is replaced at once. It leads until the
//! next token, where that is [worth it](super::wager).

use super::progressive::{given_up, pause};
use super::{Attempt, Decision, Fault, FaultKind, Remedy, Strategy};

/// How often, behind the first attempt, before the route is given up.
const RACES: u32 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Parallel;

impl Strategy for Parallel {
    fn name(&self) -> &'static str {
        "parallel"
    }

    fn keeps_peers(&self) -> bool {
        false
    }

    fn decide(&self, fault: &Fault, attempt: Attempt) -> Decision {
        if let Some(failure) = given_up(fault, attempt) {
            return Decision::GiveUp(failure);
        }
        let remedy = match (fault.kind, attempt.number) {
            (FaultKind::StepTimeout, ..RACES) => Remedy::Race,
            _ => Remedy::FailOver,
        };
        let after = pause(attempt);
        Decision::Try { remedy, after }
    }
}
