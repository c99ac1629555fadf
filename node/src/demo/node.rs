//! One node of the demo: a process of this program, its log and its way of ending.
//!
//! A node stops when its stdin closes, so that none outlives the demo, however that ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Client, NodeAddress};
use crate::failure::Failure;

const READY: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(30);
const END: Duration = Duration::from_secs(10);
const LAST_LOOKS: u32 = 200;
const LOG_LINES: usize = 20;
/// Variables that nodes of the demo may inherit; others would change what is shown.
const KEPT: [&str; 2] = ["ACCEL_ISA", "ACCEL_LOG"];

/// How a node is started.
pub struct Start {
    pub name: &'static str,
    /// Its directory within the demo's.
    pub dir: &'static str,
    /// The address of a node to join.
    pub join: Option<String>,
    pub max_layers: Option<u32>,
}

/// A running node.
pub struct Node {
    pub name: &'static str,
    pub peer_id: String,
    /// Where other nodes reach it.
    pub addr: String,
    pub client: Client,
    process: Process,
}

impl Node {
    /// Starts a node and waits until everything listens.
    pub async fn start(temp: &Path, key: &Path, start: &Start) -> Result<Self, Failure> {
        let mut process = Process::spawn(temp, key, start)?;
        let told = match process.ready().await {
            Ok(told) => told,
            Err(failure) => {
                eprintln!("{}", process.log_tail(start.name));
                return Err(failure.while_doing(start.name));
            }
        };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let strange = || Failure::new(format!("{} wrote a strange ready file", start.name));
        let addrs = told.get("addrs").and_then(Value::as_array);
        let api = text(told.get("api")).ok_or_else(strange)?;
        Ok(Self {
            name: start.name,
            peer_id: text(told.get("peer_id")).ok_or_else(strange)?,
            addr: text(addrs.and_then(|addrs| addrs.first())).ok_or_else(strange)?,
            client: Client::new(&NodeAddress { api, api_key: None })?,
            process,
        })
    }

    /// Closes its stdin.
    pub fn ask_to_stop(&mut self) {
        self.process.child.stdin = None;
    }

    /// Waits for its end, and puts an end to it when that takes too long.
    pub async fn wait_for_end(&mut self) {
        let ended = timeout(END, self.process.child.wait()).await;
        if ended.is_err() {
            tracing::warn!(node = self.name, "did not stop by itself; killing it");
            if let Err(error) = self.process.child.kill().await {
                tracing::warn!(node = self.name, %error, "could not be killed");
            }
        }
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail(self.name)
    }
}

/// The process; killed and waited for when dropped.
struct Process {
    child: Child,
    log: PathBuf,
    ready: PathBuf,
}

impl Process {
    fn spawn(temp: &Path, key: &Path, start: &Start) -> Result<Self, Failure> {
        let log = temp.join(format!("{}.log", start.dir));
        let ready = temp.join(format!("{}.ready", start.dir));
        let out = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(std::env::current_exe()?);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("ACCEL_") && !KEPT.contains(&name.as_ref()) {
                command.env_remove(name.as_ref());
            }
        }
        command
            .args(["up", "--until-stdin-closes", "--api", "127.0.0.1:0"])
            .args(["--listen", "/ip4/127.0.0.1/tcp/0"])
            .arg("--data")
            .arg(temp.join(start.dir))
            .arg("--swarm-key")
            .arg(key)
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true);
        if let Some(join) = &start.join {
            command.args(["--join", join]);
        }
        if let Some(layers) = start.max_layers {
            command.args(["--max-layers", &layers.to_string()]);
        }
        let child = command.spawn()?;
        Ok(Self { child, log, ready })
    }

    async fn ready(&mut self) -> Result<Value, Failure> {
        let deadline = Instant::now() + READY;
        loop {
            if let Ok(text) = std::fs::read_to_string(&self.ready) {
                return Ok(serde_json::from_str(&text)?);
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(Failure::new(format!(
                    "ended before it was ready ({status})"
                )));
            }
            if Instant::now() >= deadline {
                let seconds = READY.as_secs();
                return Err(Failure::new(format!("was not ready after {seconds} s")));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn log_tail(&self, name: &str) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(LOG_LINES);
        let tail = lines.get(skipped..).unwrap_or_default().join("\n  ");
        format!("--- log of {name}:\n  {tail}")
    }
}

impl Drop for Process {
    /// Whatever happened, the process is over before its directory is removed.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) || self.child.start_kill().is_err() {
            return;
        }
        for _ in 0..LAST_LOOKS {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
