//! The nodes of a trial, each in its seat. They serve trial after trial; what a fault took away is
//! replaced by a fresh node, and what cannot be made whole again is given up.

mod directory;
mod seat;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

pub use directory::Directory;
pub use seat::Seat;

use super::{
    net::{Disk, Net, Port},
    plan::Plan,
};
use crate::{Node, NodeOptions, models::Model, node::make_swarm_key};

/// How long the nodes may need until all of them see each other.
const TOGETHER: Duration = Duration::from_secs(60);
/// Room on a node's disk beside the model.
const SPARE_MIB: u64 = 96;

/// What trials must have in common to be played on the same nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    nodes: usize,
    max_layers: u32,
    spare_model: bool,
}

impl Size {
    /// What a trial needs.
    pub fn of(plan: &Plan) -> Self {
        Self {
            nodes: plan.nodes,
            max_layers: plan.max_layers,
            spare_model: plan.spare_model,
        }
    }
}

/// The nodes that serve trials of one size. The one in the first seat is asked.
pub struct Swarm {
    /// What it is good for.
    pub size: Size,
    /// The trials that these nodes have served.
    pub served: Vec<u32>,
    /// The seat of the node that coordinates the watched answer now.
    pub coordinator: usize,
    seats: Vec<Seat>,
    directory: Directory,
    key: PathBuf,
    model: PathBuf,
    // Dropped last.
    _dir: TempDir,
}

impl Swarm {
    /// Starts nodes, each with its own network and disk where there is a `net`.
    pub async fn start(size: Size, model: &Model, net: Option<&mut Net>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("accel-chaos-").tempdir()?;
        let key = make_swarm_key(dir.path())?;
        let seats = seats(size, model, net, dir.path())?;
        let mut swarm = Self {
            size,
            served: Vec::new(),
            coordinator: 0,
            seats,
            directory: Directory::default(),
            key,
            model: model.path.clone(),
            _dir: dir,
        };
        swarm.make_whole().await?;
        Ok(swarm)
    }

    /// The number of nodes.
    pub fn count(&self) -> usize {
        self.seats.len()
    }

    /// Where the nodes are asked.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The node that is asked first.
    pub fn asked(&self) -> Result<&Node> {
        self.seats.first().context("a first seat")?.node()
    }

    /// A node's place.
    pub fn seat(&mut self, index: usize) -> Result<&mut Seat> {
        self.seats.get_mut(index).context("a seat of this swarm")
    }

    /// The seat of a node that runs.
    pub fn seat_of(&self, peer_id: &str) -> Option<usize> {
        let is_there = |seat: &Seat| {
            let node = seat.node.as_ref();
            node.is_some_and(|node| node.peer_id == peer_id)
        };
        self.seats.iter().position(is_there)
    }

    /// The seats of nodes that run and suffer from nothing, with their PeerIds.
    pub fn healthy(&self) -> Vec<(usize, String)> {
        let seats = self.seats.iter().enumerate();
        seats
            .filter(|(_, seat)| seat.afflicted.is_none())
            .filter_map(|(index, seat)| Some((index, seat.node.as_ref()?.peer_id.clone())))
            .collect()
    }

    /// Whether the node of this seat is one of the two with the whole model, so that it must stay.
    pub fn is_spare(&self, index: usize) -> bool {
        self.size.spare_model && self.seats.get(index).is_some_and(|seat| seat.has_model)
    }

    /// Starts the node of a seat again with what is on its disk.
    pub async fn start_again(&mut self, index: usize) -> Result<()> {
        let mut options = common_options(&self.key, self.size.max_layers);
        let others = self.nodes().filter_map(|node| node.addrs.first());
        options.join = others.take(2).cloned().collect();
        let seat = self.seat(index)?;
        seat.vacate().await?;
        options.data = Some(seat.data.clone());
        if let Some(port) = &seat.port {
            options = port.house(options);
        }
        let mut node = Node::start(&options).await?;
        node.process.hush();
        if seat.port.is_some() {
            node.find_key()?;
        }
        let (peer_id, client) = (node.peer_id.clone(), node.client.clone());
        seat.node = Some(node);
        self.directory.put(&peer_id, client);
        Ok(())
    }

    /// Puts fresh nodes where some are gone, and waits until all see all.
    pub async fn make_whole(&mut self) -> Result<()> {
        for index in 0..self.seats.len() {
            if self.seat(index)?.node.is_none() {
                self.fill(index).await?;
            }
            self.seat(index)?.afflicted = None;
        }
        self.coordinator = 0;
        let all: Vec<&str> = self.nodes().map(|node| node.peer_id.as_str()).collect();
        self.directory.keep(&all);
        self.wait_until_together().await
    }

    /// Puts a fresh node into a seat.
    async fn fill(&mut self, index: usize) -> Result<()> {
        let seat = self.seat(index)?;
        seat.vacate().await?;
        seat.wipe()?;
        self.start_again(index).await?;
        let model = self.model.clone();
        let seat = self.seat(index)?;
        if seat.has_model {
            seat.node()?.add_model(&model)?;
        }
        Ok(())
    }

    async fn wait_until_together(&self) -> Result<()> {
        let deadline = Instant::now() + TOGETHER;
        loop {
            match self.apart().await {
                Ok(None) => return Ok(()),
                Ok(Some(who)) if Instant::now() > deadline => {
                    bail!(
                        "after {} s the nodes are not together: {who}",
                        TOGETHER.as_secs()
                    )
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// All nodes that run.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.seats.iter().filter_map(|seat| seat.node.as_ref())
    }

    /// Who does not see whom.
    async fn apart(&self) -> Result<Option<String>> {
        let all: BTreeSet<&str> = self.nodes().map(|node| node.peer_id.as_str()).collect();
        for node in self.nodes() {
            let listing = node.client.get("/api/v1/peers").await?.body;
            let seen = connected(&listing).context("a list of peers")?;
            let mut missing = all.iter().filter(|id| **id != node.peer_id);
            if let Some(missing) = missing.find(|id| !seen.contains(**id)) {
                return Ok(Some(format!("{} does not see {missing}", node.peer_id)));
            }
        }
        Ok(None)
    }

    /// Begins a trial: what nodes logged before that are gone is of no interest any more.
    pub fn begin(&mut self, trial: u32) {
        self.served.push(trial);
        for seat in &mut self.seats {
            seat.past_logs.clear();
        }
    }

    /// How many frames were damaged since this was asked last.
    pub fn take_damaged(&mut self) -> u64 {
        let ports = self.seats.iter_mut().filter_map(|seat| seat.port.as_mut());
        ports.map(Port::take_damaged).sum()
    }

    /// Writes the logs of the nodes of this trial.
    pub fn keep_logs(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        for (index, seat) in self.seats.iter().enumerate() {
            fs::write(dir.join(format!("seat-{index}.log")), seat.logs())?;
        }
        Ok(())
    }
}

fn seats(size: Size, model: &Model, mut net: Option<&mut Net>, dir: &Path) -> Result<Vec<Seat>> {
    let mut seats = Vec::new();
    for index in 0..size.nodes {
        let home = dir.join(format!("seat-{index}"));
        let disk = match &net {
            Some(_) => Some(Disk::mount(&home, (model.bytes >> 20) + SPARE_MIB)?),
            None => None,
        };
        let port = net.as_mut().map(|net| net.port(dir)).transpose()?;
        let has_model = index == 0 || (size.spare_model && index + 1 == size.nodes);
        seats.push(Seat::new(home.join("data"), has_model, port, disk));
    }
    Ok(seats)
}

/// One thread each: more would wait for each other, several nodes on one machine as they are.
fn common_options(key: &Path, max_layers: u32) -> NodeOptions {
    NodeOptions {
        swarm_key: Some(key.to_owned()),
        max_layers: Some(max_layers),
        args: ["--threads", "1"].map(str::to_owned).to_vec(),
        ..NodeOptions::default()
    }
}

fn connected(listing: &Value) -> Option<BTreeSet<&str>> {
    let rows = listing
        .as_array()
        .or_else(|| listing.get("peers")?.as_array())?;
    let open = rows.iter().filter(|row| row["connected"] == true);
    Some(open.filter_map(|row| row["peer_id"].as_str()).collect())
}
