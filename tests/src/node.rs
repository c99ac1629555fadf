//! One `accel up` process, and one-off `accel` commands.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::{PATIENCE, binaries, client::Client, process::Process};

/// How to start a node; everything else is loopback, port 0 and a new directory.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// The swarm key file, when it holds one.
    pub swarm_key: Option<PathBuf>,
    /// Addresses or invites to join by.
    pub join: Vec<String>,
    /// The most layers that it may hold.
    pub max_layers: Option<u32>,
    /// The data directory; a temporary one by default.
    pub data: Option<PathBuf>,
    /// Further arguments of `accel up`.
    pub args: Vec<String>,
    /// What it logs, in the form of `ACCEL_LOG`; warnings by default.
    pub log: Option<String>,
    /// A program, with its arguments, that runs `accel` in its own place: `nsenter … --`.
    pub wrapper: Vec<String>,
}

/// A running node, gone when dropped.
pub struct Node {
    /// The process.
    pub process: Process,
    /// Its API.
    pub client: Client,
    /// Its PeerId.
    pub peer_id: String,
    /// Where its swarm listens, each with `/p2p/PEER`.
    pub addrs: Vec<String>,
    /// `host:port` of its API.
    pub api: String,
    api_key: Option<String>,
    data: PathBuf,
    // Dropped after the process.
    _dir: TempDir,
}

impl Node {
    /// Starts a node and waits for its ready file.
    pub async fn start(options: &NodeOptions) -> Result<Self> {
        let dir = temp_dir()?;
        let data = options
            .data
            .clone()
            .unwrap_or_else(|| dir.path().join("data"));
        let ready_file = dir.path().join("ready.json");
        let mut command = up_command(options, &data, dir.path())?;
        command.arg("--ready-file").arg(&ready_file);
        let mut process = Process::spawn(&next_name(), &mut command, dir.path())?;
        let ready = wait_for_ready(&mut process, &ready_file).await?;
        let api = text(&ready, "api")?;
        let addrs = ready
            .get("addrs")
            .and_then(Value::as_array)
            .context("the ready file has no addrs")?;
        Ok(Self {
            client: Client::new(&api)?,
            peer_id: text(&ready, "peer_id")?,
            addrs: addrs
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            api,
            api_key: None,
            process,
            data,
            _dir: dir,
        })
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// From now on its API is asked with this key.
    pub fn use_key(&mut self, key: &str) -> Result<()> {
        self.client = Client::with_key(&self.api, key)?;
        self.api_key = Some(key.to_owned());
        Ok(())
    }

    /// From now on its API is asked with the key that is in its data directory.
    pub fn find_key(&mut self) -> Result<()> {
        let key = fs::read_to_string(self.data.join("api-key")).context("the key of an API")?;
        self.use_key(key.trim())
    }

    /// Runs an `accel` command against this node and gives what it printed.
    pub fn cli(&self, args: &[&str]) -> Result<CommandOutput> {
        let mut env = vec![("ACCEL_API", self.api.as_str())];
        let key = self.api_key.as_deref();
        env.extend(key.map(|key| ("ACCEL_API_KEY", key)));
        run_with(args, &env)
    }

    /// Like [`Node::cli`], with `--json`, for a command that must succeed.
    pub fn cli_json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.push("--json");
        let output = self.cli(&all)?;
        if !output.status.success() {
            bail!("accel {} failed: {}", args.join(" "), output.stderr);
        }
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("accel {} printed {:?}", args.join(" "), output.stdout))
    }

    /// Adds a model file and gives its CID.
    pub fn add_model(&self, path: &Path) -> Result<String> {
        let path = path.to_str().context("a model path in unicode")?;
        text(&self.cli_json(&["model", "add", path])?, "cid")
    }
}

/// What a finished command left.
#[derive(Debug)]
pub struct CommandOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs `accel ARGS` to its end.
pub fn run(args: &[&str]) -> Result<CommandOutput> {
    run_with(args, &[])
}

/// Runs `accel ARGS` to its end with more in its environment, and makes sure that nothing which it
/// started is left.
pub fn run_with(args: &[&str], env: &[(&str, &str)]) -> Result<CommandOutput> {
    let dir = temp_dir()?;
    let mut command = accel_command(dir.path())?;
    command.args(args).envs(env.iter().copied());
    let stdout = dir.path().join("stdout");
    let mut process = Process::spawn_apart("command", &mut command, dir.path(), &stdout)?;
    let status = process.wait()?;
    if status.success() {
        process.hush();
    }
    if process.group_is_alive() {
        bail!("accel {} left a process behind", args.join(" "));
    }
    Ok(CommandOutput {
        status,
        stdout: fs::read_to_string(stdout).unwrap_or_default(),
        stderr: process.output(),
    })
}

/// Starts `accel up` where it is expected to refuse, and gives how it ended.
pub fn start_refused(options: &NodeOptions) -> Result<CommandOutput> {
    let dir = temp_dir()?;
    let data = options
        .data
        .clone()
        .unwrap_or_else(|| dir.path().join("data"));
    let mut command = up_command(options, &data, dir.path())?;
    let stdout = dir.path().join("stdout");
    let mut process = Process::spawn_apart("refused", &mut command, dir.path(), &stdout)?;
    let status = process.wait()?;
    Ok(CommandOutput {
        status,
        stdout: fs::read_to_string(stdout).unwrap_or_default(),
        stderr: process.output(),
    })
}

/// Makes a swarm key file in `dir`.
pub fn make_swarm_key(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("swarm.key");
    let out = path.to_str().context("a path in unicode")?;
    let output = run(&["swarm", "init", "--out", out])?;
    if !output.status.success() {
        bail!("accel swarm init failed: {}", output.stderr);
    }
    Ok(path)
}

/// `accel` without anything of this user's configuration.
pub fn accel_command(home: &Path) -> Result<Command> {
    Ok(without_own_settings(Command::new(binaries::accel()?), home))
}

fn without_own_settings(mut command: Command, home: &Path) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ACCEL_") {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_DATA_HOME", home.join("share"))
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env("TMPDIR", home)
        // What others compute again disturbs what is counted; tests of that say so.
        .env("ACCEL_AUDIT_SHARE", "0")
        .current_dir(home);
    command
}

fn up_command(options: &NodeOptions, data: &Path, home: &Path) -> Result<Command> {
    let mut command = match options.wrapper.split_first() {
        None => accel_command(home)?,
        Some((program, args)) => {
            let mut command = without_own_settings(Command::new(program), home);
            command.args(args).arg(binaries::accel()?);
            command
        }
    };
    command.arg("up").arg("--data").arg(data);
    if !options.args.iter().any(|arg| arg == "--api") {
        command.args(["--api", "127.0.0.1:0"]);
    }
    if !options.args.iter().any(|arg| arg == "--listen") {
        command.args(["--listen", "/ip4/127.0.0.1/tcp/0"]);
    }
    if let Some(key) = &options.swarm_key {
        command.arg("--swarm-key").arg(key);
    }
    for target in &options.join {
        command.arg("--join").arg(target);
    }
    if let Some(layers) = options.max_layers {
        command.arg("--max-layers").arg(layers.to_string());
    }
    if let Some(log) = &options.log {
        command.env("ACCEL_LOG", log);
    }
    command.args(&options.args);
    Ok(command)
}

async fn wait_for_ready(process: &mut Process, path: &Path) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = fs::read_to_string(path) {
            return serde_json::from_str(&text).context("the ready file is not JSON");
        }
        if let Some(status) = process.exited()? {
            bail!("the node ended ({status}):\n{}", process.log_tail());
        }
        if Instant::now() > deadline {
            bail!("the node did not become ready:\n{}", process.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn next_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("node-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

fn temp_dir() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("accel-test-")
        .tempdir()
        .context("cannot make a temporary directory")
}

fn text(value: &Value, key: &str) -> Result<String> {
    let found = value.get(key).and_then(Value::as_str);
    found
        .map(str::to_owned)
        .with_context(|| format!("no {key} in {value}"))
}
