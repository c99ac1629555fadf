//! `accel demo`: the README's first command.

use std::{
    fs,
    time::{Duration, Instant},
};

use accel_tests::{PATIENCE, models, node, process::Process};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

/// Nowhere to download from: what is not on this machine cannot be had.
const OFFLINE: [(&str, &str); 2] = [("HF_ENDPOINT", "http://127.0.0.1:9"), ("PATH", "/nowhere")];

#[test]
fn the_demo_splits_a_real_model_over_three_nodes_and_ends_by_itself() -> Result<()> {
    let Some(model) = models::smollm2()? else {
        return Ok(());
    };
    let dir = model.path.parent().context("a model lies in a directory")?;
    let models = ("ACCEL_MODELS", dir.to_str().context("a path in unicode")?);
    let args = ["demo", "--max-tokens", "12", "--json"];
    let output = node::run_with(&args, &[OFFLINE[0], OFFLINE[1], models])?;
    assert!(output.status.success(), "{}", output.stderr);
    let report: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("not JSON: {}", output.stdout))?;
    assert_eq!(report["equal"], true, "{report}");
    let nodes = report["nodes"].as_array().context("a list of nodes")?;
    assert_eq!(nodes.len(), 3, "{report}");
    Ok(())
}

#[test]
fn without_any_source_of_the_model_the_demo_says_what_to_do() -> Result<()> {
    let empty = TempDir::new()?;
    let models = (
        "ACCEL_MODELS",
        empty.path().to_str().context("a path in unicode")?,
    );
    let output = node::run_with(&["demo"], &[OFFLINE[0], OFFLINE[1], models])?;
    assert!(!output.status.success(), "{output:?}");
    assert!(output.status.code().is_some(), "it crashed: {output:?}");
    assert!(output.stderr.contains("ACCEL_MODELS"), "{}", output.stderr);
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
    assert_eq!(fs::read_dir(empty.path())?.count(), 0, "it left a file");
    Ok(())
}

#[test]
fn a_demo_that_is_killed_leaves_no_node_behind() -> Result<()> {
    let Some(model) = models::smollm2()? else {
        return Ok(());
    };
    let home = TempDir::new()?;
    let mut command = node::accel_command(home.path())?;
    command
        .arg("demo")
        .env("ACCEL_MODELS", model.path.parent().context("a directory")?);
    let mut demo = Process::spawn("demo", &mut command, home.path())?;
    wait_until(|| Ok(demo.output().contains("asking the third")))
        .context("the demo does not begin")?;
    demo.kill_alone()?;
    wait_until(|| Ok(!demo.group_is_alive())).context("its nodes live on")
}

fn wait_until(mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > deadline {
            bail!("waited in vain");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
