//! One child process in a group of its own: nothing that it starts outlives the test.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};

use crate::PATIENCE;

/// How much of a log is shown when a test fails.
const LOG_TAIL: usize = 6_000;

/// A running child. Dropping it kills its whole group.
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
    quiet: bool,
}

impl Process {
    /// Starts `command` with all of its output going to `DIR/NAME.log`.
    pub fn spawn(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        Self::start(name, command, log)
    }

    /// Like [`Process::spawn`], with standard output going to a file of its own.
    pub fn spawn_apart(
        name: &str,
        command: &mut Command,
        dir: &Path,
        stdout: &Path,
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        command.stdout(create(stdout)?).stderr(create(&log)?);
        Self::start(name, command, log)
    }

    fn start(name: &str, command: &mut Command, log: PathBuf) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self {
            name: name.to_owned(),
            pid: Pid::from_child(&child),
            child,
            log,
            quiet: false,
        })
    }

    /// Does not show the end of its log when dropped: for programs that keep logs in their own way.
    pub fn hush(&mut self) {
        self.quiet = true;
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it printed so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last part of what it printed.
    pub fn log_tail(&self) -> String {
        let output = self.output();
        let mut start = output.len().saturating_sub(LOG_TAIL);
        while !output.is_char_boundary(start) {
            start += 1;
        }
        output.get(start..).unwrap_or_default().to_owned()
    }

    /// Its exit status, when it has ended.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.wait_for(PATIENCE)
    }

    /// Waits for it to end by itself, for so long.
    pub fn wait_for(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} did not end", self.name);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end (SIGTERM).
    pub fn ask_to_end(&self) -> Result<()> {
        kill_process(self.pid, Signal::TERM).context("cannot signal")
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.ask_to_end()?;
        self.wait()
    }

    /// Ends it and all that it started at once (SIGKILL), as a power cut would.
    pub fn kill(&mut self) {
        // The group may have ended by itself: then there is nobody to signal.
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = self.child.wait();
    }

    /// Ends it alone at once (SIGKILL), without the processes that it started.
    pub fn kill_alone(&mut self) -> Result<ExitStatus> {
        kill_process(self.pid, Signal::KILL).context("cannot signal")?;
        self.wait()
    }

    /// Stops it where it is (SIGSTOP), as a machine that hangs would.
    pub fn pause(&self) -> Result<()> {
        kill_process_group(self.pid, Signal::STOP).context("cannot signal")
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) -> Result<()> {
        kill_process_group(self.pid, Signal::CONT).context("cannot signal")
    }

    /// Is anything of its process group still running?
    pub fn group_is_alive(&self) -> bool {
        match states_of_group(self.pid) {
            // An orphan that has ended stays listed until init looks after it.
            Some(states) => states.iter().any(|state| state != "Z" && state != "X"),
            None => test_kill_process_group(self.pid).is_ok(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if self.quiet {
            return;
        }
        // Captured by the test runner, which shows it for a failing test only.
        println!(
            "--- {} (the end of its log)\n{}",
            self.name,
            self.log_tail()
        );
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot make {}", path.display()))
}

/// The states of the processes in a group, where the system has `/proc`.
fn states_of_group(group: Pid) -> Option<Vec<String>> {
    let group = group.as_raw_nonzero().to_string();
    let mut states = Vec::new();
    for entry in fs::read_dir("/proc").ok()? {
        let Ok(stat) = fs::read_to_string(entry.ok()?.path().join("stat")) else {
            continue;
        };
        // pid (name) state parent group …, and the name may hold anything.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let mut fields = after_name.split_whitespace();
        let (state, found) = (fields.next(), fields.nth(1));
        if found == Some(group.as_str()) {
            states.extend(state.map(str::to_owned));
        }
    }
    (!states.is_empty() || Path::new("/proc/self/stat").exists()).then_some(states)
}
