//! What is counted of answers that are computed twice, and of peers that were shown to lie.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::Maker;

/// See the module.
#[derive(Clone)]
pub(crate) struct Audit {
    audits: IntCounterVec,
    lies: IntCounter,
    third_opinions: IntCounter,
    quarantined: IntGauge,
}

impl Audit {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            audits: make.labelled(
                "accel_audits_total",
                "Sessions of this node that others computed again, by what came of it",
                &["result"],
            ),
            lies: make.counter(
                "accel_lies_total",
                "Times that a peer was shown to have computed something else than it should",
            ),
            third_opinions: make.counter(
                "accel_third_opinions_total",
                "Times that a third opinion was asked for because two routes differed",
            ),
            quarantined: make.gauge(
                "accel_peers_quarantined",
                "Peers that get no work from this node because they lied",
            ),
        }
    }

    pub(crate) fn ended(&self, result: &str) {
        self.audits.with_label_values(&[result]).inc();
    }

    pub(crate) fn lie(&self) {
        self.lies.inc();
    }

    pub(crate) fn third_opinion(&self) {
        self.third_opinions.inc();
    }

    pub(super) fn quarantined(&self, peers: i64) {
        self.quarantined.set(peers);
    }
}
