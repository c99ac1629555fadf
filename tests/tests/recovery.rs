//! Peers that are killed or hang while they compute an answer, in real processes: the answer goes
//! on, and is the one that would have come without them.

use std::time::{Duration, Instant};

use accel_tests::{
    ChatRequest, Cluster, Node, NodeOptions, PATIENCE,
    client::{Stream, delta},
    cluster::{wait_for_peers, wait_for_warm_stages},
    models::{self, Model},
};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Layers that a node takes, of six.
const LAYERS: u32 = 2;
const PROMPT: &str = "Tell me everything.";
/// Long enough that whoever sees the first tokens can do something before the last.
const LONG: u32 = 1_500;

/// The text of one node that nobody disturbs.
async fn undisturbed(model: &Model, request: &ChatRequest) -> Result<String> {
    let node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    Ok(node.client.chat(request).await?.text)
}

fn sampled(model: &Model, prompt: &str, max_tokens: u32) -> ChatRequest {
    let mut request = ChatRequest::greedy(&model.name, prompt, max_tokens);
    request.temperature = 0.8;
    request.seed = 42;
    request
}

/// The node that is asked, and the others.
async fn swarm(nodes: usize, model: &Model) -> Result<(Node, Cluster)> {
    let mut cluster = Cluster::start(nodes, Some(LAYERS)).await?;
    let asked = cluster.nodes.remove(0);
    asked.add_model(&model.path)?;
    Ok((asked, cluster))
}

/// An answer while it comes.
struct Listener {
    stream: Stream,
    text: String,
    session: String,
}

impl Listener {
    async fn start(node: &Node, request: &ChatRequest) -> Result<Self> {
        Ok(Self {
            stream: node.client.stream(request).await?,
            text: String::new(),
            session: String::new(),
        })
    }

    /// Reads on until so many more pieces of text came.
    async fn hear(&mut self, pieces: usize) -> Result<()> {
        let mut heard = 0;
        while heard < pieces {
            let event = self
                .stream
                .next()
                .await?
                .context("the answer ended early")?;
            heard += usize::from(self.take(&event)?);
        }
        Ok(())
    }

    /// Whether the event brought text.
    fn take(&mut self, event: &Value) -> Result<bool> {
        if let Some(error) = event.get("error") {
            bail!("the answer ended with {error}");
        }
        if let Some(id) = event.get("id").and_then(Value::as_str) {
            id.trim_start_matches("chatcmpl-")
                .clone_into(&mut self.session);
        }
        let piece = delta(event);
        self.text.push_str(piece);
        Ok(!piece.is_empty())
    }

    /// Reads to the end.
    async fn rest(mut self) -> Result<(String, String)> {
        while let Some(event) = self.stream.next().await? {
            self.take(&event)?;
        }
        Ok((self.text, self.session))
    }

    /// Reads to the error in which the answer ends.
    async fn error(mut self) -> Result<Value> {
        while let Some(event) = self.stream.next().await? {
            if let Some(error) = event.get("error") {
                return Ok(error.clone());
            }
        }
        bail!("the stream ended as if nothing had happened")
    }
}

/// Where among `others` a node computes a stage of the session now.
async fn stage_of(asked: &Node, others: &[Node], session: &str) -> Result<usize> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let view = asked.client.session(session).await?;
        let hops = view.get("route").and_then(Value::as_array);
        let peers = hops.into_iter().flatten();
        let peers: Vec<&Value> = peers.filter_map(|hop| hop.get("peer_id")).collect();
        let computes = |node: &Node| peers.iter().any(|peer| **peer == node.peer_id.as_str());
        let computing = view["state"] == "decoding" || view["state"] == "prefill";
        if let Some(index) = others.iter().position(computes).filter(|_| computing) {
            return Ok(index);
        }
        if Instant::now() > deadline {
            bail!("no other node takes part: {view}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How often the session went on after a fault.
async fn recovered(node: &Node, session: &str) -> Result<u64> {
    let view = node.client.session(session).await?;
    view["recoveries"]
        .as_u64()
        .context("a number of recoveries")
}

/// The recoveries that the node tells of a session that is done; there must be some.
async fn recoveries(node: &Node, session: &str) -> Result<Vec<Value>> {
    let view = node.client.session(session).await?;
    assert_eq!(view["state"], "done", "{view}");
    assert!(view["recoveries"].as_u64() >= Some(1), "{view}");
    let log = view["recovery_log"].as_array().cloned();
    let log = log.with_context(|| format!("no log in {view}"))?;
    for recovery in &log {
        // Of several losses in a row the later ones are met with another.
        let strategy = recovery["strategy"].as_str().unwrap_or_default();
        let fits = ["progressive", "coordinated"].contains(&strategy);
        assert!(fits, "{recovery}");
    }
    let last = log.last().context("a last recovery")?;
    assert_eq!(last["stall_ms"]["tag"], "measured", "{last}");
    Ok(log)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_killed_in_mid_answer_change_no_byte_of_it() -> Result<()> {
    let model = models::talkative()?;
    let request = sampled(&model, PROMPT, LONG);
    let expected = undisturbed(&model, &request).await?;
    let (asked, mut cluster) = swarm(5, &model).await?;
    let mut listener = Listener::start(&asked, &request).await?;
    for recoveries in 1..=2 {
        listener.hear(3).await?;
        let victim = stage_of(&asked, &cluster.nodes, &listener.session).await?;
        cluster.nodes.remove(victim).process.kill();
        while recovered(&asked, &listener.session).await? < recoveries {
            listener.hear(1).await?;
        }
    }
    let (text, session) = listener.rest().await?;
    assert_eq!(text, expected);
    let log = recoveries(&asked, &session).await?;
    assert!(log.len() >= 2, "{log:?}");
    for recovery in &log {
        assert_eq!(recovery["fault"], "peer_lost", "{recovery}");
    }
    let (_, metrics) = asked.client.get_text("/metrics").await?;
    let counted = r#"accel_recoveries_total{fault="peer_lost",strategy="progressive"}"#;
    assert!(metrics.contains(counted), "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stand_in_has_the_layers_before_a_peer_is_lost() -> Result<()> {
    let model = models::talkative()?;
    let request = sampled(&model, PROMPT, LONG);
    let expected = undisturbed(&model, &request).await?;
    let (asked, mut cluster) = swarm(4, &model).await?;
    let short = sampled(&model, PROMPT, 4);
    asked.client.chat(&short).await?;
    // One spare, which may have to stand in for either of the two others.
    wait_for_warm_stages(cluster.nodes.iter(), 2).await?;

    let mut listener = Listener::start(&asked, &request).await?;
    listener.hear(3).await?;
    let victim = stage_of(&asked, &cluster.nodes, &listener.session).await?;
    cluster.nodes.remove(victim).process.kill();
    let (text, session) = listener.rest().await?;
    assert_eq!(text, expected);
    let log = recoveries(&asked, &session).await?;
    let last = log.last().context("a last recovery")?;
    for part in ["detect_ms", "place_ms", "rebuild_ms"] {
        assert_eq!(last[part]["tag"], "measured", "{part}: {last}");
    }
    let view = asked.client.session(&session).await?;
    assert_eq!(
        view["bytes_fetched"], 0,
        "nothing was left to fetch: {view}"
    );
    Ok(())
}

/// A node that computes any but the first stage of the session.
async fn later_stage_of(asked: &Node, others: &[Node], session: &str) -> Result<usize> {
    let view = asked.client.session(session).await?;
    let hops = view["route"].as_array().context("a route")?;
    let later = hops
        .iter()
        .skip(1)
        .filter_map(|hop| hop["peer_id"].as_str());
    let mut found = later.filter_map(|peer| others.iter().position(|node| node.peer_id == peer));
    found
        .next()
        .with_context(|| format!("no other node computes a later stage: {view}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stand_in_gets_the_outputs_of_the_stage_before_and_nobody_else_computes_again()
-> Result<()> {
    let model = models::patient()?;
    let prompt = "All work and no play makes Jack a dull boy. ".repeat(40);
    let request = sampled(&model, &prompt, 120);
    let expected = undisturbed(&model, &request).await?;
    let (asked, mut cluster) = swarm(4, &model).await?;
    let mut listener = Listener::start(&asked, &request).await?;
    listener.hear(3).await?;
    let victim = later_stage_of(&asked, &cluster.nodes, &listener.session).await?;
    cluster.nodes.remove(victim).process.kill();
    let (text, session) = listener.rest().await?;
    assert_eq!(text, expected);
    let log = recoveries(&asked, &session).await?;
    let last = log.last().context("a last recovery")?;
    assert_eq!(last["rebuild"], "replay", "{last}");
    for way in ["replay", "prefill"] {
        let price = &last["prices_ms"][way];
        assert_eq!(price["tag"], "predicted", "{last}");
        assert!(price["value"].as_f64() > Some(0.0), "{last}");
    }
    let (_, metrics) = asked.client.get_text("/metrics").await?;
    assert!(
        metrics.contains(r#"accel_rebuilds_total{way="replay"}"#),
        "{metrics}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_so_gets_nothing_ready_for_others() -> Result<()> {
    let model = models::small()?;
    let mut cluster = Cluster::empty()?;
    for _ in 0..4 {
        let node = NodeOptions {
            max_layers: Some(LAYERS),
            args: vec!["--warm-stand-ins".into(), "false".into()],
            ..NodeOptions::default()
        };
        cluster.add(node).await?;
    }
    cluster.wait_until_complete().await?;
    let asked = cluster.nodes.first().context("the first node")?;
    asked.add_model(&model.path)?;
    asked.client.chat(&sampled(&model, PROMPT, 8)).await?;
    for node in &cluster.nodes {
        let (_, metrics) = node.client.get_text("/metrics").await?;
        assert!(!metrics.contains("accel_stages_warmed_total{"), "{metrics}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hangs_is_replaced_and_serves_again_once_it_goes_on() -> Result<()> {
    let model = models::talkative()?;
    let request = ChatRequest::greedy(&model.name, PROMPT, LONG);
    let expected = undisturbed(&model, &request).await?;
    let (asked, mut cluster) = swarm(4, &model).await?;
    let mut listener = Listener::start(&asked, &request).await?;
    listener.hear(3).await?;
    let victim = stage_of(&asked, &cluster.nodes, &listener.session).await?;
    let victim = cluster.nodes.remove(victim);
    victim.process.pause()?;
    let (text, session) = listener.rest().await?;
    assert_eq!(text, expected);
    recoveries(&asked, &session).await?;

    victim.process.resume()?;
    // Without another spare, nothing is computed unless it takes part.
    cluster.nodes.pop().context("a spare")?.process.kill();
    wait_for_peers(&asked, |seen| seen.contains(&victim.peer_id)).await?;
    let again = ChatRequest::greedy(&model.name, PROMPT, 8);
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = asked.client.chat(&again).await {
        if Instant::now() > deadline {
            bail!("it does not serve again: {error}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_killed_while_it_reads_the_prompt_changes_nothing() -> Result<()> {
    let model = models::patient()?;
    let prompt = "All work and no play makes Jack a dull boy. ".repeat(250);
    let request = sampled(&model, &prompt, 16);
    let expected = undisturbed(&model, &request).await?;
    let (asked, mut cluster) = swarm(4, &model).await?;
    let client = asked.client.clone();
    let answer = tokio::spawn(async move { client.chat(&request).await });
    let session = running_session(&asked).await?;
    let victim = stage_of(&asked, &cluster.nodes, &session).await?;
    cluster.nodes.remove(victim).process.kill();
    assert_eq!(answer.await??.text, expected);
    let log = recoveries(&asked, &session).await?;
    let first = log.first().context("a first recovery")?;
    assert_eq!(
        first["after_tokens"], 0,
        "it was to be killed before: {first}"
    );
    Ok(())
}

/// The only session of a node, once it computes.
async fn running_session(node: &Node) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let listing = node.client.get("/api/v1/sessions").await?.body;
        let session = &listing["sessions"][0];
        if session["state"] == "prefill" {
            return Ok(session["id"].as_str().context("an id")?.to_owned());
        }
        if Instant::now() > deadline {
            bail!("no session computes: {listing}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_waits_for_the_only_peer_that_can_help_to_be_started_again() -> Result<()> {
    let model = models::talkative()?;
    let request = sampled(&model, PROMPT, LONG);
    let expected = undisturbed(&model, &request).await?;
    let data = tempfile::tempdir()?;
    let restarting = NodeOptions {
        max_layers: Some(LAYERS),
        data: Some(data.path().join("data")),
        ..NodeOptions::default()
    };
    let (asked, mut cluster) = {
        let mut cluster = Cluster::start(2, Some(LAYERS)).await?;
        cluster.add(restarting.clone()).await?;
        cluster.wait_until_complete().await?;
        (cluster.nodes.remove(0), cluster)
    };
    asked.add_model(&model.path)?;
    let mut listener = Listener::start(&asked, &request).await?;
    listener.hear(3).await?;
    let mut victim = cluster.nodes.pop().context("the last node")?;
    victim.process.kill();
    drop(victim);
    let again = NodeOptions {
        join: asked.addrs.iter().take(1).cloned().collect(),
        swarm_key: Some(cluster.swarm_key.clone()),
        ..restarting
    };
    let _again = Node::start(&again).await?;
    let (text, session) = listener.rest().await?;
    assert_eq!(text, expected);
    recoveries(&asked, &session).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_fault_tolerance_a_killed_peer_ends_the_request_with_an_error() -> Result<()> {
    let model = models::talkative()?;
    let (asked, mut cluster) = swarm(4, &model).await?;
    let mut request = ChatRequest::greedy(&model.name, PROMPT, LONG);
    request.fault_tolerance = Some("none");
    let mut listener = Listener::start(&asked, &request).await?;
    listener.hear(3).await?;
    let session = listener.session.clone();
    let victim = stage_of(&asked, &cluster.nodes, &session).await?;
    let mut victim = cluster.nodes.remove(victim);
    victim.process.kill();

    let error = listener.error().await?;
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    assert!(
        ["peer_lost", "next_stage_lost", "peer_unreachable"].contains(&text("code")),
        "{error}"
    );
    assert!(!text("hint").is_empty(), "{error}");
    let view = asked.client.session(&session).await?;
    assert_eq!(view["state"], "failed", "{view}");
    assert_eq!(view["recoveries"], 0, "{view}");

    let gone = victim.peer_id.clone();
    wait_for_peers(&asked, |seen| !seen.contains(&gone)).await?;
    let short = ChatRequest::greedy(&model.name, "Still there?", 4);
    assert_eq!(asked.client.chat(&short).await?.completion_tokens, 4);
    Ok(())
}
