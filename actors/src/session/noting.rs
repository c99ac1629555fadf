//! The actor's part in recoveries: what is logged, counted and remembered of them.

use std::time::{Duration, Instant};

use super::actor::SessionActor;
use super::recovery::FaultKind;
use super::recovery::chronicle::Begun;
use super::recovery::wager::Wager;
use crate::planner::Weighed;

impl SessionActor {
    pub(super) fn rebuilding(
        &mut self,
        way: &'static str,
        prices: &[(&'static str, Duration)],
        replayed: u64,
    ) {
        tracing::info!(session = %self.spec.id, way, ?prices, replayed, "rebuilding KV caches");
        if !self.is_beside() {
            self.deps.telemetry.recovery().rebuilding(way);
        }
        self.chronicle.rebuild(way, prices, replayed);
    }

    pub(super) fn weighed(&mut self, strategy: &'static str, weighed: &Weighed) {
        tracing::info!(session = %self.spec.id, strategy, ?weighed, "another route");
        if !self.is_beside() {
            self.deps.telemetry.recovery().weighed(strategy);
        }
        self.chronicle.weigh(strategy, weighed);
    }

    /// Stand-ins get ready while the route may still answer, or do not.
    pub(super) fn wagered(&mut self, strategy: &'static str, races: bool, wager: &Wager) {
        tracing::info!(session = %self.spec.id, strategy, races, ?wager, "stand-ins were weighed");
        if !self.is_beside() {
            self.deps.telemetry.recovery().wagered(strategy);
        }
        self.chronicle.wager(strategy, races, wager);
    }

    /// What became of asking a route again.
    fn note_odds(&self, answered: Option<bool>) {
        if let Some(answered) = answered {
            self.deps.placer.health.asked_again(answered);
        }
    }

    pub(super) fn recovering(&mut self, begun: Begun) {
        let answered = self.chronicle.asks(&begun);
        self.note_odds(answered);
        // A lane beside the first begins like a session that was interrupted.
        let begins = self.is_beside() && begun.fault == FaultKind::Interrupted;
        if !begins {
            tracing::warn!(
                session = %self.spec.id,
                fault = begun.fault.name(),
                strategy = begun.strategy,
                remedy = begun.remedy.name(),
                replayed = begun.replayed,
                reason = begun.reason,
                "going on after a fault"
            );
            let telemetry = &self.deps.telemetry;
            telemetry
                .recovery()
                .began(begun.fault.name(), begun.strategy);
        }
        self.chronicle
            .begin(begun, self.machine.tokens(), Instant::now());
    }

    pub(super) fn recovered(&mut self) {
        let answered = self.chronicle.answers();
        self.note_odds(answered);
        let stall = self.chronicle.end(Instant::now());
        tracing::info!(session = %self.spec.id, ?stall, "the answer goes on");
        if self.is_beside() {
            return;
        }
        self.deps.telemetry.recovery().ended(stall);
        if let Some((way, priced, took)) = self.chronicle.rebuilt() {
            self.deps.telemetry.recovery().rebuilt(way, priced, took);
        }
    }
}
