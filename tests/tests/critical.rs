//! `fault_tolerance: critical`, in real processes: everything is computed twice, and a node whose
//! weights are damaged on its disk is found out. The answer is the one of honest nodes, the evidence
//! convinces another node, and what was changed about it convinces nobody.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use accel_inference::Gguf;
use accel_tests::{
    ChatRequest, Cluster, Listener, Node, NodeOptions, PATIENCE,
    models::{self, Model},
    node::run_with,
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Layers that a node takes, of six: a route has two stages.
const LAYERS: u32 = 3;
const PROMPT: &str = "Tell me everything.";
const LONG: u32 = 200;

fn request(model: &Model) -> ChatRequest {
    let mut request = ChatRequest::greedy(&model.name, PROMPT, LONG);
    request.temperature = 0.8;
    request.seed = 42;
    request
}

fn critical(model: &Model) -> ChatRequest {
    let mut request = request(model);
    request.fault_tolerance = Some("critical");
    request
}

/// The text of one node that nobody disturbs.
async fn undisturbed(model: &Model) -> Result<String> {
    let node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    Ok(node.client.chat(&request(model)).await?.text)
}

fn options() -> NodeOptions {
    NodeOptions {
        max_layers: Some(LAYERS),
        ..NodeOptions::default()
    }
}

/// A data directory that has all of the model, with some weights of every layer damaged: what a bad
/// disk does. The blocks were checked when they came.
async fn damaged(model: &Model) -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    let data = Some(dir.path().join("data"));
    let mut node = Node::start(&NodeOptions { data, ..options() }).await?;
    let cid = node.add_model(&model.path)?;
    node.process.terminate()?;
    let file = node.data().join("models").join(cid);
    damage(&file, &model.path)?;
    Ok(dir)
}

fn damage(file: &Path, original: &Path) -> Result<()> {
    let gguf = Gguf::open(original)?;
    let mut file = OpenOptions::new().read(true).write(true).open(file)?;
    let tensors = gguf.tensors.iter();
    for tensor in tensors.filter(|tensor| tensor.name.ends_with("ffn_down.weight")) {
        let range = gguf.tensor_range(tensor);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.seek(SeekFrom::Start(range.start))?;
        file.read_exact(&mut bytes)?;
        // A single weight may be multiplied by zeros only. Of a block the scale comes first.
        for block in bytes.chunks_mut(tensor.dtype.block_bytes as usize) {
            block[6] ^= 0x35;
        }
        file.seek(SeekFrom::Start(range.start))?;
        file.write_all(&bytes)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Everybody but the last has the model. A damaged block that somebody asks for is noticed by its own
/// node, which fetches it again.
fn add_model_but_to_the_last(cluster: &Cluster, model: &Model) -> Result<()> {
    let honest = cluster.nodes.len() - 1;
    for node in cluster.nodes.iter().take(honest) {
        node.add_model(&model.path)?;
    }
    Ok(())
}

async fn evidence(node: &Node) -> Result<Vec<Value>> {
    let listing = node.client.get("/api/v1/evidence").await?.body;
    let all = listing.get("evidence").and_then(Value::as_array);
    Ok(all
        .with_context(|| format!("no list in {listing}"))?
        .clone())
}

async fn wait_for_evidence(node: &Node) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(first) = evidence(node).await?.into_iter().next() {
            return Ok(first);
        }
        if Instant::now() > deadline {
            let (_, metrics) = node.client.get_text("/metrics").await?;
            let audits = metrics.lines().filter(|line| line.contains("audits"));
            bail!("nobody was found out: {:?}", audits.collect::<Vec<_>>());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whom a node gives no work.
async fn quarantined(node: &Node) -> Result<Vec<String>> {
    let peers = node.client.get("/api/v1/peers").await?.body;
    let peers = peers.get("peers").and_then(Value::as_array).cloned();
    let peers = peers.context("a list of peers")?.into_iter();
    let out = peers.filter(|peer| peer["quarantined"] == true);
    Ok(out
        .filter_map(|peer| peer["peer_id"].as_str().map(str::to_owned))
        .collect())
}

/// Has a node check evidence, by its command.
fn check(node: &Node, evidence: &Value, dir: &Path) -> Result<Result<Value, String>> {
    let file = dir.join("evidence.json");
    fs::write(&file, evidence.to_string())?;
    let file = file.to_str().context("a path in unicode")?;
    let output = run_with(
        &["evidence", "check", file, "--json"],
        &[("ACCEL_API", node.api.as_str())],
    )?;
    Ok(match output.status.success() {
        true => Ok(serde_json::from_str(&output.stdout)?),
        false => Err(output.stderr),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_damaged_weights_is_found_out_and_the_answer_is_right() -> Result<()> {
    let model = models::talkative()?;
    let expected = undisturbed(&model).await?;
    let bad = damaged(&model).await?;
    let mut cluster = Cluster::start(3, Some(LAYERS)).await?;
    let data = Some(bad.path().join("data"));
    let liar = cluster.add(NodeOptions { data, ..options() }).await?;
    let liar = liar.peer_id.clone();
    cluster.wait_until_complete().await?;
    add_model_but_to_the_last(&cluster, &model)?;
    let asked = &cluster.nodes[0];

    let stream = asked.client.stream(&critical(&model)).await?;
    let reading = tokio::spawn(async move {
        let mut listener = Listener::default();
        listener.hear_all(stream).await.map(|()| listener)
    });
    let found = wait_for_evidence(asked).await?;
    assert_eq!(found["peer_id"], liar.as_str(), "{found}");
    assert_eq!(quarantined(asked).await?, std::slice::from_ref(&liar));
    // Without the liar there are three; two routes of two stages need one more.
    cluster.add(options()).await?;
    let heard = reading.await??;
    assert_eq!(heard.text, expected);
    let asked = &cluster.nodes[0];
    let view = asked.client.session(heard.session()).await?;
    assert_eq!(view["fault_tolerance"], "critical", "{view}");
    assert_eq!(evidence(asked).await?.len(), 1, "and nobody else");

    let id = found["id"].as_str().context("an id")?;
    let whole = asked.cli_json(&["evidence", "show", id])?;
    others_judge_by_themselves(&cluster, &whole, &liar).await?;
    let lifted = asked.cli_json(&["evidence", "lift", &liar])?;
    assert_eq!(lifted["lifted"], liar.as_str());
    assert_eq!(quarantined(asked).await?, Vec::<String>::new());
    Ok(())
}

/// Another node believes only what it has computed, and what is signed.
async fn others_judge_by_themselves(cluster: &Cluster, whole: &Value, liar: &str) -> Result<()> {
    let (dir, other) = (tempfile::tempdir()?, &cluster.nodes[1]);
    let honest = cluster.nodes[2].peer_id.as_str();
    let tokens = whole["tokens"].as_array().context("tokens")?.len();
    let zeros = "0".repeat(64);
    let forgeries: [(&str, Value); 6] = [
        ("peer_id", json!(honest)),
        ("output", json!(zeros)),
        ("input", json!(zeros)),
        ("nonce", json!(zeros)),
        ("last_layer", json!(0)),
        ("tokens", json!(vec![1; tokens + 1])),
    ];
    for (field, value) in forgeries {
        let mut forged = whole.clone();
        forged[field] = value;
        match check(other, &forged, dir.path())? {
            Ok(verdict) => bail!("{field} was forged: {verdict}"),
            Err(error) => assert!(error.contains("no evidence"), "{field}: {error}"),
        }
    }
    // Other tokens, as many: the signature holds, and what was given is not what it should be.
    let mut forged = whole.clone();
    forged["tokens"] = json!(vec![1; tokens]);
    let verdict = check(other, &forged, dir.path())?.map_err(anyhow::Error::msg)?;
    assert_eq!(verdict["verdict"], "not_proven", "{verdict}");
    assert_eq!(quarantined(other).await?, Vec::<String>::new());

    let verdict = check(other, whole, dir.path())?.map_err(anyhow::Error::msg)?;
    assert_eq!(verdict["verdict"], "confirmed", "{verdict}");
    assert_eq!(quarantined(other).await?, [liar]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_routes_give_the_answer_of_one_also_when_a_peer_is_killed() -> Result<()> {
    let model = models::talkative()?;
    let expected = undisturbed(&model).await?;
    let mut cluster = Cluster::start(6, Some(LAYERS)).await?;
    let asked = cluster.nodes.remove(0);
    asked.add_model(&model.path)?;
    let answer = asked.client.chat(&critical(&model)).await?;
    assert_eq!(answer.text, expected);

    let mut stream = asked.client.stream(&critical(&model)).await?;
    let mut listener = Listener::default();
    listener.hear(&mut stream, 3).await?;
    let view = asked.client.session(listener.session()).await?;
    let route = view["route"].as_array().context("a route")?.clone();
    let in_route = |node: &Node| {
        route
            .iter()
            .any(|hop| hop["peer_id"] == node.peer_id.as_str())
    };
    if let Some(index) = cluster.nodes.iter().position(in_route) {
        cluster.nodes.remove(index).process.kill();
    }
    listener.hear_all(stream).await?;
    assert_eq!(listener.text, expected);
    assert_eq!(evidence(&asked).await?, Vec::<Value>::new(), "nobody lied");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_peers_for_a_second_route_the_request_is_refused() -> Result<()> {
    let model = models::talkative()?;
    let cluster = Cluster::start(3, Some(LAYERS)).await?;
    let asked = &cluster.nodes[0];
    asked.add_model(&model.path)?;
    let body = json!({"model": model.name, "prompt": PROMPT, "fault_tolerance": "critical"});
    let refused = asked.client.post("/v1/completions", &body).await?;
    assert_eq!((refused.status, refused.code()), (503, "too_few_peers"));
    assert!(
        refused.hint().contains("start more nodes"),
        "{}",
        refused.hint()
    );
    Ok(())
}

/// How many audits of a node came to this.
async fn audits(node: &Node, result: &str) -> Result<u64> {
    let (_, metrics) = node.client.get_text("/metrics").await?;
    let name = format!("accel_audits_total{{result=\"{result}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(Ok(0), |count| Ok(count.trim().parse()?))
}

async fn wait_for_audit(node: &Node, result: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while audits(node, result).await? == 0 {
        ensure!(Instant::now() < deadline, "no audit came to `{result}`");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn auditing() -> NodeOptions {
    let args = vec!["--audit-share".to_owned(), "100".to_owned()];
    NodeOptions { args, ..options() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_finds_out_a_liar_also_where_everything_is_computed_once() -> Result<()> {
    let model = models::talkative()?;
    let bad = damaged(&model).await?;
    let mut cluster = Cluster::empty()?;
    for _ in 0..3 {
        cluster.add(auditing()).await?;
    }
    let data = Some(bad.path().join("data"));
    let liar = cluster.add(NodeOptions { data, ..options() }).await?;
    let liar = liar.peer_id.clone();
    cluster.wait_until_complete().await?;
    add_model_but_to_the_last(&cluster, &model)?;
    let asked = &cluster.nodes[0];
    // The liar is in the route, or else among those who compute it again.
    asked.client.chat(&request(&model)).await?;
    let found = wait_for_evidence(asked).await?;
    assert_eq!(found["peer_id"], liar.as_str(), "{found}");
    assert_eq!(quarantined(asked).await?, [liar]);
    wait_for_audit(asked, "lied").await
}

#[tokio::test(flavor = "multi_thread")]
async fn audits_of_honest_peers_agree_and_are_not_possible_without_others() -> Result<()> {
    let model = models::talkative()?;
    let mut cluster = Cluster::empty()?;
    for _ in 0..4 {
        cluster.add(auditing()).await?;
    }
    cluster.wait_until_complete().await?;
    let asked = &cluster.nodes[0];
    asked.add_model(&model.path)?;
    let answer = asked.client.chat(&request(&model)).await?;
    assert_eq!(answer.text, undisturbed(&model).await?);
    wait_for_audit(asked, "agreed").await?;
    assert_eq!(evidence(asked).await?, Vec::<Value>::new());

    let alone = Node::start(&NodeOptions {
        max_layers: None,
        ..auditing()
    })
    .await?;
    alone.add_model(&model.path)?;
    alone.client.chat(&request(&model)).await?;
    wait_for_audit(&alone, "not_possible").await
}
