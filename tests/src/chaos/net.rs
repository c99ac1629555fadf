//! A network namespace per node, joined by a bridge, so that links can be cut and packets lost.
//!
//! The command starts itself again inside namespaces of its own (user, network, mount and process), so
//! it needs no privileges where the system lets a user do that, and all of it vanishes with the command,
//! however that ends: the kernel kills what is left in the process namespace.

mod scrambler;

use std::{
    env, fs, mem,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::{NodeOptions, PATIENCE, binaries, process::Process};
use scrambler::Scrambler;
pub use scrambler::{Damage, obstacle as cable_obstacle};

/// Says to the command that it was started again inside.
const INSIDE: &str = "ACCEL_CHAOS_INSIDE";
const UNSHARE: [&str; 4] = ["-rnmp", "--fork", "--kill-child", "--mount-proc"];
/// The exit code of a command that was told to stop.
pub const INTERRUPTED: u8 = 130;
const HUB: &str = "hub";
const HUB_ADDRESS: &str = "02:00:00:00:01:00";
/// The nodes' own little network: nothing outside is reached from it.
const PREFIX: &str = "10.77";
/// A hardware address that nobody has: what is sent there is lost without a word.
const NOWHERE: &str = "02:00:00:00:00:ff";

/// Where this command runs.
pub enum Place {
    /// In namespaces of its own.
    Inside,
    /// On the machine's loopback, and why.
    Loopback(String),
    /// Nowhere any more: it ran inside, and ended with this code.
    Done(u8),
}

/// Runs this program again inside namespaces, where that is possible, and waits for its end.
pub async fn enter() -> Result<Place> {
    if env::var_os(INSIDE).is_some() {
        return Ok(Place::Inside);
    }
    // Everything temporary lies in here, and goes even if the inner command cannot tidy up.
    let scratch = tempfile::Builder::new().prefix("accel-chaos-").tempdir()?;
    if let Err(why) = probe(scratch.path()) {
        return Ok(Place::Loopback(format!("{why:#}")));
    }
    let mut inner = tokio::process::Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "unshare"])
        .args(UNSHARE)
        .arg("--")
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .env("TMPDIR", scratch.path())
        // Found out here, because cargo may have to build it, and inside there is no network.
        .env("ACCEL_BIN", binaries::accel()?)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start setpriv")?;
    let status = tokio::select! {
        status = inner.wait() => status?,
        () = told_to_stop() => {
            inner.kill().await?;
            return Ok(Place::Done(INTERRUPTED));
        }
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(Place::Done(code.unwrap_or(2)))
}

/// Returns on Ctrl-C and SIGTERM.
pub async fn told_to_stop() {
    let terminate = signal(SignalKind::terminate());
    let Ok(mut terminate) = terminate else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

fn probe(scratch: &Path) -> Result<()> {
    let script =
        "ip link add probe type bridge && mount -t tmpfs none \"$1\" && command -v nsenter ss";
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "unshare"]);
    command.args(UNSHARE).args(["--", "sh", "-c", script, "sh"]);
    succeed(command.arg(scratch))
}

/// The bridge, and this command's own end of it.
pub struct Net {
    ports: u16,
}

impl Net {
    /// Makes the bridge. Once per command.
    pub fn open() -> Result<Self> {
        ip("link set lo up")?;
        // Else it has that of one of its ports, and another one when ports come and go: then nodes send what is for
        // the clients to an address that nobody has any more.
        ip(&format!("link add {HUB} address {HUB_ADDRESS} type bridge"))?;
        ip(&format!("addr add {PREFIX}.0.1/16 dev {HUB}"))?;
        ip(&format!("link set {HUB} up"))?;
        Ok(Self { ports: 1 })
    }

    /// A namespace that is connected to the bridge.
    pub fn port(&mut self, dir: &Path) -> Result<Port> {
        self.ports = self.ports.checked_add(1).context("no address is left")?;
        Port::open(self.ports, dir)
    }
}

/// One end of the bridge: a machine, as far as its network goes.
pub struct Port {
    number: u16,
    holder: Process,
    bad_cable: Option<Scrambler>,
    damaged: u64,
}

impl Port {
    fn open(number: u16, dir: &Path) -> Result<Self> {
        // A namespace lives as long as a process in it: this one, through all restarts of the node.
        let mut command = Command::new("unshare");
        command.args(["-n", "--", "sleep", "infinity"]);
        let mut holder = Process::spawn(&format!("port-{number}"), &mut command, dir)?;
        holder.hush();
        wait_for_namespace(&holder)?;
        let port = Self {
            number,
            holder,
            bad_cable: None,
            damaged: 0,
        };
        let link = port.link_name();
        let id = port.holder.id();
        ip(&format!(
            "link add {link} type veth peer name eth0 netns {id}"
        ))?;
        ip(&format!("link set {link} master {HUB} up"))?;
        port.ip("link set lo up")?;
        port.ip(&format!("addr add {}/16 dev eth0", port.address()))?;
        port.ip("link set eth0 up")?;
        Ok(port)
    }

    /// Its address.
    pub fn address(&self) -> String {
        let [high, low] = self.number.to_be_bytes();
        format!("{PREFIX}.{high}.{low}")
    }

    /// What runs a program there, in its own place.
    fn wrapper(&self) -> Vec<String> {
        let namespace = format!("--net=/proc/{}/ns/net", self.holder.id());
        ["nsenter", &namespace, "--"].map(str::to_owned).to_vec()
    }

    /// For a node that lives there: it listens there, and so does its API, which asks for a key.
    pub fn house(&self, mut options: NodeOptions) -> NodeOptions {
        let address = self.address();
        let swarm = format!("/ip4/{address}/tcp/0");
        let args = ["--listen", &swarm, "--api", &format!("{address}:0")].map(str::to_owned);
        options.args.extend(args);
        options.wrapper.splice(0..0, self.wrapper());
        options
    }

    /// From now on so many megabits a second pass, each way; with none, as many as can.
    pub fn shape(&self, megabits: Option<u64>) -> Result<()> {
        let link = self.link_name();
        match megabits {
            Some(megabits) => {
                succeed(Command::new("tc").args(slow(&link, megabits).split(' ')))?;
                self.run("tc", &slow("eth0", megabits))
            }
            None => {
                let freely = |device: &str| format!("qdisc replace dev {device} root pfifo");
                succeed(Command::new("tc").args(freely(&link).split(' ')))?;
                self.run("tc", &freely("eth0"))
            }
        }
    }

    /// Pulls its cable.
    pub fn unplug(&self) -> Result<()> {
        ip(&format!("link set {} down", self.link_name()))
    }

    /// Puts its cable back.
    pub fn plug(&self) -> Result<()> {
        ip(&format!("link set {} up", self.link_name()))
    }

    /// Resets all of its TCP connections, as a router that forgot them would.
    pub fn reset(&self) -> Result<()> {
        self.run("ss", "-K -t state connected")
    }

    /// From now on, nothing that it sends to this address arrives.
    pub fn lose(&self, address: &str) -> Result<()> {
        self.ip(&loss(address))
    }

    /// What it sends to this address arrives again.
    pub fn reach(&self, address: &str) -> Result<()> {
        self.ip(&gain(address))
    }

    /// Puts a bad cable in.
    pub fn scramble(&mut self, damage: Damage) -> Result<()> {
        let cable = Scrambler::splice(&self.link_name(), self.number, damage)?;
        self.bad_cable = Some(cable);
        Ok(())
    }

    /// Takes it out again.
    pub async fn repair(&mut self) -> Result<()> {
        if let Some(cable) = self.bad_cable.take() {
            self.damaged += cable.remove(self.number).await?;
        }
        Ok(())
    }

    /// How many frames it damaged since this was asked last.
    pub fn take_damaged(&mut self) -> u64 {
        mem::take(&mut self.damaged)
    }

    fn link_name(&self) -> String {
        format!("port{}", self.number)
    }

    fn ip(&self, words: &str) -> Result<()> {
        self.run("ip", words)
    }

    fn run(&self, program: &str, words: &str) -> Result<()> {
        let wrapper = self.wrapper();
        let (first, rest) = wrapper.split_first().context("a wrapper has a program")?;
        let mut command = Command::new(first);
        succeed(command.args(rest).arg(program).args(words.split(' ')))
    }
}

/// Loses one direction only, and silently: a route that refuses would tell the sender.
fn loss(address: &str) -> String {
    format!("neigh replace {address} lladdr {NOWHERE} nud permanent dev eth0")
}

/// Says nothing where nothing is lost: two partitions may share a pair of nodes.
fn gain(address: &str) -> String {
    format!("neigh flush to {address} dev eth0 nud permanent")
}

/// A token bucket with room for a hundredth of a second, and for no less than a large segment.
fn slow(device: &str, megabits: u64) -> String {
    let bucket = (megabits * 125_000 / 100).max(65_536);
    format!("qdisc replace dev {device} root tbf rate {megabits}mbit burst {bucket} latency 100ms")
}

fn ip(words: &str) -> Result<()> {
    succeed(Command::new("ip").args(words.split(' ')))
}

/// A disk of its own for a node, in memory and small enough to be filled.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts one of so many MiB.
    pub fn mount(path: &Path, mib: u64) -> Result<Self> {
        fs::create_dir_all(path)?;
        let size = format!("size={mib}m");
        succeed(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "none"])
                .arg(path),
        )?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Takes all of its space: whoever writes there now hears `ENOSPC` from the system.
    pub fn fill(&self) -> Result<()> {
        use std::io::{ErrorKind, Write as _};
        let mut filler = fs::File::create(self.filler())?;
        for size in [1 << 20, 4096, 1] {
            let zeros = vec![0; size];
            loop {
                match filler.write_all(&zeros) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("cannot fill the disk"),
                }
            }
        }
        Ok(())
    }

    /// Gives the space back.
    pub fn clear(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("cannot clear the disk")
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What still uses it keeps it until it ends; the namespace takes the rest with it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn wait_for_namespace(holder: &Process) -> Result<()> {
    let own = fs::read_link("/proc/self/ns/net")?;
    let path = format!("/proc/{}/ns/net", holder.id());
    let deadline = Instant::now() + PATIENCE;
    while fs::read_link(&path)? == own {
        if Instant::now() > deadline {
            bail!("no network namespace came up: {}", holder.output());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed: {}", said.trim());
    }
    Ok(())
}
