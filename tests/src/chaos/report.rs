//! What a run found, as Markdown for people and JSON for programs. Every figure in it is measured.

mod figures;
mod markdown;

use std::{fs, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{rpc_peers::Findings, run::files, trial::Outcome};
use crate::{models::Model, node};

/// Everything about a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How its figures came about.
    pub tag: &'static str,
    /// The command.
    pub command: String,
    /// When it began, in UTC.
    pub date: String,
    /// What the trials are drawn from.
    pub seed: u64,
    /// The model that was computed.
    pub model: String,
    /// Where.
    pub machine: Machine,
    /// The kinds of fault, and what they are.
    pub faults: Vec<(&'static str, &'static str)>,
    /// The kinds that were impossible here, and why.
    pub left_out: Vec<(&'static str, String)>,
    /// The batch before which time was up, if it was.
    pub stopped_before: Option<u32>,
    /// What replays a trial, but for its number.
    pub replay: String,
    /// The trials, as they were played.
    pub outcomes: Vec<Outcome>,
    /// The same kill, done to llama.cpp.
    pub rpc_peers: Option<Findings>,
    /// Seconds that the run took.
    pub seconds: u64,
    #[serde(skip)]
    pub(super) started: Instant,
}

/// The machine of a run.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// What its processor calls itself.
    pub processor: String,
    /// Its cores.
    pub cores: usize,
    /// Its kernel.
    pub kernel: String,
    /// `accel --version`.
    pub accel: String,
    /// Its load when the run began: other programs make every pause longer.
    pub load: String,
}

impl Report {
    /// A report without trials yet.
    pub fn new(command: String, seed: u64, model: &Model, machine: Machine) -> Self {
        Self {
            tag: "measured",
            command,
            date: said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            seed,
            model: format!(
                "{} ({} layers, {} bytes)",
                model.name, model.layers, model.bytes
            ),
            machine,
            faults: Vec::new(),
            left_out: Vec::new(),
            stopped_before: None,
            replay: String::new(),
            outcomes: Vec::new(),
            rpc_peers: None,
            seconds: 0,
            started: Instant::now(),
        }
    }

    /// Trials in which something is not as it must be.
    pub fn failed(&self) -> usize {
        let failed = self
            .outcomes
            .iter()
            .filter(|trial| !trial.problems.is_empty());
        failed.count()
    }

    /// Writes both files. After every trial: an interrupted run leaves what it found.
    pub fn write(&mut self, dir: &Path) -> Result<()> {
        self.seconds = self.started.elapsed().as_secs();
        let [markdown, json] = files(dir);
        fs::write(markdown, markdown::text(self)).context("cannot write the report")?;
        let text = serde_json::to_string_pretty(self)?;
        fs::write(json, text + "\n").context("cannot write the report")
    }
}

/// This machine.
pub fn machine() -> Result<Machine> {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = processors.lines();
    let name = lines.find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let version = node::run(&["--version"])?.stdout;
    Ok(Machine {
        processor: name.map_or("unknown", |(_, name)| name).trim().to_owned(),
        cores: std::thread::available_parallelism()?.get(),
        kernel: said("uname", &["-sr"]),
        accel: version.trim().to_owned(),
        load: fs::read_to_string("/proc/loadavg")
            .unwrap_or_default()
            .trim()
            .to_owned(),
    })
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().trim().to_owned()
}
