//! What a client may ask for, through real processes: streams, stop strings, limits, seeds.

use std::time::Duration;

use accel_tests::{
    ChatRequest, Cluster, Node, NodeOptions, PATIENCE,
    models::{self, Model},
};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

async fn node_with_model() -> Result<(Node, Model)> {
    let node = Node::start(&NodeOptions::default()).await?;
    let model = models::small()?;
    node.add_model(&model.path)?;
    Ok((node, model))
}

fn text(body: &Value) -> Result<&str> {
    let text = body.pointer("/choices/0/text").and_then(Value::as_str);
    text.with_context(|| format!("no text in {body}"))
}

fn finish(body: &Value) -> Option<&str> {
    body.pointer("/choices/0/finish_reason")?.as_str()
}

#[tokio::test(flavor = "multi_thread")]
async fn max_tokens_is_kept_and_said_to_be_the_reason() -> Result<()> {
    let (node, model) = node_with_model().await?;
    let body = json!({"model": model.name, "prompt": "Once", "max_tokens": 5, "temperature": 0});
    let reply = node.client.post("/v1/completions", &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(finish(&reply.body), Some("length"));
    assert_eq!(reply.body["usage"]["completion_tokens"], 5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_before_its_stop_string() -> Result<()> {
    let (node, model) = node_with_model().await?;
    let mut body =
        json!({"model": model.name, "prompt": "Once", "max_tokens": 24, "temperature": 0});
    let whole = node.client.post("/v1/completions", &body).await?;
    let whole = text(&whole.body)?.to_owned();
    let stop: String = whole.chars().skip(6).take(3).collect();
    let (expected, _) = whole
        .split_once(&stop)
        .context("the text has its own part")?;

    body["stop"] = json!([stop]);
    let reply = node.client.post("/v1/completions", &body).await?;
    assert_eq!(text(&reply.body)?, expected);
    assert_eq!(finish(&reply.body), Some("stop"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seed_decides_and_nothing_else() -> Result<()> {
    let (node, model) = node_with_model().await?;
    let mut answers = Vec::new();
    for seed in [3, 3, 4] {
        let mut request = ChatRequest::greedy(&model.name, "Roll the dice.", 16);
        request.temperature = 1.0;
        request.seed = seed;
        answers.push(node.client.chat(&request).await?.tokens);
    }
    assert_eq!(answers[0], answers[1], "one seed, two answers");
    assert_ne!(answers[0], answers[2], "two seeds, one answer");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_at_all_nodes_do_not_disturb_each_other() -> Result<()> {
    let model = models::small()?;
    let cluster = Cluster::start(3, Some(2)).await?;
    let first = cluster.nodes.first().context("three nodes")?;
    first.add_model(&model.path)?;
    let prompts = ["One", "Two words", "Now three words"];
    let mut expected = Vec::new();
    for prompt in prompts {
        let request = ChatRequest::greedy(&model.name, prompt, 12);
        expected.push(first.client.chat(&request).await?.tokens);
    }

    let mut running = tokio::task::JoinSet::new();
    for node in &cluster.nodes {
        cluster.wait_for_model(node, &model.name).await?;
        for (index, prompt) in prompts.into_iter().enumerate() {
            let client = node.client.clone();
            let request = ChatRequest::greedy(&model.name, prompt, 12);
            running.spawn(async move { (index, client.chat(&request).await) });
        }
    }
    while let Some(finished) = running.join_next().await {
        let (index, answer) = finished?;
        assert_eq!(Some(&answer?.tokens), expected.get(index));
    }
    Ok(())
}

/// The state in which a session stops.
async fn end_of(node: &Node, session: &str) -> Result<String> {
    loop {
        let view = node.client.session(session).await?;
        let state = view["state"].as_str().context("a state")?;
        if !["placing", "prefill", "decoding", "recovering"].contains(&state) {
            return Ok(state.to_owned());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_client_goes_away_stops() -> Result<()> {
    let node = Node::start(&NodeOptions::default()).await?;
    let model = models::talkative()?;
    node.add_model(&model.path)?;
    let request = ChatRequest::greedy(&model.name, "Talk.", 4_000);
    let mut stream = node.client.stream(&request).await?;
    let event = stream.next().await?.context("the answer begins")?;
    let id = event.get("id").and_then(Value::as_str).context("an id")?;
    let session = id.trim_start_matches("chatcmpl-").to_owned();
    drop(stream);
    let state = tokio::time::timeout(PATIENCE, end_of(&node, &session)).await??;
    assert_eq!(state, "suspended");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_are_there_for_machines() -> Result<()> {
    let (node, model) = node_with_model().await?;
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(node.client.get(path).await?.status, 200, "{path}");
    }
    let request = ChatRequest::greedy(&model.name, "Count me.", 3);
    node.client.chat(&request).await?;
    let (status, metrics) = node.client.get_text("/metrics").await?;
    assert_eq!(status, 200);
    assert!(metrics.contains("# TYPE accel_"), "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accel_run_prints_the_answer_of_the_api() -> Result<()> {
    let (node, model) = node_with_model().await?;
    let told = node.cli(&[
        "run",
        &model.name,
        "Once",
        "--max-tokens",
        "6",
        "--temperature",
        "0",
    ])?;
    assert!(told.status.success(), "{}", told.stderr);
    let again = node.cli(&[
        "run",
        &model.name,
        "Once",
        "--max-tokens",
        "6",
        "--temperature",
        "0",
    ])?;
    assert_eq!(told.stdout, again.stdout);
    assert!(!told.stdout.trim().is_empty(), "it printed nothing");
    Ok(())
}
