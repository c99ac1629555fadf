//! What is counted of the stages of a node: what they compute, and what it takes to make them ready.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec};

use super::{FAST, Maker, SLOW};

const POWERS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// See the module.
#[derive(Clone)]
pub(crate) struct Stages {
    rows: IntCounter,
    step_seconds: Histogram,
    batch_rows: Histogram,
    batch_sessions: Histogram,
    prepare_seconds: Histogram,
    bytes_fetched: IntCounter,
    blocks_fetched: IntCounter,
    warmed: IntCounterVec,
}

impl Stages {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            rows: make.counter(
                "accel_stage_rows_total",
                "Positions computed by the stages of this node",
            ),
            step_seconds: make.histogram(
                "accel_stage_step_seconds",
                "Time that a stage of this node computes one step: a batch of one or more sessions",
                &FAST,
            ),
            batch_rows: make.histogram(
                "accel_stage_batch_rows",
                "Positions that a stage of this node computes in one step",
                &POWERS,
            ),
            batch_sessions: make.histogram(
                "accel_stage_batch_sessions",
                "Sessions that a stage of this node serves in one step",
                &POWERS,
            ),
            prepare_seconds: make.histogram(
                "accel_stage_prepare_seconds",
                "Time to prepare a stage: fetch, verify, load",
                &SLOW,
            ),
            bytes_fetched: make.counter(
                "accel_content_bytes_fetched_total",
                "Bytes of models fetched from peers",
            ),
            blocks_fetched: make.counter(
                "accel_content_blocks_fetched_total",
                "Blocks of models fetched from peers",
            ),
            warmed: make.labelled(
                "accel_stages_warmed_total",
                "Stages made ready ahead of time, by what became of them",
                &["result"],
            ),
        }
    }

    pub(crate) fn batch_computed(&self, rows: usize, sessions: usize, took: Duration) {
        self.rows.inc_by(rows as u64);
        self.batch_rows.observe(rows as f64);
        self.batch_sessions.observe(sessions as f64);
        self.step_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn prepared(&self, took: Duration) {
        self.prepare_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn fetched(&self, bytes: u64, blocks: u64) {
        self.bytes_fetched.inc_by(bytes);
        self.blocks_fetched.inc_by(blocks);
    }

    pub(crate) fn warmed(&self, result: &str) {
        self.warmed.with_label_values(&[result]).inc();
    }
}
