//! Two nodes that know only a meeting point find each other.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use accel_tests::{
    Node, NodeOptions, PATIENCE, binaries, cluster::wait_for_peers, node::make_swarm_key,
    process::Process,
};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

async fn meet(options: NodeOptions, args: &[&str]) -> Result<()> {
    let dir = TempDir::new()?;
    let ready = dir.path().join("ready.json");
    let mut command = Command::new(binaries::accel_bootstrap()?);
    command
        .arg("--data")
        .arg(dir.path().join("data"))
        .arg("--ready-file")
        .arg(&ready)
        .args(["--listen", "/ip4/127.0.0.1/tcp/0"])
        .args(args);
    let mut meeting_point = Process::spawn("bootstrap", &mut command, dir.path())?;
    let deadline = Instant::now() + PATIENCE;
    while !ready.exists() {
        if meeting_point.exited()?.is_some() || Instant::now() > deadline {
            bail!("not ready: {}", meeting_point.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told: Value = serde_json::from_str(&fs::read_to_string(&ready)?)?;
    let addr = told["addrs"][0].as_str().context("an address")?;

    let options = NodeOptions {
        join: vec![addr.to_owned()],
        ..options
    };
    let one = Node::start(&options).await?;
    let other = Node::start(&options).await?;
    wait_for_peers(&one, |seen| seen.contains(&other.peer_id)).await?;
    wait_for_peers(&other, |seen| seen.contains(&one.peer_id)).await?;
    assert!(meeting_point.terminate()?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_public_swarm_meet() -> Result<()> {
    let options = NodeOptions {
        args: ["--swarm", "a-test"].map(str::to_owned).to_vec(),
        ..NodeOptions::default()
    };
    meet(options, &["--swarm", "a-test"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_private_swarm_meet() -> Result<()> {
    let dir = TempDir::new()?;
    let key = make_swarm_key(dir.path())?;
    let path = key.to_str().context("a path in unicode")?.to_owned();
    let options = NodeOptions {
        swarm_key: Some(key),
        ..NodeOptions::default()
    };
    meet(options, &["--swarm-key", &path]).await
}
