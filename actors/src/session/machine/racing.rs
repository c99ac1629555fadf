//! The machine's part in a race: the present route is asked again, and stand-ins for whoever may be to
//! blame get ready beside it, as for a planned move. Whoever draws a token first has the session.

use super::{Machine, Phase};
use crate::session::event::RouteStage;

impl Machine {
    /// Looks for stand-ins, while the present route may still answer.
    pub(super) fn race(&mut self) {
        if self.tolerance.witnessed {
            // Its routes are kept apart by whoever places them: each has one place at a time.
            return;
        }
        self.wants_race = true;
        self.plan(false);
    }

    /// Whether a plan for the epoch is one of stand-ins.
    pub(super) fn wants_race(&self, epoch: u64) -> bool {
        self.wants_race && epoch == self.epoch && matches!(self.phase, Phase::Running)
    }

    pub(super) fn begin_race(&mut self, route: Vec<RouteStage>) {
        self.wants_race = false;
        let newcomers = self.newcomers(&route);
        if let Some(newcomers) = newcomers.filter(|newcomers| !newcomers.is_empty()) {
            self.get_ready(route, newcomers, true);
        }
    }

    /// Nobody can stand in: then the present route has to answer.
    pub(super) fn give_race_up(&mut self) {
        self.wants_race = false;
    }

    pub(super) fn is_racing(&self) -> bool {
        self.moving.as_ref().is_some_and(|to| to.is_race())
    }

    /// A token came: if it is from the old route, stand-ins are let go.
    pub(super) fn end_race(&mut self) {
        self.wants_race = false;
        if self.is_racing() {
            self.drop_move();
        }
    }
}

#[cfg(test)]
mod tests;
