//! A place for a node, with the network and the disk that it has there.

use std::{
    fs,
    io::ErrorKind,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    Node,
    chaos::net::{Disk, Port},
};

/// No node takes longer to stop: what sessions have, what goodbyes have, and a busy machine.
const STOPPING: Duration = Duration::from_secs(25);

/// See the module.
pub struct Seat {
    pub(super) node: Option<Node>,
    pub(super) data: PathBuf,
    /// Whether its node is given the whole model.
    pub(super) has_model: bool,
    pub(super) port: Option<Port>,
    /// The kind of fault that it suffers from now.
    pub afflicted: Option<&'static str>,
    /// What nodes logged here that ended in this trial.
    pub past_logs: Vec<String>,
    /// A node that was told to end, and when.
    leaving: Option<(Node, Instant)>,
    disk: Option<Disk>,
}

impl Seat {
    pub(super) fn new(
        data: PathBuf,
        has_model: bool,
        port: Option<Port>,
        disk: Option<Disk>,
    ) -> Self {
        Self {
            node: None,
            data,
            has_model,
            port,
            afflicted: None,
            past_logs: Vec::new(),
            leaving: None,
            disk,
        }
    }

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

    /// The same, to change it.
    pub fn port_mut(&mut self) -> Result<&mut Port> {
        self.port
            .as_mut()
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
            self.past_logs.push(log(&node));
        }
    }

    /// Ends its node at once, and deletes its disk.
    pub fn destroy(&mut self) -> Result<()> {
        self.kill();
        self.wipe()
    }

    /// Tells its node to end (SIGTERM). It is waited for before another one comes here.
    pub fn stop(&mut self) -> Result<()> {
        let node = self.node.take().context("no node is in this seat")?;
        node.process.ask_to_end()?;
        self.leaving = Some((node, Instant::now()));
        Ok(())
    }

    /// Waits for the end of a node that was told to.
    pub(super) async fn vacate(&mut self) -> Result<()> {
        let Some((mut node, told)) = self.leaving.take() else {
            return Ok(());
        };
        let status = loop {
            if let Some(status) = node.process.exited()? {
                break status;
            }
            if told.elapsed() > STOPPING {
                self.past_logs.push(log(&node));
                bail!("a node has not stopped after {} s", STOPPING.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        self.past_logs.push(log(&node));
        if !status.success() {
            bail!("a node that was told to stop ended with {status}");
        }
        Ok(())
    }

    pub(super) fn wipe(&self) -> Result<()> {
        match fs::remove_dir_all(&self.data) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("cannot wipe a disk")
            }
            _ => Ok(()),
        }
    }

    /// What the nodes of this trial logged here.
    pub(super) fn logs(&self) -> String {
        let mut logs = self.past_logs.clone();
        let there = self.node.iter();
        let leaving = self.leaving.iter().map(|(node, _)| node);
        logs.extend(there.chain(leaving).map(log));
        logs.join("\n--- the next node of this seat\n")
    }
}

fn log(node: &Node) -> String {
    format!("{}\n{}", node.peer_id, node.process.output())
}
