//! Nodes that are stopped (SIGTERM) in mid-answer, in real processes: they hand their sessions over
//! and end in time, and the pieces add up to the answer that nobody disturbed.

use std::time::{Duration, Instant};

use accel_tests::{
    ChatRequest, Cluster, Listener, Node, NodeOptions,
    models::{self, Model},
    run::{self, Run},
};
use anyhow::{Context as _, Error, Result};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

const PROMPT: &str = "Tell me everything.";
/// Far longer than a node that stops lets its sessions run.
const LONG: u32 = 3_000;
/// Far longer than a session takes to find another node.
const MOVED: u32 = 900;
/// No node takes longer to stop: what sessions have, what goodbyes have, and a busy machine.
const BOUND: Duration = Duration::from_secs(25);

fn sampled(model: &Model, level: &'static str, most: u32) -> ChatRequest {
    let mut request = ChatRequest::greedy(&model.name, PROMPT, most);
    // Warmer, the model would end by itself.
    request.temperature = 0.3;
    request.seed = 42;
    request.fault_tolerance = Some(level);
    request
}

/// The texts of one node that nobody disturbs: of `MOVED` tokens and of `LONG`.
async fn undisturbed(model: &Model) -> Result<&'static [String; 2]> {
    static TEXTS: OnceCell<[String; 2]> = OnceCell::const_new();
    let texts = TEXTS.get_or_try_init(|| async {
        let node = Node::start(&NodeOptions::default()).await?;
        node.add_model(&model.path)?;
        let moved = node.client.chat(&sampled(model, "low", MOVED)).await?;
        let long = node.client.chat(&sampled(model, "low", LONG)).await?;
        Ok::<_, Error>([moved.text, long.text])
    });
    texts.await
}

/// Nodes that take two layers each, and the first and the last of which have the model.
async fn cluster(count: usize, last: NodeOptions, model: &Model) -> Result<Cluster> {
    let mut cluster = Cluster::empty()?;
    for _ in 1..count {
        cluster.add(small(NodeOptions::default())).await?;
    }
    cluster.add(small(last)).await?;
    cluster.wait_until_complete().await?;
    for node in cluster.nodes.iter().take(1).chain(cluster.nodes.last()) {
        node.add_model(&model.path)?;
    }
    Ok(cluster)
}

fn small(options: NodeOptions) -> NodeOptions {
    NodeOptions {
        max_layers: Some(2),
        ..options
    }
}

/// A directory that outlasts its node.
fn lasting() -> Result<(TempDir, NodeOptions)> {
    let dir = tempfile::tempdir()?;
    let options = NodeOptions {
        data: Some(dir.path().join("data")),
        ..NodeOptions::default()
    };
    Ok((dir, options))
}

/// Stops a node in order.
fn stop(node: &mut Node) -> Result<()> {
    let asked = Instant::now();
    let status = node.process.terminate()?;
    let took = asked.elapsed();
    assert!(status.success(), "{status}");
    assert!(took < BOUND, "it took {took:?}");
    Ok(())
}

/// The peers that an error names.
fn named(error: &Value) -> Vec<&str> {
    let rows = error["replicas"].as_array().into_iter().flatten();
    rows.filter_map(|row| row["peer_id"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_at_any_peer_when_its_node_is_stopped() -> Result<()> {
    let model = models::patient()?;
    let [expected, _] = undisturbed(&model).await?;
    for (level, copies, to_replica) in [("medium", 1, false), ("high", 2, true)] {
        let mut cluster = cluster(5, NodeOptions::default(), &model).await?;
        let mut asked = cluster.nodes.pop().context("the last node")?;
        let mut client = Listener::default();
        let mut stream = asked.client.stream(&sampled(&model, level, MOVED)).await?;
        client.hear(&mut stream, 30).await?;
        stop(&mut asked)?;
        let error = client.hear_error(&mut stream).await?;
        assert_eq!(error["code"], "session_moved", "{level}: {error}");
        let kept_by = named(&error);
        assert_eq!(kept_by.len(), copies, "{level}: {error}");
        let apis = cluster.nodes.iter().map(|node| node.api.as_str());
        let mut apis = apis.map(Some);
        assert!(apis.any(|api| error["replicas"][0]["api"].as_str() == api));
        let has_it = |node: &&Node| kept_by.contains(&node.peer_id.as_str()) == to_replica;
        let next = cluster.nodes.iter().find(has_it).context("such a peer")?;
        let rest = next.client.resume(&client.last_id).await?;
        client.hear_all(rest).await?;
        assert_eq!(&client.text, expected, "{level}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accel_run_goes_on_by_itself_and_prints_nothing_twice() -> Result<()> {
    let model = models::patient()?;
    let node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    let expected = run::undisturbed(&node, &sampled(&model, "low", MOVED))?;
    drop(node);
    for level in ["medium", "high"] {
        let mut cluster = cluster(5, NodeOptions::default(), &model).await?;
        let mut asked = cluster.nodes.pop().context("the last node")?;
        let run = Run::begin(&asked, &sampled(&model, level, MOVED)).await?;
        stop(&mut asked)?;
        let printed = run.end()?;
        assert_eq!(printed.answer, expected, "{level}");
        let told = printed.told;
        assert!(told.contains("the answer goes on"), "{level}: {told}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_peers_it_waits_on_the_disk_for_its_node() -> Result<()> {
    let model = models::patient()?;
    let [_, expected] = undisturbed(&model).await?;
    let (_data, options) = lasting()?;
    let mut node = Node::start(&options).await?;
    node.add_model(&model.path)?;
    let mut client = Listener::default();
    let mut stream = node.client.stream(&sampled(&model, "medium", LONG)).await?;
    client.hear(&mut stream, 30).await?;
    stop(&mut node)?;
    let error = client.hear_error(&mut stream).await?;
    assert_eq!(error["code"], "session_suspended", "{error}");
    assert_eq!(named(&error), [""; 0]);
    let node = Node::start(&options).await?;
    let rest = node.client.resume(&client.last_id).await?;
    client.hear_all(rest).await?;
    assert_eq!(&client.text, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_answer_holds_nobody_up() -> Result<()> {
    let model = models::patient()?;
    let mut cluster = Cluster::start(2, None).await?;
    let mut asked = cluster.nodes.pop().context("the last node")?;
    asked.add_model(&model.path)?;
    let mut client = Listener::default();
    let mut stream = asked
        .client
        .stream(&sampled(&model, "medium", LONG))
        .await?;
    client.hear(&mut stream, 30).await?;
    cluster.nodes[0].process.pause()?;
    stop(&mut asked)?;
    let error = client.hear_error(&mut stream).await?;
    assert_eq!(error["code"], "session_suspended", "{error}");
    assert_eq!(named(&error), [""; 0], "it has said nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_there_again_serves_what_its_peers_made_of_the_session() -> Result<()> {
    let model = models::patient()?;
    let [expected, _] = undisturbed(&model).await?;
    let (_data, options) = lasting()?;
    let mut cluster = cluster(5, options.clone(), &model).await?;
    let mut asked = cluster.nodes.pop().context("the last node")?;
    let mut client = Listener::default();
    let mut stream = asked
        .client
        .stream(&sampled(&model, "medium", MOVED))
        .await?;
    client.hear(&mut stream, 30).await?;
    stop(&mut asked)?;
    client.hear_error(&mut stream).await?;
    let next = cluster.nodes.first().context("a first node")?;
    let mut stream = next.client.resume(&client.last_id).await?;
    client.hear(&mut stream, 200).await?;

    let again = small(NodeOptions {
        swarm_key: Some(cluster.swarm_key.clone()),
        join: next.addrs.iter().take(1).cloned().collect(),
        ..options
    });
    let again = Node::start(&again).await?;
    cluster.nodes.push(again);
    cluster.wait_until_complete().await?;
    let again = cluster.nodes.last().context("the node again")?;
    let is_shown = again.client.session(client.session()).await.is_ok();
    assert!(!is_shown, "it is no session of this node any more");
    let rest = again.client.resume(&client.last_id).await?;
    client.hear_all(rest).await?;
    assert_eq!(&client.text, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_layers_nobody_can_take_stops_in_time_and_its_sessions_wait_for_another()
-> Result<()> {
    let model = models::patient()?;
    let [_, expected] = undisturbed(&model).await?;
    let mut cluster = cluster(3, NodeOptions::default(), &model).await?;
    let asked = cluster.nodes.pop().context("the last node")?;
    let mut client = Listener::default();
    let mut stream = asked
        .client
        .stream(&sampled(&model, "medium", LONG))
        .await?;
    client.hear(&mut stream, 30).await?;
    // Nobody reads meanwhile, so that the answer cannot end before. The first is whom others join.
    stop(&mut cluster.nodes[1])?;
    cluster.add(small(NodeOptions::default())).await?;
    client.hear_all(stream).await?;
    assert_eq!(&client.text, expected);
    let view = asked.client.session(client.session()).await?;
    assert_eq!(view["recovery_log"][0]["fault"], "peer_lost", "{view}");
    assert_eq!(view["moves"], json!([]), "there was nowhere to go");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_could_go_on_with_is_let_end() -> Result<()> {
    let model = models::patient()?;
    let mut node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    let request = sampled(&model, "low", 300);
    let expected = node.client.chat(&request).await?.text;
    let mut client = Listener::default();
    let mut stream = node.client.stream(&request).await?;
    client.hear(&mut stream, 3).await?;
    stop(&mut node)?;
    client.hear_all(stream).await?;
    assert_eq!(client.text, expected);
    Ok(())
}
