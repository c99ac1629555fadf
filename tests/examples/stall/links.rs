//! Nodes in networks of their own, whose links are as fast as they are told: four that compute, and one
//! for each way to rebuild that only asks, so that the ways take turns over the same nodes.

use std::path::Path;

use accel_tests::chaos::net::{Net, Port};
use accel_tests::cluster::{wait_for_peers, wait_for_warm_stages};
use accel_tests::models::Model;
use accel_tests::node::make_swarm_key;
use accel_tests::{ChatRequest, Node, NodeOptions};
use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::Options;
use crate::trial::{NODES, prompt};

/// A node and its network.
pub struct Seat {
    pub node: Node,
    port: Port,
}

/// See the module.
pub struct Swarm {
    /// In the order of the ways that they were started with.
    pub askers: Vec<Seat>,
    workers: Vec<Seat>,
    // Dropped last.
    _net: Net,
    _dir: TempDir,
}

impl Swarm {
    /// Starts them, and has every worker load what it may have to compute.
    pub async fn start(options: &Options, ways: &[Option<&str>], model: &Model) -> Result<Self> {
        let dir = TempDir::new()?;
        let mut net = Net::open()?;
        let mut common = NodeOptions {
            swarm_key: Some(make_swarm_key(dir.path())?),
            // Whoever was cut off is placed on again as soon as it is not.
            args: ["--breaker-seconds", "1"].map(str::to_owned).to_vec(),
            ..NodeOptions::default()
        };
        let mut askers: Vec<Seat> = Vec::new();
        for way in ways {
            let mut asks = NodeOptions {
                wrapper: match way {
                    Some(way) => vec!["env".to_owned(), format!("ACCEL_MEASURE_REBUILD={way}")],
                    None => Vec::new(),
                },
                ..common.clone()
            };
            // No layer fits there.
            asks.args.extend(["--memory", "1MiB"].map(str::to_owned));
            askers.push(Seat::start(&mut net, dir.path(), asks).await?);
            if let [first] = askers.as_slice() {
                common.join = first.node.addrs.iter().take(1).cloned().collect();
            }
        }
        let mut workers = Vec::new();
        for _ in 0..NODES {
            let mut works = NodeOptions {
                max_layers: Some(options.layers),
                ..common.clone()
            };
            let memory = options.memory.iter();
            works
                .args
                .extend(memory.flat_map(|size| ["--memory".to_owned(), size.clone()]));
            workers.push(Seat::start(&mut net, dir.path(), works).await?);
        }
        let swarm = Self {
            askers,
            workers,
            _net: net,
            _dir: dir,
        };
        swarm.are_together().await?;
        swarm.load(model).await?;
        Ok(swarm)
    }

    async fn load(&self, model: &Model) -> Result<()> {
        let first = self.askers.first().context("a node to ask")?;
        first.node.add_model(&model.path)?;
        for asker in &self.askers {
            let request = ChatRequest::greedy(&model.name, &prompt(64), 8);
            asker.node.client.chat(&request).await?;
        }
        // The spare has the layers of somebody; of two, where it has the memory.
        let nodes = self.workers.iter().map(|seat| &seat.node);
        wait_for_warm_stages(nodes, 1).await
    }

    /// Waits until all see all.
    pub async fn are_together(&self) -> Result<()> {
        let seats = || self.askers.iter().chain(&self.workers);
        let all = seats().map(|seat| seat.node.peer_id.clone()).collect();
        for seat in seats() {
            wait_for_peers(&seat.node, |seen| *seen == all).await?;
        }
        Ok(())
    }

    /// From now on the links of those that compute give so many megabits a second each way.
    pub fn shape(&self, megabits: Option<u64>) -> Result<()> {
        self.workers
            .iter()
            .try_for_each(|seat| seat.port.shape(megabits))
    }

    /// Cuts two of them off from each other, and from nobody else.
    pub fn part(&self, one: &str, other: &str) -> Result<()> {
        let (one, other) = (self.port_of(one)?, self.port_of(other)?);
        one.lose(&other.address())?;
        other.lose(&one.address())
    }

    /// Joins them again.
    pub fn join(&self, one: &str, other: &str) -> Result<()> {
        let (one, other) = (self.port_of(one)?, self.port_of(other)?);
        one.reach(&other.address())?;
        other.reach(&one.address())
    }

    fn port_of(&self, peer: &str) -> Result<&Port> {
        let mut seats = self.workers.iter();
        let seat = seats.find(|seat| seat.node.peer_id == peer);
        Ok(&seat.context("one of those that compute")?.port)
    }
}

impl Seat {
    async fn start(net: &mut Net, dir: &Path, options: NodeOptions) -> Result<Self> {
        let port = net.port(dir)?;
        let mut node = Node::start(&port.house(options)).await?;
        node.find_key()?;
        node.process.hush();
        Ok(Self { node, port })
    }
}
