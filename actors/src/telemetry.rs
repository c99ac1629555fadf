//! The metrics of a node, in Prometheus' form.
//!
//! * [`stages`] – what the stages compute; [`recovery`] – faults and moves; [`audit`] – answers
//!   that are computed twice. The rest is here.

mod audit;
mod recovery;
mod stages;

use prometheus::{
    CounterVec, Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

pub(crate) use audit::Audit;
pub(crate) use recovery::Recovery;
pub(crate) use stages::Stages;

/// What is counted. Clones count into the same registry.
#[derive(Clone)]
pub(crate) struct Telemetry {
    registry: Registry,
    requests: IntCounterVec,
    sessions_ended: IntCounterVec,
    sessions_running: IntGauge,
    tokens: IntCounter,
    restarts: IntGauge,
    peers: IntGauge,
    memory_used: IntGauge,
    tensor_bytes: IntCounterVec,
    stages: Stages,
    recovery: Recovery,
    audit: Audit,
    breakers_opened: IntCounter,
    replicas_lost: IntCounter,
    sessions_kept: IntGauge,
}

const FAST: [f64; 12] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0,
];
const SLOW: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0];

impl Telemetry {
    /// A fresh registry with all metrics at zero.
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let make = Maker(&registry);
        Self {
            requests: make.labelled(
                "accel_requests_total",
                "Requests, by what became of them at admission",
                &["result"],
            ),
            sessions_ended: make.labelled(
                "accel_sessions_ended_total",
                "Sessions that ended, by how",
                &["state"],
            ),
            sessions_running: make.gauge(
                "accel_sessions_running",
                "Sessions that this node coordinates now",
            ),
            tokens: make.counter("accel_tokens_emitted_total", "Tokens given to clients"),
            restarts: make.gauge(
                "accel_actor_restarts",
                "Restarts of actor units since the start",
            ),
            peers: make.gauge("accel_peers_connected", "Peers that are connected"),
            memory_used: make.gauge(
                "accel_model_memory_bytes",
                "Memory that weights and KV caches take",
            ),
            tensor_bytes: make.labelled(
                "accel_tensor_bytes_total",
                "Bytes over the tensor plane",
                &["direction"],
            ),
            stages: Stages::new(&make),
            recovery: Recovery::new(&make),
            audit: Audit::new(&make),
            breakers_opened: make.counter(
                "accel_breakers_opened_total",
                "Times that a peer was left alone because it failed or was lost",
            ),
            replicas_lost: make.counter(
                "accel_replicas_lost_total",
                "Times that a peer stopped to keep the journal of a session of this node",
            ),
            sessions_kept: make.gauge(
                "accel_sessions_kept",
                "Sessions of other nodes whose journals this node keeps now",
            ),
            registry,
        }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn request(&self, result: &str) {
        self.requests.with_label_values(&[result]).inc();
    }

    pub(crate) fn session_ended(&self, state: &str) {
        self.sessions_ended.with_label_values(&[state]).inc();
    }

    pub(crate) fn token(&self) {
        self.tokens.inc();
    }

    /// What is counted of the stages.
    pub(crate) fn stages(&self) -> &Stages {
        &self.stages
    }

    /// What is counted of answers that are computed twice.
    pub(crate) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// What is counted of faults and moves.
    pub(crate) fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    pub(crate) fn breaker_opened(&self) {
        self.breakers_opened.inc();
    }

    pub(crate) fn replica_lost(&self) {
        self.replicas_lost.inc();
    }

    /// Sets what is looked up only when somebody reads the metrics.
    pub(crate) fn observe(&self, now: &Observed) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.sessions_running.set(gauge(now.sessions));
        self.sessions_kept.set(gauge(now.kept));
        self.audit.quarantined(gauge(now.quarantined));
        self.restarts.set(gauge(now.restarts));
        self.peers.set(gauge(now.peers));
        self.memory_used.set(gauge(now.memory_used));
        for (direction, total) in [("in", now.tensor_in), ("out", now.tensor_out)] {
            let counter = self.tensor_bytes.with_label_values(&[direction]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// Everything as text.
    pub(crate) fn text(&self) -> String {
        let mut buffer = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut buffer) {
            tracing::error!(%error, "the metrics cannot be written");
        }
        String::from_utf8_lossy(&buffer).into_owned()
    }
}

/// What is looked up when somebody reads the metrics.
pub(crate) struct Observed {
    pub(crate) sessions: u64,
    pub(crate) kept: u64,
    pub(crate) quarantined: u64,
    pub(crate) restarts: u64,
    pub(crate) peers: u64,
    pub(crate) memory_used: u64,
    pub(crate) tensor_in: u64,
    pub(crate) tensor_out: u64,
}

/// Makes metrics in a registry. Names and labels are constants: a bad one fails the first test that starts
/// a node.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn labelled(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.register(CounterVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(options))
    }

    fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> C {
        let metric = made.expect("the name and labels of a metric are valid");
        let registered = self.0.register(Box::new(metric.clone()));
        registered.expect("every metric has a name of its own");
        metric
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_text_holds_what_was_counted() {
        let telemetry = Telemetry::new();
        telemetry.request("accepted");
        telemetry.token();
        telemetry.recovery().began("peer_lost", "progressive");
        telemetry.recovery().rebuilding("replay");
        telemetry.recovery().rebuilt("replay", 1500.0, 500.0);
        telemetry.recovery().ended(Duration::from_secs(1));
        telemetry.breaker_opened();
        let text = telemetry.text();
        assert!(
            text.contains("accel_requests_total{result=\"accepted\"} 1"),
            "{text}"
        );
        assert!(text.contains("accel_tokens_emitted_total 1"), "{text}");
        assert!(text.contains("accel_breakers_opened_total 1"), "{text}");
        assert!(
            text.contains("accel_rebuilds_total{way=\"replay\"} 1"),
            "{text}"
        );
        for rebuilt in [
            "accel_rebuild_priced_seconds_total{way=\"replay\"} 1.5",
            "accel_rebuild_seconds_total{way=\"replay\"} 0.5",
        ] {
            assert!(text.contains(rebuilt), "{text}");
        }
        let recoveries = "accel_recoveries_total{fault=\"peer_lost\",strategy=\"progressive\"} 1";
        assert!(text.contains(recoveries), "{text}");
        assert!(
            text.contains("accel_recovery_stall_seconds_count 1"),
            "{text}"
        );
    }
}
