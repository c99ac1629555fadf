//! `accel run`: what it prints when nobody disturbs it, and in mid-answer.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tempfile::TempDir;

use crate::node::accel_command;
use crate::process::Process;
use crate::{ChatRequest, Node, PATIENCE};

/// Bytes of the answer after which it is in the middle.
const BEGINNING: u64 = 40;

/// An `accel run` that goes on while a test does something to its node.
pub struct Run {
    process: Process,
    stdout: PathBuf,
    /// Has what it writes.
    _dir: TempDir,
}

/// What an `accel run` that succeeded has printed.
pub struct Printed {
    /// On standard output: the answer.
    pub answer: String,
    /// On standard error.
    pub told: String,
}

impl Run {
    /// Starts one at this node, and waits until it prints, but has not ended.
    pub async fn begin(node: &Node, request: &ChatRequest) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let stdout = dir.path().join("stdout");
        let mut command = accel_command(dir.path())?;
        command.args(args(request)).env("ACCEL_API", &node.api);
        let mut process = Process::spawn_apart("run", &mut command, dir.path(), &stdout)?;
        let deadline = Instant::now() + PATIENCE;
        while fs::metadata(&stdout)?.len() < BEGINNING {
            if Instant::now() > deadline {
                bail!("it prints nothing: {}", process.output());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if process.exited()?.is_some() {
            bail!("it was to be disturbed before its end");
        }
        Ok(Self {
            process,
            stdout,
            _dir: dir,
        })
    }

    /// Waits for its end, which must be a good one.
    pub fn end(mut self) -> Result<Printed> {
        let status = self.process.wait()?;
        let told = self.process.output();
        if !status.success() {
            bail!("accel run failed: {told}");
        }
        let answer = fs::read_to_string(&self.stdout)?;
        Ok(Printed { answer, told })
    }
}

/// What an `accel run` with this request prints at a node that nobody disturbs.
pub fn undisturbed(node: &Node, request: &ChatRequest) -> Result<String> {
    let args = args(request);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = node.cli(&args)?;
    if !output.status.success() {
        bail!("accel run failed: {output:?}");
    }
    Ok(output.stdout)
}

fn args(request: &ChatRequest) -> Vec<String> {
    let mut args = vec![
        "run".to_owned(),
        request.model.clone(),
        request.prompt.clone(),
    ];
    let mut set = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    set("--max-tokens", request.max_tokens.to_string());
    set("--temperature", request.temperature.to_string());
    set("--seed", request.seed.to_string());
    if let Some(level) = request.fault_tolerance {
        set("--fault-tolerance", level.to_owned());
    }
    args
}
