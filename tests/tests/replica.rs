//! `fault_tolerance: high`, in real processes: the node that took the request is killed in mid-answer
//! and its data is deleted; the client gets the rest at another node, and the pieces add up to the
//! answer that nobody disturbed.

use std::fs;
use std::time::{Duration, Instant};

use accel_tests::{
    ChatRequest, Cluster, Listener, Node, NodeOptions, PATIENCE,
    cluster::wait_for_peers,
    models::{self, Model},
    run::{self, Run},
};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

const PROMPT: &str = "Tell me everything.";
/// Long enough that whoever sees the first tokens can do something before the last.
const LONG: u32 = 1_500;

fn sampled(model: &Model) -> ChatRequest {
    let mut request = ChatRequest::greedy(&model.name, PROMPT, LONG);
    request.temperature = 0.8;
    request.seed = 42;
    request.fault_tolerance = Some("high");
    request
}

/// The text of one node that nobody disturbs.
async fn undisturbed(model: &Model) -> Result<String> {
    let node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    let mut request = sampled(model);
    request.fault_tolerance = None;
    Ok(node.client.chat(&request).await?.text)
}

/// Nodes of which the first and the last have the model.
async fn cluster(
    count: usize,
    options: impl Fn() -> NodeOptions,
    model: &Model,
) -> Result<Cluster> {
    let mut cluster = Cluster::empty()?;
    for _ in 0..count {
        cluster.add(options()).await?;
    }
    cluster.wait_until_complete().await?;
    for node in cluster.nodes.iter().take(1).chain(cluster.nodes.last()) {
        node.add_model(&model.path)?;
    }
    Ok(cluster)
}

/// Kills a node and deletes all that it had on its disk.
fn destroy(mut node: Node) -> Result<()> {
    node.process.kill();
    fs::remove_dir_all(node.data()).context("its data")?;
    assert!(!node.data().exists());
    Ok(())
}

/// The other peers that keep the journal of a session.
async fn replicas(node: &Node, session: &str) -> Result<Vec<String>> {
    let view = node.client.session(session).await?;
    let rows = view["replicas"].as_array().context("a list")?;
    let ids = rows.iter().filter_map(|row| row["peer_id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_at_any_peer_when_its_node_and_its_disk_are_gone() -> Result<()> {
    let model = models::talkative()?;
    let expected = undisturbed(&model).await?;
    let options = || NodeOptions {
        max_layers: Some(2),
        ..NodeOptions::default()
    };
    let mut cluster = cluster(5, options, &model).await?;
    let mut asked = cluster.nodes.pop().context("the last node")?;
    let mut client = Listener::default();
    let mut stream = asked.client.stream(&sampled(&model)).await?;
    // First somebody goes on who has nothing of the session, then somebody who keeps it.
    for wants_replica in [false, true] {
        let is_end = client.hear(&mut stream, 30).await?;
        assert!(!is_end, "it was to be killed before the end");
        let kept_by = replicas(&asked, client.session()).await?;
        assert_eq!(kept_by.len(), 2, "{kept_by:?}");
        destroy(asked)?;
        let mut others = cluster.nodes.iter();
        let next = others.position(|node| kept_by.contains(&node.peer_id) == wants_replica);
        asked = cluster.nodes.swap_remove(next.context("such a peer")?);
        let is_shown = asked.client.session(client.session()).await.is_ok();
        assert!(
            !is_shown,
            "what a node keeps for others is none of its sessions"
        );
        stream = asked.client.resume(&client.last_id).await?;
    }
    client.hear_all(stream).await?;
    assert_eq!(client.text, expected);
    let view = asked.client.session(client.session()).await?;
    assert_eq!(view["fault_tolerance"], "high", "{view}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_lives_stops_when_the_client_comes_back_to_another_node() -> Result<()> {
    let model = models::talkative()?;
    let expected = undisturbed(&model).await?;
    let cluster = cluster(4, NodeOptions::default, &model).await?;
    let (first, last) = (&cluster.nodes[0], &cluster.nodes[3]);
    let mut client = Listener::default();
    let mut stream = last.client.stream(&sampled(&model)).await?;
    client.hear(&mut stream, 30).await?;
    let went_on = first.client.resume(&client.last_id).await?;
    let mut error = Value::Null;
    while let Some(event) = stream.next().await? {
        if let Some(told) = event.get("error") {
            error = told.clone();
        }
    }
    assert_eq!(error["code"], "session_moved", "{error}");
    client.hear_all(went_on).await?;
    assert_eq!(client.text, expected);
    let view = last.client.session(client.session()).await?;
    assert_eq!(view["state"], "moved", "{view}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_two_more_peers_a_request_is_refused_and_one_that_loses_them_waits() -> Result<()> {
    let model = models::talkative()?;
    let expected = undisturbed(&model).await?;
    let mut cluster = cluster(2, NodeOptions::default, &model).await?;
    let body = json!({
        "model": model.name, "stream": true, "fault_tolerance": "high",
        "messages": [{"role": "user", "content": PROMPT}],
    });
    let refused = cluster.nodes[1]
        .client
        .post("/v1/chat/completions", &body)
        .await?;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(refused.code(), "too_few_replicas", "{}", refused.body);
    assert!(refused.hint().contains("accel peers"), "{}", refused.hint());

    cluster.add(NodeOptions::default()).await?;
    cluster.wait_until_complete().await?;
    let mut client = Listener::default();
    let mut stream = cluster.nodes[1].client.stream(&sampled(&model)).await?;
    client.hear(&mut stream, 30).await?;
    let lost = cluster.nodes.pop().context("the new node")?;
    let lost_id = lost.peer_id.clone();
    drop(lost);
    wait_for_peers(&cluster.nodes[1], |seen| !seen.contains(&lost_id)).await?;
    cluster.add(NodeOptions::default()).await?;
    client.hear_all(stream).await?;
    assert_eq!(client.text, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_comes_back_for_is_cleaned_up_everywhere() -> Result<()> {
    let model = models::talkative()?;
    let options = || NodeOptions {
        args: vec!["--resume-window".into(), "2".into()],
        ..NodeOptions::default()
    };
    let mut cluster = cluster(4, options, &model).await?;
    let asked = cluster.nodes.pop().context("the last node")?;
    let mut client = Listener::default();
    let mut stream = asked.client.stream(&sampled(&model)).await?;
    client.hear(&mut stream, 10).await?;
    destroy(asked)?;
    let deadline = Instant::now() + PATIENCE;
    for node in &cluster.nodes {
        loop {
            let metrics = node.client.get_text("/metrics").await?.1;
            if metrics.contains("accel_sessions_kept 0") {
                break;
            }
            assert!(Instant::now() < deadline, "{metrics}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    for node in &cluster.nodes {
        let reply = node.client.resume_refused(&client.last_id).await?;
        assert_eq!(reply.status, 404, "{}", reply.body);
        assert_eq!(reply.code(), "session_not_found", "{}", reply.body);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accel_run_goes_on_at_a_replica_and_prints_nothing_twice() -> Result<()> {
    let model = models::talkative()?;
    let request = sampled(&model);
    let node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    let alone = ChatRequest {
        fault_tolerance: None,
        ..request.clone()
    };
    let expected = run::undisturbed(&node, &alone)?;
    drop(node);
    let mut cluster = cluster(4, NodeOptions::default, &model).await?;
    let asked = cluster.nodes.pop().context("the last node")?;
    let run = Run::begin(&asked, &request).await?;
    destroy(asked)?;
    let printed = run.end()?;
    assert_eq!(printed.answer, expected);
    let told = printed.told;
    assert!(told.contains("the answer goes on"), "{told}");
    Ok(())
}
