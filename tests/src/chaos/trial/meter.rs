//! Counts the bytes that nodes moved during a trial. What a node counted is read before it is struck, since
//! it may not be there to be asked afterwards.

use std::collections::BTreeMap;

use super::Swarm;
use crate::Node;

const TENSOR: &str = "accel_tensor_bytes_total{direction=\"out\"}";
const MODEL: &str = "accel_content_bytes_fetched_total";

/// Bytes since some moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bytes {
    /// Sent over the tensor plane.
    pub tensor: u64,
    /// Of models, fetched from peers.
    pub model: u64,
}

/// See the module. Processes begin with nothing.
#[derive(Debug, Default)]
pub(super) struct Meter {
    before: BTreeMap<u32, Bytes>,
    latest: BTreeMap<u32, Bytes>,
}

impl Meter {
    /// Counts from now on.
    pub(super) async fn start(swarm: &Swarm) -> Self {
        let mut meter = Self::default();
        meter.read_all(swarm).await;
        meter.before = std::mem::take(&mut meter.latest);
        meter
    }

    /// Reads what a node has counted. One that cannot say is taken at its last word.
    pub(super) async fn read(&mut self, node: &Node) {
        if let Ok((_, text)) = node.client.get_text("/metrics").await {
            let bytes = Bytes {
                tensor: metric(&text, TENSOR),
                model: metric(&text, MODEL),
            };
            self.latest.insert(node.process.id(), bytes);
        }
    }

    /// What all have moved since the start.
    pub(super) async fn finish(mut self, swarm: &Swarm) -> Bytes {
        self.read_all(swarm).await;
        let mut sum = Bytes::default();
        for (process, now) in &self.latest {
            let before = self.before.get(process).copied().unwrap_or_default();
            sum.tensor += now.tensor.saturating_sub(before.tensor);
            sum.model += now.model.saturating_sub(before.model);
        }
        sum
    }

    async fn read_all(&mut self, swarm: &Swarm) {
        for node in swarm.nodes() {
            self.read(node).await;
        }
    }
}

fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
}
