//! `coordinated`: the coordinator plans everything anew, as if nothing were placed yet. It pays where what
//! is left of a route is slow, or nobody can fill its gaps; until the next token it stays with that.

use super::progressive::{given_up, pause};
use super::{Attempt, Decision, Fault, Remedy, Strategy};

/// See the module.
#[derive(Debug)]
pub(super) struct Coordinated;

impl Strategy for Coordinated {
    fn name(&self) -> &'static str {
        "coordinated"
    }

    fn keeps_peers(&self) -> bool {
        false
    }

    fn plans_anew(&self) -> bool {
        true
    }

    fn decide(&self, fault: &Fault, attempt: Attempt) -> Decision {
        match given_up(fault, attempt) {
            Some(failure) => Decision::GiveUp(failure),
            None => Decision::Try {
                remedy: Remedy::Replan,
                after: pause(attempt),
            },
        }
    }
}
