//! `coordinated`: the coordinator plans everything anew, as if nothing were placed yet. After one loss it
//! pays to keep what the others have loaded; after several, what is left of the route says little
//! about the best one.

use super::progressive::{given_up, pause};
use super::{Attempt, Decision, Fault, Remedy, Strategy};

/// See the module.
pub(super) struct Coordinated;

impl Strategy for Coordinated {
    fn name(&self) -> &'static str {
        "coordinated"
    }

    fn keeps_peers(&self) -> bool {
        false
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
