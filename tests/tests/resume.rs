//! Streams that go on behind `Last-Event-ID`, in real processes: after the node that took the
//! request was killed and started again, and after the client's connection broke. Whatever
//! happened, the pieces add up to the answer that nobody disturbed.

use std::time::{Duration, Instant};

use accel_tests::{
    ChatRequest, Cluster, Listener as Client, Node, NodeOptions, PATIENCE,
    client::Stream,
    models::{self, Model},
    run::{self, Run},
};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

const PROMPT: &str = "Tell me everything.";
/// Long enough that whoever sees the first tokens can do something before the last.
const LONG: u32 = 1_500;

fn sampled(model: &Model) -> ChatRequest {
    let mut request = ChatRequest::greedy(&model.name, PROMPT, LONG);
    request.temperature = 0.8;
    request.seed = 42;
    request
}

/// The text of one node that nobody disturbs.
async fn undisturbed(model: &Model, request: &ChatRequest) -> Result<String> {
    let node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    Ok(node.client.chat(request).await?.text)
}

/// Waits until a session is in this state.
async fn wait_for_state(node: &Node, session: &str, state: &str) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let view = node.client.session(session).await?;
        if view["state"] == state {
            return Ok(view);
        }
        if Instant::now() > deadline {
            bail!("it does not become {state}: {view}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Options of a node whose data outlasts it.
fn lasting() -> Result<(TempDir, NodeOptions)> {
    let dir = tempfile::tempdir()?;
    let options = NodeOptions {
        data: Some(dir.path().join("data")),
        ..NodeOptions::default()
    };
    Ok((dir, options))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_after_its_node_was_killed_and_started_again() -> Result<()> {
    let model = models::talkative()?;
    let request = sampled(&model);
    let expected = undisturbed(&model, &request).await?;
    let (_data, options) = lasting()?;
    let mut node = Node::start(&options).await?;
    node.add_model(&model.path)?;
    let mut client = Client::default();
    let mut stream = node.client.stream(&request).await?;
    for _ in 0..2 {
        let is_end = client.hear(&mut stream, 30).await?;
        assert!(!is_end, "it was to be killed before the end");
        node.process.kill();
        drop(node);
        node = Node::start(&options).await?;
        let view = node.client.session(client.session()).await?;
        assert_eq!(view["state"], "suspended", "{view}");
        assert!(
            view["tokens"].as_u64() >= Some(client.tokens as u64),
            "{view}"
        );
        stream = node.client.resume(&client.last_id).await?;
    }
    client.hear_all(stream).await?;
    assert_eq!(client.text, expected);
    let view = wait_for_state(&node, client.session(), "done").await?;
    assert_eq!(view["recovery_log"][0]["fault"], "interrupted", "{view}");

    // It is over, and can be read again.
    let mut again = Client::default();
    let first = format!("{}:0", client.session());
    again.hear_all(node.client.resume(&first).await?).await?;
    assert_eq!(again.tokens + 1, client.tokens);
    assert!(expected.ends_with(&again.text));
    let shown = node.client.session(client.session()).await?;
    assert_eq!(shown, view, "reading it changes nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_answer_goes_on_after_its_coordinator_was_killed_and_started_again() -> Result<()> {
    let model = models::talkative()?;
    let request = sampled(&model);
    let expected = undisturbed(&model, &request).await?;
    let (_data, mut options) = lasting()?;
    options.max_layers = Some(2);
    let mut cluster = Cluster::start(3, Some(2)).await?;
    cluster.add(options.clone()).await?;
    cluster.wait_until_complete().await?;
    let mut asked = cluster.nodes.pop().context("the last node")?;
    asked.add_model(&model.path)?;
    let mut client = Client::default();
    let mut stream = asked.client.stream(&request).await?;
    client.hear(&mut stream, 30).await?;
    asked.process.kill();
    drop(asked);
    options.swarm_key = Some(cluster.swarm_key.clone());
    let first = cluster.nodes.first().context("a first node")?;
    options.join = first.addrs.iter().take(1).cloned().collect();
    let asked = Node::start(&options).await?;
    client
        .hear_all(asked.client.resume(&client.last_id).await?)
        .await?;
    assert_eq!(client.text, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_connection_breaks_gets_the_rest_when_it_comes_back() -> Result<()> {
    let model = models::talkative()?;
    let request = sampled(&model);
    let expected = undisturbed(&model, &request).await?;
    let node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    let mut client = Client::default();
    let mut stream = node.client.stream(&request).await?;
    for round in 0..4 {
        client.hear(&mut stream, 20).await?;
        let noticed = round % 2 == 0;
        if noticed {
            drop(stream);
            wait_for_state(&node, client.session(), "suspended").await?;
            stream = node.client.resume(&client.last_id).await?;
        } else {
            // As if the connection were dead and nobody had told the node: the old stream ends.
            let mut old = stream;
            stream = node.client.resume(&client.last_id).await?;
            assert_eq!(error_of(&mut old).await?["code"], "session_taken_up");
        }
    }
    client.hear_all(stream).await?;
    assert_eq!(client.text, expected);
    Ok(())
}

/// The error in which a stream ends.
async fn error_of(stream: &mut Stream) -> Result<Value> {
    while let Some(event) = stream.next().await? {
        if let Some(error) = event.get("error") {
            return Ok(error.clone());
        }
    }
    bail!("the stream ended without an error")
}

#[tokio::test(flavor = "multi_thread")]
async fn accel_run_goes_on_by_itself_and_prints_nothing_twice() -> Result<()> {
    let model = models::talkative()?;
    let (_data, mut options) = lasting()?;
    let mut node = Node::start(&options).await?;
    node.add_model(&model.path)?;
    let request = sampled(&model);
    let expected = run::undisturbed(&node, &request)?;
    let run = Run::begin(&node, &request).await?;
    options.args = vec!["--api".into(), node.api.clone()];
    node.process.kill();
    drop(node);
    let _again = Node::start(&options).await?;
    let printed = run.end()?;
    assert_eq!(printed.answer, expected);
    let told = printed.told;
    assert!(told.contains("trying to go on"), "{told}");
    assert!(told.contains("the answer goes on"), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_survive_a_crash_of_its_node_is_told() -> Result<()> {
    let model = models::talkative()?;
    let (_data, options) = lasting()?;
    let mut node = Node::start(&options).await?;
    node.add_model(&model.path)?;
    let mut request = sampled(&model);
    request.fault_tolerance = Some("low");
    let mut client = Client::default();
    let mut stream = node.client.stream(&request).await?;
    client.hear(&mut stream, 10).await?;
    node.process.kill();
    drop(node);
    let node = Node::start(&options).await?;
    let refused = node.client.resume_refused(&client.last_id).await?;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert_eq!(refused.code(), "session_not_resumable", "{}", refused.body);
    assert!(refused.message().contains("`low`"), "{}", refused.message());
    assert!(refused.hint().contains("medium"), "{}", refused.hint());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_client_stays_away_is_closed() -> Result<()> {
    let model = models::talkative()?;
    let options = NodeOptions {
        args: vec!["--resume-window".into(), "1".into()],
        ..NodeOptions::default()
    };
    let node = Node::start(&options).await?;
    node.add_model(&model.path)?;
    let mut client = Client::default();
    let mut stream = node.client.stream(&sampled(&model)).await?;
    client.hear(&mut stream, 10).await?;
    drop(stream);
    let view = wait_for_state(&node, client.session(), "failed").await?;
    assert_eq!(view["error"]["code"], "session_expired", "{view}");
    // Once it is closed it may be read for as long as it waited.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = node.client.resume_refused(&client.last_id).await?;
        if reply.code() == "session_not_found" {
            assert_eq!(reply.status, 404);
            assert!(!reply.hint().is_empty());
            return Ok(());
        }
        assert!(Instant::now() < deadline, "{}", reply.body);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
