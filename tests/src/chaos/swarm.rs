//! The nodes of a trial: the asked one, and the peers in their seats. They serve trial after trial; what
//! a fault took away is replaced by a fresh node, and what cannot be made whole again is given up.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use super::net::{Disk, Net, Port};
use crate::{Client, Node, NodeOptions, models::Model, node::make_swarm_key};

/// How long the nodes may need until all of them see each other.
const TOGETHER: Duration = Duration::from_secs(60);
/// Room on a peer's disk beside the model.
const SPARE_MIB: u64 = 96;

/// The nodes that serve trials of one size.
pub struct Swarm {
    /// The node that is asked.
    pub asked: Node,
    /// The trials that these nodes have served.
    pub served: Vec<u32>,
    seats: Vec<Seat>,
    max_layers: u32,
    key: PathBuf,
    hub: Option<String>,
    // Dropped last.
    _dir: TempDir,
}

/// A place for a peer, with the network and the disk that it has there.
pub struct Seat {
    node: Option<Node>,
    data: PathBuf,
    /// The kind of fault that it suffers from now.
    pub afflicted: Option<&'static str>,
    disk: Option<Disk>,
    port: Option<Port>,
}

impl Swarm {
    /// Starts so many nodes, each with its own network and disk where there is a `net`.
    pub async fn start(
        nodes: usize,
        max_layers: u32,
        model: &Model,
        net: Option<&mut Net>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("accel-chaos-").tempdir()?;
        let key = make_swarm_key(dir.path())?;
        let hub = net.as_ref().map(|net| net.address());
        let seats = seats(nodes - 1, model, net, dir.path())?;
        let mut options = common_options(&key, max_layers);
        if let Some(hub) = &hub {
            options.args.extend(listen_at(hub));
        }
        let mut asked = Node::start(&options).await?;
        asked.process.hush();
        asked.add_model(&model.path)?;
        let mut swarm = Self {
            asked,
            served: Vec::new(),
            seats,
            max_layers,
            key,
            hub,
            _dir: dir,
        };
        swarm.make_whole().await?;
        Ok(swarm)
    }

    /// Whether it is what a trial of this size needs.
    pub fn fits(&self, nodes: usize, max_layers: u32) -> bool {
        self.seats.len() + 1 == nodes && self.max_layers == max_layers
    }

    /// The number of peers.
    pub fn size(&self) -> usize {
        self.seats.len()
    }

    /// The address of the asked node's network, where there is one.
    pub fn hub_address(&self) -> Option<String> {
        self.hub.clone()
    }

    /// A peer's place.
    pub fn seat(&mut self, index: usize) -> Result<&mut Seat> {
        self.seats.get_mut(index).context("a seat of this swarm")
    }

    /// The seats of peers that run and suffer from nothing, with their PeerIds.
    pub fn healthy(&self) -> Vec<(usize, String)> {
        let seats = self.seats.iter().enumerate();
        seats
            .filter(|(_, seat)| seat.afflicted.is_none())
            .filter_map(|(index, seat)| Some((index, seat.node.as_ref()?.peer_id.clone())))
            .collect()
    }

    /// Starts the node of a seat again with what is on its disk.
    pub async fn start_again(&mut self, index: usize) -> Result<()> {
        let mut options = common_options(&self.key, self.max_layers);
        options.join = self.asked.addrs.iter().take(1).cloned().collect();
        let seat = self.seat(index)?;
        options.data = Some(seat.data.clone());
        if let Some(port) = &seat.port {
            let address = port.address();
            options.args.extend(listen_at(&address));
            options
                .args
                .extend(["--api".to_owned(), format!("{address}:0")]);
            options.wrapper = port.wrapper();
        }
        let mut node = Node::start(&options).await?;
        node.process.hush();
        if seat.port.is_some() {
            let key = fs::read_to_string(seat.data.join("api-key")).context("the key of an API")?;
            node.client = Client::with_key(&node.api, key.trim())?;
        }
        seat.node = Some(node);
        Ok(())
    }

    /// Puts fresh nodes where some are gone, and waits until all see all.
    pub async fn make_whole(&mut self) -> Result<()> {
        for index in 0..self.seats.len() {
            let seat = self.seat(index)?;
            if seat.node.is_none() {
                seat.wipe()?;
                self.start_again(index).await?;
            }
            self.seat(index)?.afflicted = None;
        }
        let deadline = Instant::now() + TOGETHER;
        loop {
            let apart = self.apart().await;
            match apart {
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
        let peers = self.seats.iter().filter_map(|seat| seat.node.as_ref());
        std::iter::once(&self.asked).chain(peers)
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

    /// Writes the log of every node that runs.
    pub fn keep_logs(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("asked.log"), self.asked.process.output())?;
        for (index, seat) in self.seats.iter().enumerate() {
            if let Some(node) = &seat.node {
                let text = format!("{}\n{}", node.peer_id, node.process.output());
                fs::write(dir.join(format!("seat-{index}.log")), text)?;
            }
        }
        Ok(())
    }
}

impl Seat {
    /// Its node, which must run.
    pub fn node(&self) -> Result<&Node> {
        self.node.as_ref().context("no node is in this seat")
    }

    /// Its network.
    pub fn port(&self) -> Result<&Port> {
        self.port
            .as_ref()
            .context("this seat has no network of its own")
    }

    /// Its disk.
    pub fn disk(&self) -> Result<&Disk> {
        self.disk
            .as_ref()
            .context("this seat has no disk of its own")
    }

    /// Ends its node at once.
    pub fn kill(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.process.kill();
        }
    }

    fn wipe(&self) -> Result<()> {
        match fs::remove_dir_all(&self.data) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("cannot wipe a disk")
            }
            _ => Ok(()),
        }
    }
}

fn seats(count: usize, model: &Model, mut net: Option<&mut Net>, dir: &Path) -> Result<Vec<Seat>> {
    let mut seats = Vec::new();
    for index in 0..count {
        let home = dir.join(format!("seat-{index}"));
        let disk = match &net {
            Some(_) => Some(Disk::mount(&home, (model.bytes >> 20) + SPARE_MIB)?),
            None => None,
        };
        let port = net.as_mut().map(|net| net.port(dir)).transpose()?;
        seats.push(Seat {
            node: None,
            data: home.join("data"),
            afflicted: None,
            disk,
            port,
        });
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

fn listen_at(address: &str) -> [String; 2] {
    ["--listen".to_owned(), format!("/ip4/{address}/tcp/0")]
}

fn connected(listing: &Value) -> Option<BTreeSet<&str>> {
    let rows = listing
        .as_array()
        .or_else(|| listing.get("peers")?.as_array())?;
    let open = rows.iter().filter(|row| row["connected"] == true);
    Some(open.filter_map(|row| row["peer_id"].as_str()).collect())
}
