//! The machine's part in handing a session over because its node stops: the stages are given back at
//! once, and a peer is given the journal, with every token so far. Once it has all of it, the client
//! is told where to come back. When no peer is there the session stays in the journal here, as it
//! does when the node crashes.

use super::{Machine, Phase};
use crate::error::{Failure, SESSION_MOVED};
use crate::session::event::Outcome;

impl Machine {
    pub(super) fn on_hand_over(&mut self) {
        if !self.tolerance.resumable {
            // Nobody could come back for it: it has as long as the node has to end by itself.
            return;
        }
        match self.phase {
            // It is complete, or handed over already.
            Phase::Draining(_) | Phase::HandingOver | Phase::Ended => {}
            // Nothing of it is anywhere yet.
            Phase::Opening => self.suspend(stopping()),
            _ => {
                self.release_all();
                self.phase = Phase::HandingOver;
                self.replication.want_one();
                self.replicate();
                self.leave_when_copied();
            }
        }
    }

    /// One peer with every token is enough: what was emitted at `high` is on two anyway, and whoever
    /// goes on sees to the rest.
    pub(super) fn leave_when_copied(&mut self) {
        let tokens = self.tokens();
        let is_copied = self.replication.most().is_some_and(|most| most >= tokens);
        if is_copied && self.is_handing_over() {
            self.close(Outcome::HandedOver(moved()));
        }
    }

    pub(super) fn is_handing_over(&self) -> bool {
        matches!(self.phase, Phase::HandingOver)
    }
}

fn moved() -> Failure {
    let message = "the node is stopping; other nodes have the session";
    let hint =
        "come back with Last-Event-ID, to one of `replicas` or to any other node of the swarm";
    Failure::unavailable(SESSION_MOVED, message, hint)
}

/// Why a session that nobody else has does not go on.
pub(crate) fn stopping() -> Failure {
    let message = "the node is stopping";
    let hint = "start the node again and come back with Last-Event-ID: the answer goes on";
    Failure::unavailable("session_suspended", message, hint)
}

#[cfg(test)]
mod tests;
