//! Three real processes over real libp2p answer one chat with a model that none of them may hold whole.

use std::collections::BTreeSet;

use accel_tests::{
    Answer, ChatRequest, Cluster, Node, NodeOptions,
    models::{self, Model},
};
use anyhow::{Context as _, Result};
use serde_json::Value;

const PROMPT: &str = "Name three colours of the rainbow.";

/// What one node answers alone: the measure of every split.
async fn answer_of_one_node(model: &Model, requests: &[ChatRequest]) -> Result<Vec<Answer>> {
    let node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    let mut answers = Vec::new();
    for request in requests {
        answers.push(node.client.chat(request).await?);
    }
    Ok(answers)
}

fn requests(model: &Model) -> Vec<ChatRequest> {
    let greedy = ChatRequest::greedy(&model.name, PROMPT, 24);
    let mut sampled = greedy.clone();
    sampled.temperature = 0.8;
    sampled.seed = 42;
    vec![greedy, sampled]
}

fn route(session: &Value) -> Result<Vec<(String, u64, u64)>> {
    let hops = session.get("route").and_then(Value::as_array);
    let mut route = Vec::new();
    for hop in hops.with_context(|| format!("no route in {session}"))? {
        let peer = hop.get("peer_id").and_then(Value::as_str);
        let first = hop.get("first_layer").and_then(Value::as_u64);
        let last = hop.get("last_layer").and_then(Value::as_u64);
        route.push((
            peer.context("a hop has a peer")?.to_owned(),
            first.context("a hop has a first layer")?,
            last.context("a hop has a last layer")?,
        ));
    }
    Ok(route)
}

/// Every layer once, in order, each stage on another peer.
fn assert_covers(route: &[(String, u64, u64)], layers: u64, stages: usize) {
    let mut next = 0;
    for (_, first, last) in route {
        assert_eq!(*first, next, "a gap or an overlap in {route:?}");
        assert!(last >= first, "an empty stage in {route:?}");
        next = last + 1;
    }
    assert_eq!(next, layers, "layers are missing in {route:?}");
    let peers: BTreeSet<&String> = route.iter().map(|(peer, _, _)| peer).collect();
    assert_eq!(peers.len(), stages, "not on {stages} peers: {route:?}");
}

async fn every_node_answers_like_one_node(model: Model, max_layers: u32) -> Result<()> {
    let requests = requests(&model);
    let whole = answer_of_one_node(&model, &requests).await?;

    let cluster = Cluster::start(3, Some(max_layers)).await?;
    let first = cluster.nodes.first().context("three nodes")?;
    first.add_model(&model.path)?;
    for node in &cluster.nodes {
        cluster.wait_for_model(node, &model.name).await?;
        for (request, expected) in requests.iter().zip(&whole) {
            let answer = node.client.chat(request).await?;
            assert_eq!(answer.tokens, expected.tokens, "the tokens differ");
            assert_eq!(answer.text, expected.text, "the text differs");
            assert_eq!(answer.finish, expected.finish);
            assert_eq!(answer.prompt_tokens, expected.prompt_tokens);
            assert_eq!(answer.completion_tokens, expected.completion_tokens);

            let session = node.client.session(&answer.session).await?;
            assert_covers(&route(&session)?, model.layers, 3);
        }
        let streamed = node.client.stream(&requests[0]).await?.text().await?;
        assert_eq!(streamed, whole[0].text, "the stream differs");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_three_nodes_answers_as_one_node_does() -> Result<()> {
    every_node_answers_like_one_node(models::small()?, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_three_nodes_answers_as_one_node_does_with_smollm2() -> Result<()> {
    match models::smollm2()? {
        Some(model) => every_node_answers_like_one_node(model, 10).await,
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_fetch_only_what_their_layers_need() -> Result<()> {
    let model = models::wide()?;
    let cluster = Cluster::start(3, Some(2)).await?;
    let first = cluster.nodes.first().context("three nodes")?;
    first.add_model(&model.path)?;
    let last = cluster.nodes.last().context("three nodes")?;
    cluster.wait_for_model(last, &model.name).await?;
    let answer = last
        .client
        .chat(&ChatRequest::greedy(&model.name, PROMPT, 4))
        .await?;
    let session = last.client.session(&answer.session).await?;

    let hops = session.get("route").and_then(Value::as_array);
    for hop in hops.context("a route")? {
        let peer = hop.get("peer_id").and_then(Value::as_str);
        let bytes = hop.get("bytes_fetched").and_then(Value::as_u64);
        let bytes = bytes.with_context(|| format!("no bytes_fetched in {hop}"))?;
        if peer == Some(first.peer_id.as_str()) {
            assert_eq!(bytes, 0, "the node that has the file fetched: {hop}");
            continue;
        }
        assert!(
            bytes > 0,
            "a node computed with bytes it never fetched: {hop}"
        );
        assert!(
            bytes < model.bytes * 3 / 4,
            "{bytes} of {} bytes for two layers of six: {hop}",
            model.bytes
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_fits_on_one_node_is_not_split() -> Result<()> {
    let model = models::small()?;
    let cluster = Cluster::start(3, None).await?;
    let first = cluster.nodes.first().context("three nodes")?;
    first.add_model(&model.path)?;
    let answer = first
        .client
        .chat(&ChatRequest::greedy(&model.name, PROMPT, 4))
        .await?;
    let session = first.client.session(&answer.session).await?;
    assert_covers(&route(&session)?, model.layers, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_says_who_would_hold_what_and_why() -> Result<()> {
    let model = models::small()?;
    let cluster = Cluster::start(3, Some(2)).await?;
    let first = cluster.nodes.first().context("three nodes")?;
    first.add_model(&model.path)?;
    let plan = first.cli_json(&["plan", &model.name])?;
    let stages = plan.get("stages").and_then(Value::as_array);
    let stages = stages.with_context(|| format!("no stages in {plan}"))?;
    assert_eq!(stages.len(), 3, "{plan}");
    for stage in stages {
        let why = stage.get("why").and_then(Value::as_str);
        assert!(why.is_some_and(|why| !why.is_empty()), "no reason: {stage}");
    }
    Ok(())
}
