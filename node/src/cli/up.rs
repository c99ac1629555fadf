//! `accel up`: runs a node until it is told to stop.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use accel_actors::{BreakerLimits, Limits, NodeConfig, NodeHandle};
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Output;
use crate::api::{Access, Api, ApiKey};
use crate::config::{Flags, Settings};
use crate::failure::Failure;
use crate::{signals, terminal};

/// How long a node may take to say goodbye once its requests are drained.
const GOODBYE: Duration = Duration::from_secs(10);

/// Run a node
#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    flags: Flags,
    /// Stop when stdin ends: a parent that dies leaves no node behind
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

impl Up {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let settings = Settings::load(&self.flags)?;
        let guard = self.until_stdin_closes;
        // Actors live on this thread; the network has the runtime's other threads.
        let system = actix::System::with_tokio_rt(|| {
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .expect("the system gives threads to a program that starts")
        });
        system.block_on(serve(settings, guard, output))
    }
}

async fn serve(settings: Settings, guard: bool, output: Output) -> Result<(), Failure> {
    let mut stop = pin!(stop_requested(guard));
    let listener = bind(settings.api_addr()?)?;
    let data = settings.data_dir()?;
    // One that a killed node left would tell that this one is ready.
    if let Some(path) = &settings.ready_file {
        remove_stale(path)?;
    }
    let starting = NodeHandle::start(node_config(&settings, data.clone()));
    let node = tokio::select! {
        started = starting => started?,
        stopped = &mut stop => return stopped,
    };
    let result = match open(&settings, &data, listener, &node, output) {
        Ok(opened) => {
            let stopped = stop.await;
            drain(&opened.api, &node).await;
            stopped
        }
        Err(failure) => Err(failure),
    };
    // Does nothing more when the node was drained.
    if timeout(GOODBYE, node.shutdown()).await.is_err() {
        tracing::warn!("the node did not stop in time; leaving anyway");
    }
    result
}

/// A node that takes requests, until it is dropped.
struct Opened {
    api: Api,
    _ready: Option<ReadyFile>,
}

fn open(
    settings: &Settings,
    data: &Path,
    listener: TcpListener,
    node: &NodeHandle,
    output: Output,
) -> Result<Opened, Failure> {
    let access = match Access::needs_key(&listener.local_addr()?) {
        true => Access::Key(ApiKey::load_or_create(data)?),
        false => Access::Open,
    };
    let api = Api::start(node.clone(), listener, access)?;
    node.set_api(api.addr);
    let told = json!({
        "peer_id": node.peer_id(),
        "api": api.addr.to_string(),
        "addrs": node.addrs(),
    });
    let ready = match &settings.ready_file {
        Some(path) => Some(ReadyFile::write(path, &told)?),
        None => None,
    };
    match announce(node, &api, &told, output) {
        // Nobody has to listen to what a node says of itself.
        Err(failure) if !failure.is_quiet() => return Err(failure),
        _ => {}
    }
    Ok(Opened { api, _ready: ready })
}

fn announce(node: &NodeHandle, api: &Api, told: &Value, output: Output) -> Result<(), Failure> {
    if output.json {
        return terminal::line(&told.to_string());
    }
    let (swarm, private) = node.swarm();
    let kind = if private {
        "private"
    } else {
        "public: everybody may join"
    };
    terminal::line(&format!("peer   {}", node.peer_id()))?;
    terminal::line(&format!("swarm  {swarm}, {kind}"))?;
    terminal::line(&format!("api    http://{}", api.addr))?;
    for addr in node.addrs() {
        terminal::line(&format!("addr   {addr}"))?;
    }
    if Access::needs_key(&api.addr) {
        terminal::note("the API needs a key; `accel key` shows it");
    }
    terminal::note("running; Ctrl-C stops");
    Ok(())
}

fn breaker(settings: &Settings) -> BreakerLimits {
    let usual = BreakerLimits::default();
    let seconds = settings.breaker_seconds.map(u64::from);
    BreakerLimits {
        failures: settings.breaker_failures.unwrap_or(usual.failures),
        open: seconds.map_or(usual.open, Duration::from_secs),
        trials: settings.breaker_trials.unwrap_or(usual.trials),
        successes: settings.breaker_successes.unwrap_or(usual.successes),
    }
}

fn node_config(settings: &Settings, data_dir: PathBuf) -> NodeConfig {
    let mut limits = Limits::default();
    if let Some(seconds) = settings.resume_window {
        limits.resume_window = Duration::from_secs(seconds.into());
    }
    limits.breaker = breaker(settings);
    NodeConfig {
        limits,
        listen: settings.listen.clone(),
        join: settings.join.clone(),
        swarm: settings.swarm.clone(),
        swarm_key: settings.swarm_key.clone(),
        threads: settings.threads,
        kv: settings.kv,
        memory_limit: settings.memory.map(|size| size.0),
        max_layers: settings.max_layers,
        fault_tolerance: settings.fault_tolerance,
        warm_stand_ins: settings.warm_stand_ins,
        audit_share: settings.audit_share,
        ..NodeConfig::loopback(data_dir)
    }
}

/// Taken before the node starts: a busy port costs nothing.
fn bind(addr: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(addr).map_err(|error| {
        let failure = Failure::new(format!("the API cannot listen on {addr}: {error}"));
        match error.kind() {
            ErrorKind::AddrInUse => failure.with_hint(
                "another program has this port, perhaps another node; choose one with --api",
            ),
            _ => failure.with_hint("choose another address with --api"),
        }
    })
}

/// Lets running requests finish for a while, or hands them over; a second request to stop ends the
/// wait.
async fn drain(api: &Api, node: &NodeHandle) {
    terminal::note(
        "stopping: running requests may finish, or go to peers; Ctrl-C again stops at once",
    );
    tokio::select! {
        () = stop_in_order(api, node) => {}
        _ = signals::stop_requested() => {}
    }
}

/// New requests are told that the node is shutting down until the last answer is out.
async fn stop_in_order(api: &Api, node: &NodeHandle) {
    node.shutdown().await;
    api.stop().await;
}

async fn stop_requested(guard: bool) -> Result<(), Failure> {
    if !guard {
        return Ok(signals::stop_requested().await?);
    }
    let (sender, closed) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            let mut sink = io::sink();
            let ended = io::copy(&mut io::stdin().lock(), &mut sink);
            tracing::debug!(?ended, "stdin is closed");
            // Nobody listens any more when the node is stopping anyway.
            let _ = sender.send(());
        })?;
    tokio::select! {
        stopped = signals::stop_requested() => Ok(stopped?),
        _ = closed => Ok(()),
    }
}

/// Tells other programs that everything listens; gone when the node stops.
struct ReadyFile(PathBuf);

impl ReadyFile {
    fn write(path: &Path, told: &Value) -> Result<Self, Failure> {
        let result = write_whole(path, told);
        result.map_err(|error| {
            Failure::new(format!(
                "the ready file {} cannot be written: {error}",
                path.display()
            ))
            .with_hint("choose another path with --ready-file")
        })?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        // It may have been removed by whoever waited for it.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn remove_stale(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let message = format!("{} cannot be replaced: {error}", path.display());
            Err(Failure::new(message).with_hint("choose another path with --ready-file"))
        }
        _ => Ok(()),
    }
}

fn write_whole(path: &Path, told: &Value) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    writeln!(file, "{told}")?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_file_appears_whole_and_goes_with_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready.json");
        let ready = ReadyFile::write(&path, &json!({"peer_id": "p"})).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"peer_id\":\"p\"}\n");
        drop(ready);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_busy_port_is_told_with_a_hint() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let failure = bind(taken.local_addr().unwrap()).unwrap_err().to_string();
        assert!(failure.contains("hint: another program"), "{failure}");
    }
}
