//! `progressive`: from cheap to dear. What a living peer may still answer is asked again, then the
//! same route is built anew, then other peers take over. A peer that is gone is replaced at once.

use std::time::Duration;

use super::{Attempt, Decision, Fault, FaultKind, Remedy, Strategy};
use crate::error::Failure;

/// Attempts without a new token. With their pauses they last for 25 seconds at least.
const ATTEMPTS: u32 = 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Progressive;

impl Strategy for Progressive {
    fn name(&self) -> &'static str {
        "progressive"
    }

    fn keeps_peers(&self) -> bool {
        false
    }

    fn decide(&self, fault: &Fault, attempt: Attempt) -> Decision {
        if let Some(failure) = given_up(fault, attempt) {
            return Decision::GiveUp(failure);
        }
        let remedy = match (fault.kind, attempt.number) {
            (FaultKind::PeerLost | FaultKind::PlacementFailed | FaultKind::Interrupted, _) => {
                Remedy::FailOver
            }
            (FaultKind::PeerLied | FaultKind::BoundaryDisputed, _) => Remedy::FailOver,
            (FaultKind::StepTimeout, 0) => Remedy::Resume,
            (FaultKind::StepTimeout, 1) | (FaultKind::StepFailed, 0) => Remedy::Restart,
            _ => Remedy::FailOver,
        };
        let after = pause(attempt);
        Decision::Try { remedy, after }
    }
}

/// Why nothing is tried any more, if that is so.
pub(super) fn given_up(fault: &Fault, attempt: Attempt) -> Option<Failure> {
    if fault.is_the_requests() {
        return Some(fault.failure.clone());
    }
    (attempt.number >= ATTEMPTS).then(|| no_progress(fault))
}

/// How long to wait before an attempt: the first is made at once.
pub(super) fn pause(attempt: Attempt) -> Duration {
    match attempt.number {
        0 => Duration::ZERO,
        _ => attempt.pause(),
    }
}

fn no_progress(fault: &Fault) -> Failure {
    let message = format!(
        "no token came in {ATTEMPTS} attempts to go on; the last fault: {}",
        fault.failure.message
    );
    let hint = "send the request again when the swarm is calmer; `accel peers` shows who is there";
    Failure::unavailable("no_progress", message, hint)
}
