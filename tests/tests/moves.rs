//! Planned moves in real processes: peers that want to leave, are stopped, or turn out to be slower
//! than a newcomer give their layers away in mid-answer. Nothing fails, and the answer is the one that
//! would have come anyway.

use std::time::Instant;

use accel_tests::{
    Brake, ChatRequest, Cluster, Listener, Node, NodeOptions, PATIENCE,
    brake::RUNS,
    client::Stream,
    models::{self, Model},
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// Layers that a node takes, of six.
const LAYERS: u32 = 2;
/// Long enough that there is time to move in the middle of it.
const LONG: u32 = 3_000;
/// The same of a model that computes a token in no time.
const LONGER: u32 = 7_000;

fn request(model: &Model) -> ChatRequest {
    let tokens = if model.name == "talkative" {
        LONGER
    } else {
        LONG
    };
    let mut request = ChatRequest::greedy(&model.name, "Tell me everything.", tokens);
    // Warmer, the model would end by itself.
    request.temperature = 0.3;
    request.seed = 7;
    request
}

/// The text of one node that nobody disturbs.
async fn undisturbed(model: &Model) -> Result<String> {
    let node = Node::start(&NodeOptions::default()).await?;
    node.add_model(&model.path)?;
    Ok(node.client.chat(&request(model)).await?.text)
}

/// An answer that comes from several nodes.
struct Running {
    asked: Node,
    others: Cluster,
    heard: Listener,
    stream: Stream,
}

impl Running {
    /// With so many nodes, and as the first events came.
    async fn start(nodes: usize, model: &Model) -> Result<Self> {
        Self::over(Cluster::start(nodes, Some(LAYERS)).await?, model).await
    }

    /// The same with these nodes, of which the first is asked.
    async fn over(mut others: Cluster, model: &Model) -> Result<Self> {
        let asked = others.nodes.remove(0);
        asked.add_model(&model.path)?;
        let mut stream = asked.client.stream(&request(model)).await?;
        let mut heard = Listener::default();
        heard.hear(&mut stream, 10).await?;
        Ok(Self {
            asked,
            others,
            heard,
            stream,
        })
    }

    async fn view(&self) -> Result<Value> {
        let session = self.heard.last_id.split(':').next();
        self.asked.client.session(session.unwrap_or_default()).await
    }

    /// Where among the others a node has a stage.
    async fn stage(&self) -> Result<usize> {
        let view = self.view().await?;
        let mut nodes = self.others.nodes.iter();
        let found = nodes.position(|node| has(&view, node));
        found.with_context(|| format!("only the asked node computes: {view}"))
    }

    /// Reads on until the session has moved so often.
    async fn hear_moves(&mut self, count: usize) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.view().await?;
            if gaps(&view) == count {
                return Ok(view);
            }
            let is_over = self.heard.hear(&mut self.stream, 1).await?;
            if is_over || Instant::now() > deadline {
                bail!("it has not moved: {view}");
            }
        }
    }

    /// The text, and what the node tells of the session in the end.
    async fn end(mut self) -> Result<(String, Value)> {
        while !self.heard.hear(&mut self.stream, usize::MAX).await? {}
        let view = self.view().await?;
        Ok((self.heard.text, view))
    }
}

fn has(view: &Value, node: &Node) -> bool {
    let mut hops = view["route"].as_array().into_iter().flatten();
    hops.any(|hop| hop["peer_id"] == node.peer_id.as_str())
}

/// Moves behind which a token came.
fn gaps(view: &Value) -> usize {
    let moves = view["moves"].as_array().into_iter().flatten();
    moves
        .filter(|one| one["gap_ms"]["value"].is_number())
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_drained_gives_its_layers_away_and_can_be_stopped_unnoticed() -> Result<()> {
    let model = models::patient()?;
    let expected = undisturbed(&model).await?;
    let mut running = Running::start(4, &model).await?;
    let leaving = running.stage().await?;
    let mut leaving = running.others.nodes.remove(leaving);
    let answer = leaving.cli_json(&["drain", "--wait"])?;
    assert_eq!(answer, json!({"draining": true, "stages": 0}));
    let view = running.hear_moves(1).await?;
    assert_eq!(view["moves"][0]["why"], "draining", "{view}");
    assert!(!has(&view, &leaving), "{view}");
    let peers = running.asked.cli_json(&["peers"])?;
    let rows = peers.as_array().into_iter().flatten();
    let drains: Vec<&Value> = rows.filter(|row| row["draining"] == true).collect();
    assert_eq!(drains.len(), 1, "{peers}");
    assert_eq!(drains[0]["peer_id"], leaving.peer_id.as_str());
    assert!(leaving.process.terminate()?.success());
    let (text, view) = running.end().await?;
    assert_eq!(text, expected);
    assert_eq!(view["recoveries"], 0, "{view}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopped_gives_its_layers_away_first() -> Result<()> {
    let model = models::patient()?;
    let expected = undisturbed(&model).await?;
    let mut running = Running::start(4, &model).await?;
    let leaving = running.stage().await?;
    let mut leaving = running.others.nodes.remove(leaving);
    let stopped = tokio::task::spawn_blocking(move || leaving.process.terminate());
    running.hear_moves(1).await?;
    assert!(stopped.await??.success());
    let (text, view) = running.end().await?;
    assert_eq!(text, expected);
    assert_eq!(view["recoveries"], 0, "{view}");
    let (why, route) = (&view["moves"][0]["why"], view["route"].as_array());
    assert_eq!((why, route.map(Vec::len)), (&json!("draining"), Some(3)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_moves_to_a_faster_newcomer_while_it_comes() -> Result<()> {
    // So small that hops are most of the time that it takes.
    let model = models::talkative()?;
    let expected = undisturbed(&model).await?;
    let mut running = Running::start(3, &model).await?;
    // It takes all layers: there are fewer hops.
    running.others.add(NodeOptions::default()).await?;
    let view = running.hear_moves(1).await?;
    assert_eq!(view["moves"][0]["why"], "faster", "{view}");
    let newcomer = running.others.nodes.last().context("the newcomer")?;
    assert!(has(&view, newcomer), "{view}");
    assert_eq!(view["route"].as_array().map(Vec::len), Some(1), "{view}");
    let (text, view) = running.end().await?;
    assert_eq!(text, expected);
    assert_eq!(view["recoveries"], 0, "{view}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_moves_away_from_a_peer_that_became_slow() -> Result<()> {
    let model = models::patient()?;
    let expected = undisturbed(&model).await?;
    let mut running = Running::start(4, &model).await?;
    // So many that it is known how fast the peer is when nobody disturbs it.
    running.heard.hear(&mut running.stream, 200).await?;
    let slow = running.stage().await?;
    let (brake, braking) = Brake::on(running.others.nodes.remove(slow), 3 * RUNS);
    let moved = running.hear_moves(1).await;
    drop(brake);
    let slow = braking.await??;
    let view = moved?;
    assert_eq!(view["moves"][0]["why"], "faster", "{view}");
    assert!(!has(&view, &slow), "{view}");
    let (text, view) = running.end().await?;
    assert_eq!(text, expected);
    assert_eq!(view["recoveries"], 0, "{view}");
    Ok(())
}

/// How many layers a node computes for a session.
fn layers(view: &Value, node: &Node) -> u64 {
    let hops = view["route"].as_array().into_iter().flatten();
    let own = hops.filter(|hop| hop["peer_id"] == node.peer_id.as_str());
    let count = |hop: &Value| Some(1 + hop["last_layer"].as_u64()? - hop["first_layer"].as_u64()?);
    own.filter_map(count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_free_a_peer_that_became_slow_gives_layers_to_one_that_stays() -> Result<()>
{
    const MOST: u32 = 4;
    let model = models::patient()?;
    let expected = undisturbed(&model).await?;
    let mut cluster = Cluster::empty()?;
    // No layer fits at the node that is asked.
    let asks = NodeOptions {
        args: ["--memory", "1MiB"].map(str::to_owned).to_vec(),
        ..NodeOptions::default()
    };
    cluster.add(asks).await?;
    for _ in 0..2 {
        let computes = NodeOptions {
            max_layers: Some(MOST),
            ..NodeOptions::default()
        };
        cluster.add(computes).await?;
    }
    cluster.wait_until_complete().await?;
    let mut running = Running::over(cluster, &model).await?;
    running.heard.hear(&mut running.stream, 200).await?;
    let view = running.view().await?;
    let others = running.others.nodes.iter().enumerate();
    let most = others.max_by_key(|(_, node)| layers(&view, node));
    let most = most.context("two nodes compute")?.0;
    let (brake, braking) = Brake::on(running.others.nodes.remove(most), 9 * RUNS);
    let moved = running.hear_moves(1).await;
    drop(brake);
    let slow = braking.await??;
    let view = moved?;
    assert_eq!(view["moves"][0]["why"], "faster", "{view}");
    let other = running.others.nodes.first().context("the other node")?;
    let both = (layers(&view, &slow), layers(&view, other));
    assert_eq!(both, (2, 4), "{view}");
    let (text, view) = running.end().await?;
    assert_eq!(text, expected);
    assert_eq!(view["recoveries"], 0, "{view}");
    Ok(())
}
