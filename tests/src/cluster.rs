//! Several nodes in a private swarm of their own.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    PATIENCE,
    node::{Node, NodeOptions, make_swarm_key},
};

/// Nodes that share one swarm key; all joined to the first.
pub struct Cluster {
    /// The nodes, in the order in which they were started.
    pub nodes: Vec<Node>,
    /// The swarm key file.
    pub swarm_key: PathBuf,
    _dir: TempDir,
}

impl Cluster {
    /// Starts `count` nodes, each with at most `max_layers` layers of a model, and waits until all see all.
    pub async fn start(count: usize, max_layers: Option<u32>) -> Result<Self> {
        let mut cluster = Self::empty()?;
        for _ in 0..count {
            cluster
                .add(NodeOptions {
                    max_layers,
                    ..NodeOptions::default()
                })
                .await?;
        }
        cluster.wait_until_complete().await?;
        Ok(cluster)
    }

    /// A swarm key and no node yet.
    pub fn empty() -> Result<Self> {
        let dir = TempDir::new()?;
        Ok(Self {
            nodes: Vec::new(),
            swarm_key: make_swarm_key(dir.path())?,
            _dir: dir,
        })
    }

    /// Starts one more node with the swarm key, joined to the first one.
    pub async fn add(&mut self, mut options: NodeOptions) -> Result<&Node> {
        options.swarm_key = Some(self.swarm_key.clone());
        if let Some(first) = self.nodes.first() {
            options.join.extend(first.addrs.iter().take(1).cloned());
        }
        self.nodes.push(Node::start(&options).await?);
        self.nodes.last().context("a node was just added")
    }

    /// Waits until every node lists every node.
    pub async fn wait_until_complete(&self) -> Result<()> {
        let all: BTreeSet<String> = self.nodes.iter().map(|node| node.peer_id.clone()).collect();
        for node in &self.nodes {
            wait_for_peers(node, |seen| *seen == all).await?;
        }
        Ok(())
    }

    /// Waits until `node` knows the model that another node added.
    pub async fn wait_for_model(&self, node: &Node, name: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let listing = node.client.get("/v1/models").await?.body;
            let rows = listing.get("data").and_then(Value::as_array);
            let mut ids = rows.into_iter().flatten().filter_map(|row| row.get("id"));
            if ids.any(|id| id == name) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} does not learn of {name}: {listing}", node.peer_id);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits until `nodes` have loaded `count` stages ahead of time, all together.
pub async fn wait_for_warm_stages(
    nodes: impl Iterator<Item = &Node> + Clone,
    count: u64,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut warm = 0;
        for node in nodes.clone() {
            warm += stages_warmed(node).await?;
        }
        if warm >= count {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{warm} stages were loaded ahead of time, not {count}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn stages_warmed(node: &Node) -> Result<u64> {
    let (_, metrics) = node.client.get_text("/metrics").await?;
    let name = "accel_stages_warmed_total{result=\"loaded\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(Ok(0), |count| Ok(count.trim().parse()?))
}

/// Waits until the set of peers that `node` lists (itself among them) is as wished.
pub async fn wait_for_peers(node: &Node, wished: impl Fn(&BTreeSet<String>) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = peers(node).await?;
        if wished(&seen) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{} still sees {seen:?}", node.peer_id);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The PeerIds that `node` lists, its own among them.
pub async fn peers(node: &Node) -> Result<BTreeSet<String>> {
    let listing = node.client.get("/api/v1/peers").await?.body;
    let rows = listing.as_array().or_else(|| {
        let inner = listing.get("peers").or_else(|| listing.get("data"));
        inner.and_then(Value::as_array)
    });
    let rows = rows.with_context(|| format!("no list of peers in {listing}"))?;
    let mut seen: BTreeSet<String> = rows
        .iter()
        .filter_map(|row| row.get("peer_id").and_then(Value::as_str))
        .map(str::to_owned)
        .collect();
    seen.insert(node.peer_id.clone());
    Ok(seen)
}
