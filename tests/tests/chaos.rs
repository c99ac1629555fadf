//! A short run of the chaos command: real processes, seeded trials, every answer compared.

use std::{fs, path::Path, process::Command, time::Duration};

use accel_tests::{binaries, process::Process, skip_loudly};
use anyhow::{Context as _, Result};
use serde_json::Value;

const TRIALS: usize = 20;
/// The trials take a minute or two; a machine that does much else needs longer.
const LIMIT: Duration = Duration::from_secs(900);

/// Runs the command in a process group of its own and gives its report, and what it printed.
fn chaos(out: &Path, args: &[&str]) -> Result<(i32, Value, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    command.arg("--out").arg(out).args(args);
    command.env("ACCEL_BIN", binaries::accel()?);
    let mut process = Process::spawn("chaos", &mut command, out)?;
    let status = process.wait_for(LIMIT)?;
    assert!(!process.group_is_alive(), "it left a process behind");
    let json = fs::read_to_string(out.join("chaos.json")).context(process.output())?;
    let code = status.code().context("an exit code")?;
    Ok((code, serde_json::from_str(&json)?, process.output()))
}

#[test]
fn every_answer_of_twenty_trials_is_the_undisturbed_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // Has every kind of fault, with and without namespaces.
    let args = ["--generated", "--seed", "1417", "--trials", "20"];
    let (code, report, output) = chaos(dir.path(), &args)?;
    let left_out = report["left_out"].as_array().context("what was left out")?;
    for fault in left_out {
        let text = |index: usize| fault[index].as_str().unwrap_or_default();
        skip_loudly(&format!("chaos by {}", text(0)), text(1));
    }
    assert_eq!(code, 0, "{output}");
    let trials = report["outcomes"].as_array().context("trials")?;
    assert_eq!(trials.len(), TRIALS, "{output}");
    for trial in trials {
        assert_eq!(trial["problems"], Value::Array(Vec::new()), "{trial}");
        let sessions = trial["sessions"].as_array().context("sessions")?;
        assert!(!sessions.is_empty(), "{trial}");
        for session in sessions {
            assert_eq!(session["equal"], true, "{session}");
            assert_eq!(session["complete"], true, "{session}");
        }
    }
    let blows = trials.iter().filter_map(|trial| trial["blows"].as_array());
    let landed = blows.flatten().filter(|blow| !blow["peer_id"].is_null());
    let landed: Vec<&Value> = landed.collect();
    let has = |key: &str, value: Value| landed.iter().any(|blow| blow[key] == value);
    assert!(
        has("on_route", true.into()),
        "nothing was disturbed: {output}"
    );
    let was_left_out = |fault: &str| left_out.iter().any(|row| row[0] == fault);
    for fault in [
        "coordinator-kill",
        "coordinator-restart",
        "coordinator-stop",
        "coordinator-pause",
        "coordinator-cut",
    ] {
        if was_left_out(fault) {
            continue;
        }
        assert!(has("fault", fault.into()), "no {fault} came: {output}");
    }
    let markdown = fs::read_to_string(dir.path().join("chaos.md"))?;
    assert!(markdown.contains("Every figure is measured"), "{markdown}");
    Ok(())
}

#[test]
fn a_trial_that_is_played_again_is_the_same_trial() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let args = [
        "--generated",
        "--loopback",
        "--seed",
        "20",
        "--only",
        "kill,pause",
    ];
    let mut plans = Vec::new();
    for _ in 0..2 {
        let (code, report, output) = chaos(dir.path(), &[&args[..], &["--trial", "3"]].concat())?;
        assert_eq!(code, 0, "{output}");
        let trials = report["outcomes"].as_array().context("trials")?;
        assert_eq!(trials.len(), 1, "{output}");
        plans.extend(trials.iter().map(|trial| trial["plan"].clone()));
    }
    assert_eq!(plans.first(), plans.last());
    Ok(())
}

#[test]
fn a_fault_that_is_impossible_here_is_refused_when_asked_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    command.args(["--generated", "--loopback", "--only", "partition", "--out"]);
    let output = command.arg(dir.path()).output()?;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("it needs namespaces"), "{said}");
    Ok(())
}
