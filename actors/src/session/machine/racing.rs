//! The machine's part in a race. A route that did not answer in time is asked again, and stand-ins for whoever
//! may be to blame are looked for; if they are worth it, they get ready beside it, as for a planned
//! move. Whoever draws a token first has the session.

use accel_p2p::PeerId;

use super::{Machine, Phase};
use crate::session::event::{Command, RouteStage};
use crate::session::recovery::by_wager;
use crate::session::recovery::wager::Wager;

impl Machine {
    /// Looks for stand-ins, while the present route may still answer.
    pub(super) fn look_for_stand_ins(&mut self) {
        // Where stages sign, routes are kept apart by whoever places them: each has one place at a time.
        if self.tolerance.witnessed || !self.survives_a_loss() || self.is_racing() {
            return;
        }
        let Some(oldest) = self.in_flight.front() else {
            return;
        };
        let (epoch, rows) = (self.epoch, oldest.rows() as u32);
        self.doubted = self.next_suspect(None);
        let excluding = self.unwanted().chain(self.doubted).collect();
        self.out.push(Command::FindStandIns {
            epoch,
            rows,
            excluding,
        });
    }

    /// Somebody could stand in.
    pub(super) fn on_stand_ins_found(&mut self, epoch: u64, route: Vec<RouteStage>, wager: &Wager) {
        let runs = matches!(self.phase, Phase::Running) && epoch == self.epoch;
        let (Some(doubted), Some(usual)) = (self.doubted.take(), self.tolerance.strategy) else {
            return;
        };
        let newcomers = self.newcomers(&route);
        let newcomers = newcomers.filter(|newcomers| !newcomers.is_empty() && runs);
        let Some(newcomers) = newcomers else {
            return;
        };
        let strategy = by_wager(usual, wager);
        let races = strategy.name() != usual.name();
        self.out.push(Command::Wagered {
            strategy: strategy.name(),
            races,
            wager: *wager,
        });
        self.recovery.led_by(races.then_some(strategy));
        if races {
            self.recovery.suspect(doubted);
            self.get_ready(route, newcomers, true);
        }
    }

    pub(super) fn is_racing(&self) -> bool {
        self.moving.as_ref().is_some_and(|to| to.is_race())
    }

    /// Whom the route is not asked for any more: stand-ins that are looked for come too late.
    pub(super) fn doubt_nobody(&mut self) {
        self.doubted = None;
    }

    /// A token came: if it is from the old route, stand-ins are let go.
    pub(super) fn end_race(&mut self) {
        self.doubt_nobody();
        if self.is_racing() {
            self.drop_move();
        }
    }

    /// Everyone who is not to be planned with.
    pub(super) fn unwanted(&self) -> impl Iterator<Item = PeerId> {
        let refused = self.excluded.iter().copied();
        refused.chain(self.recovery.excluded())
    }
}

#[cfg(test)]
mod tests;
