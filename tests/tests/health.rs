//! Peers that were lost, in real processes: they are left alone for a while after they come back,
//! unless nobody else can do their part.

use std::time::{Duration, Instant};

use accel_tests::{ChatRequest, Cluster, Node, NodeOptions, PATIENCE, models};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Layers that a node takes, of six.
const LAYERS: u32 = 2;

/// What `node` shows of a peer.
async fn shown(node: &Node, peer: &str) -> Result<Option<Value>> {
    let listing = node.client.get("/api/v1/peers").await?.body;
    let rows = listing["peers"].as_array().context("a list of peers")?;
    Ok(rows.iter().find(|row| row["peer_id"] == peer).cloned())
}

/// Waits until `node` shows a peer as wished.
async fn wait_until_shown(
    node: &Node,
    peer: &str,
    wished: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let view = shown(node, peer).await?;
        if let Some(view) = view.as_ref().filter(|view| wished(view)) {
            return Ok(view.clone());
        }
        if Instant::now() > deadline {
            bail!("{peer} is not shown like that: {view:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Who computed a session.
async fn route(node: &Node, session: &str) -> Result<Vec<String>> {
    let view = node.client.session(session).await?;
    let hops = view["route"].as_array().context("a route")?;
    let peer = |hop: &Value| hop["peer_id"].as_str().map(str::to_owned);
    Ok(hops.iter().filter_map(peer).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_was_lost_is_left_alone_unless_nobody_else_can() -> Result<()> {
    let model = models::talkative()?;
    let request = ChatRequest::greedy(&model.name, "Who are you?", 8);
    let data = tempfile::tempdir()?;
    let mut cluster = Cluster::start(3, Some(LAYERS)).await?;
    let unreliable = NodeOptions {
        max_layers: Some(LAYERS),
        data: Some(data.path().join("data")),
        ..NodeOptions::default()
    };
    let peer = cluster.add(unreliable.clone()).await?.peer_id.clone();
    cluster.wait_until_complete().await?;
    let asked = cluster.nodes.remove(0);
    asked.add_model(&model.path)?;
    let expected = asked.client.chat(&request).await?.text;
    let well = shown(&asked, &peer).await?.context("it is there")?;
    // A busy machine may have been slow to answer, which takes off 20 at most.
    assert!(
        well["breaker"] == "closed" && well["health"].as_u64() >= Some(80),
        "{well}"
    );

    let mut lost = cluster.nodes.pop().context("the last node")?;
    lost.process.kill();
    drop(lost);
    wait_until_shown(&asked, &peer, |view| view["breaker"] == "open").await?;
    let again = NodeOptions {
        join: asked.addrs.iter().take(1).cloned().collect(),
        swarm_key: Some(cluster.swarm_key.clone()),
        ..unreliable
    };
    let _again = Node::start(&again).await?;
    let back = wait_until_shown(&asked, &peer, |view| view["connected"] == true).await?;
    assert!(back["health"].as_u64() < Some(100), "{back}");

    let answer = asked.client.chat(&request).await?;
    assert_eq!(answer.text, expected);
    let without = route(&asked, &answer.session).await?;
    // A machine that is slow enough may have let the time pass for which the peer is left alone.
    let after = shown(&asked, &peer).await?.context("it is there")?;
    assert!(
        after["breaker"] != "open" || !without.contains(&peer),
        "{without:?} {after}"
    );

    cluster.nodes.pop().context("a spare")?.process.kill();
    let deadline = Instant::now() + PATIENCE;
    let answer = loop {
        match asked.client.chat(&request).await {
            Ok(answer) => break answer,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    assert_eq!(answer.text, expected);
    let with = route(&asked, &answer.session).await?;
    assert!(with.contains(&peer), "{with:?}");
    let (_, metrics) = asked.client.get_text("/metrics").await?;
    let none = "accel_breakers_opened_total 0";
    assert!(!metrics.contains(none), "{metrics}");
    Ok(())
}
