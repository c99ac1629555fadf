//! `simple`: the same peers again. A broken connection is mended, a restarted stage is prepared
//! anew; a peer that stays away is not replaced.

use super::{Attempt, Decision, Fault, Remedy, Strategy};
use crate::error::Failure;

/// Attempts without a new token.
const ATTEMPTS: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Simple;

impl Strategy for Simple {
    fn name(&self) -> &'static str {
        "simple"
    }

    fn keeps_peers(&self) -> bool {
        true
    }

    fn decide(&self, fault: &Fault, attempt: Attempt) -> Decision {
        if fault.is_the_requests() {
            return Decision::GiveUp(fault.failure.clone());
        }
        if attempt.number >= ATTEMPTS {
            return Decision::GiveUp(exhausted(fault));
        }
        // What a stage still holds is used before it is built again.
        let remedy = match attempt.number {
            0 => Remedy::Resume,
            _ => Remedy::Restart,
        };
        let after = attempt.pause();
        Decision::Try { remedy, after }
    }
}

fn exhausted(fault: &Fault) -> Failure {
    let Failure {
        kind,
        code,
        message,
        ..
    } = &fault.failure;
    let message = format!("{message}; the same peers were asked {ATTEMPTS} times more");
    let hint = "send the request again, with fault_tolerance `medium` to go on with other peers";
    Failure::new(*kind, code.clone(), message, hint)
}
