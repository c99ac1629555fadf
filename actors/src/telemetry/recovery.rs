//! What is counted of faults, and of moves that keep clear of them.

use std::time::Duration;

use prometheus::{CounterVec, Histogram, IntCounterVec};

use super::{FAST, Maker, SLOW};

/// See the module.
#[derive(Clone)]
pub(crate) struct Recovery {
    recoveries: IntCounterVec,
    replacements: IntCounterVec,
    wagers: IntCounterVec,
    rebuilds: IntCounterVec,
    rebuild_priced: CounterVec,
    rebuild_took: CounterVec,
    moves: IntCounterVec,
    move_gap: Histogram,
    stall: Histogram,
}

impl Recovery {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            recoveries: make.labelled(
                "accel_recoveries_total",
                "Times that a session of this node went on after a fault",
                &["fault", "strategy"],
            ),
            replacements: make.labelled(
                "accel_replacements_total",
                "Routes weighed for sessions of this node after a fault, by the strategy that was cheaper",
                &["strategy"],
            ),
            wagers: make.labelled(
                "accel_wagers_total",
                "Times that stand-ins were weighed while a route of this node's sessions was asked again, by the strategy that was cheaper",
                &["strategy"],
            ),
            rebuilds: make.labelled(
                "accel_rebuilds_total",
                "Times that stages of a session of this node got back KV caches after a fault",
                &["way"],
            ),
            rebuild_priced: make.seconds(
                "accel_rebuild_priced_seconds_total",
                "What getting back KV caches was priced at, where the next token came",
                &["way"],
            ),
            rebuild_took: make.seconds(
                "accel_rebuild_seconds_total",
                "What it took until the next token",
                &["way"],
            ),
            moves: make.labelled(
                "accel_moves_total",
                "Planned moves of sessions of this node to other peers, by why and what came of them",
                &["why", "result"],
            ),
            move_gap: make.histogram(
                "accel_move_gap_seconds",
                "Time from the last token before a planned move to the first after it",
                &FAST,
            ),
            stall: make.histogram(
                "accel_recovery_stall_seconds",
                "Time from the last token before a fault to the first after it",
                &SLOW,
            ),
        }
    }

    pub(crate) fn began(&self, fault: &str, strategy: &str) {
        self.recoveries.with_label_values(&[fault, strategy]).inc();
    }

    pub(crate) fn weighed(&self, strategy: &str) {
        self.replacements.with_label_values(&[strategy]).inc();
    }

    pub(crate) fn wagered(&self, strategy: &str) {
        self.wagers.with_label_values(&[strategy]).inc();
    }

    pub(crate) fn rebuilding(&self, way: &str) {
        self.rebuilds.with_label_values(&[way]).inc();
    }

    /// What it was priced at and what it took, in milliseconds.
    pub(crate) fn rebuilt(&self, way: &str, priced: f64, took: f64) {
        let both = [(&self.rebuild_priced, priced), (&self.rebuild_took, took)];
        for (counter, millis) in both {
            let counter = counter.with_label_values(&[way]);
            counter.inc_by(millis.max(0.0) / 1000.0);
        }
    }

    pub(crate) fn ended(&self, stall: Duration) {
        self.stall.observe(stall.as_secs_f64());
    }

    pub(crate) fn moved(&self, why: &str, gap: Duration) {
        self.moves.with_label_values(&[why, "done"]).inc();
        self.move_gap.observe(gap.as_secs_f64());
    }

    pub(crate) fn move_dropped(&self, why: &str) {
        self.moves.with_label_values(&[why, "dropped"]).inc();
    }
}
