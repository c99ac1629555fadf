//! What to do when a session that runs meets a fault: strategies, each in a file of its own. Pure:
//! from the fault and the number of the attempt to a decision. A new strategy is a file here and
//! a line in [`strategy`].
//!
//! | File | Holds |
//! |---|---|
//! | `simple.rs` | the same peers again, a few times |
//! | `progressive.rs` | resume, restart, then fail over to other peers |
//! | `parallel.rs` | the same peers and stand-ins at once, where a peer may only be slow |
//! | `coordinated.rs` | everything anew, where that is cheaper than to keep what is loaded |
//! | `wager.rs` | what stand-ins are worth beside peers that may still answer |
//! | `backoff.rs` | how long to wait before an attempt |
//! | `chronicle.rs` | what a session remembers of its recoveries, for people and metrics |

mod backoff;
pub(super) mod chronicle;
mod coordinated;
mod parallel;
mod progressive;
mod simple;
pub(crate) mod wager;

use std::fmt::Debug;
use std::time::Duration;

use accel_p2p::PeerId;

use crate::error::Failure;
use crate::planner::Weighed;
use crate::tolerance::FaultTolerance;
pub(crate) use backoff::Attempt;
use wager::Wager;

/// What went wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// Whose fault it is, as far as that is known.
    pub(crate) culprit: Option<PeerId>,
    /// What the client is told if nothing helps.
    pub(crate) failure: Failure,
}

/// Kinds of faults, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FaultKind {
    /// A peer of the route is gone, or nobody can reach it.
    PeerLost,
    /// A stage said that it cannot carry out a step.
    StepFailed,
    /// Nobody answered a step.
    StepTimeout,
    /// A peer of the route could not be prepared again.
    PlacementFailed,
    /// The session stood still: its coordinator crashed, or its client was gone.
    Interrupted,
    /// A peer of the route said what is not so.
    PeerLied,
    /// Two stages say different things of what went from one to the other.
    BoundaryDisputed,
}

impl FaultKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PeerLost => "peer_lost",
            Self::StepFailed => "step_failed",
            Self::StepTimeout => "step_timeout",
            Self::PlacementFailed => "placement_failed",
            Self::Interrupted => "interrupted",
            Self::PeerLied => "peer_lied",
            Self::BoundaryDisputed => "boundary_disputed",
        }
    }
}

impl Fault {
    /// What is wrong with the request itself is wrong on every peer.
    fn is_the_requests(&self) -> bool {
        matches!(
            self.failure.code.as_str(),
            "context_overflow" | "step_too_large"
        )
    }
}

/// How a session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Remedy {
    /// Send what was not answered again, under the same epoch: the stages go on from their KV
    /// caches, and answer repeats from what they keep.
    Resume,
    /// The same route under a new epoch: KV caches are built again from the tokens.
    Restart,
    /// Resume, while stand-ins get ready under another epoch; the first to draw a token has it.
    Race,
    /// Another route under a new epoch, without the culprit.
    FailOver,
    /// The same, with nothing kept for its own sake.
    Replan,
}

impl Remedy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Restart => "restart",
            Self::Race => "race",
            Self::FailOver => "fail_over",
            Self::Replan => "replan",
        }
    }
}

/// What is to be done about a fault.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Go on like this, after a pause.
    Try { remedy: Remedy, after: Duration },
    /// Nothing is left to try.
    GiveUp(Failure),
}

/// A way to go on after faults.
pub(crate) trait Strategy: Debug + Sync {
    /// As metrics and records call it.
    fn name(&self) -> &'static str;
    /// Whether a session never leaves the peers that it was placed on.
    fn keeps_peers(&self) -> bool;
    /// Whether what is loaded counts for nothing when a route is planned.
    fn plans_anew(&self) -> bool {
        false
    }
    /// What to do about a fault.
    fn decide(&self, fault: &Fault, attempt: Attempt) -> Decision;
}

/// The strategy behind a level; none means that a fault ends the session.
pub(crate) fn strategy(level: FaultTolerance) -> Option<&'static dyn Strategy> {
    match level {
        FaultTolerance::None => None,
        FaultTolerance::Low => Some(&simple::Simple),
        FaultTolerance::Medium | FaultTolerance::High | FaultTolerance::Critical => {
            Some(&progressive::Progressive)
        }
    }
}

/// The strategy that a route after a fault belongs to, of those that the level has: its usual one where what
/// is loaded is kept, and `coordinated` where the best route is cheaper over the rest of the answer.
pub(crate) fn by_price(usual: &'static dyn Strategy, weighed: &Weighed) -> &'static dyn Strategy {
    match usual.keeps_peers() || weighed.keeps() {
        true => usual,
        false => &coordinated::Coordinated,
    }
}

/// The strategy for a step that was not answered in time, of those that the level has, when somebody could
/// stand in: its usual one where the route is only asked again, and `parallel` where stand-ins are worth
/// more than they cost.
pub(crate) fn by_wager(usual: &'static dyn Strategy, wager: &Wager) -> &'static dyn Strategy {
    match usual.keeps_peers() || !wager.pays() {
        true => usual,
        false => &parallel::Parallel,
    }
}

#[cfg(test)]
mod tests;
