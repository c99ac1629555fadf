//! Planned moves: a node that computes a part of an answer is drained, and gives its layers to the
//! spare one while the answer comes; or it becomes slow, nobody is free, and the other one that computes gets
//! some of them. How long that takes, and whether the client could see it.

use std::time::{Duration, Instant};

use accel_tests::brake::RUNS;
use accel_tests::models::Model;
use accel_tests::{Brake, ChatRequest, Cluster, Node, NodeOptions};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::Options;
use crate::figures::rank;
use crate::trial::{self, millis};

/// Tokens of the answer: long enough for a spare that must still fetch.
const ANSWER: u32 = 700;
/// Layers that each of two nodes takes, of 30, where one is slowed down.
const MOST: u32 = 20;
/// How often it is looked whether it has moved.
const LOOK: Duration = Duration::from_millis(20);
/// Pieces of text before the node is drained.
const BEFORE: usize = 40;

/// What the trials told, in milliseconds.
#[derive(Default)]
struct Seen {
    ready: Vec<f64>,
    gap: Vec<f64>,
    usual: Vec<f64>,
    silence: Vec<f64>,
    usual_silence: Vec<f64>,
}

/// Prints a table, and gives all of it.
pub async fn measure(options: &Options, model: &Model) -> Result<Value> {
    let mut seen = Seen::default();
    for number in 0..options.trials {
        match options.slow {
            true => slow(options, model, number, &mut seen).await?,
            false => one(options, model, number, &mut seen).await?,
        }
    }
    let rows = [
        ("the spare gets ready", &mut seen.ready),
        ("between the tokens around the move", &mut seen.gap),
        ("between two tokens, median of the answer", &mut seen.usual),
        (
            "longest silence of the stream from the drain on",
            &mut seen.silence,
        ),
        ("longest silence before it", &mut seen.usual_silence),
    ];
    println!("\n| ms | p50 | p95 | most |\n|---|---|---|---|");
    let mut all = serde_json::Map::new();
    for (name, values) in rows {
        values.sort_by(f64::total_cmp);
        let cells = [50, 95, 100].map(|percent| rank(values, percent).unwrap_or(f64::NAN));
        let [p50, p95, most] = cells;
        println!("| {name} | {p50:.1} | {p95:.1} | {most:.1} |");
        all.insert(name.to_owned(), json!(values));
    }
    Ok(all.into())
}

async fn one(options: &Options, model: &Model, number: usize, seen: &mut Seen) -> Result<()> {
    let mut cluster = trial::swarm(options, model).await?;
    let asked = cluster.nodes.remove(0);
    let request = ChatRequest::greedy(&model.name, &trial::prompt(options.context), ANSWER);
    let (mut listener, route) = trial::begin(&asked, &request, BEFORE).await?;
    let before = listener.take_silences();
    let others = cluster.nodes.iter();
    let mut stages: Vec<&Node> = others
        .filter(|node| route.contains(&node.peer_id))
        .collect();
    stages.sort_by_key(|node| route.iter().position(|peer| *peer == node.peer_id));
    let leaving = stages.get(number % stages.len().max(1));
    let leaving = leaving.context("nobody else takes part in the session")?;
    let asked_at = Instant::now();
    let drained = json!({"draining": true});
    let reply = leaving.client.post("/api/v1/drain", &drained).await?;
    ensure!(reply.status == 200, "{}", reply.body);
    let after = listener.rest_of_silences().await?;
    let view = asked.client.session(listener.session()).await?;
    let longest = |silences: &[Duration]| silences.iter().max().copied().map_or(0.0, millis);
    seen.silence.push(longest(&after));
    seen.usual_silence.push(longest(&before));
    note(&view, number, asked_at, seen)
}

/// One of two nodes is held up in the middle of an answer, until the session has moved.
async fn slow(options: &Options, model: &Model, number: usize, seen: &mut Seen) -> Result<()> {
    let mut cluster = Cluster::empty()?;
    let none = ["--memory", "1MiB"].map(str::to_owned).to_vec();
    for (args, max_layers) in [
        (none, None),
        (Vec::new(), Some(MOST)),
        (Vec::new(), Some(MOST)),
    ] {
        let node = NodeOptions {
            args,
            max_layers,
            ..NodeOptions::default()
        };
        cluster.add(node).await?;
    }
    cluster.wait_until_complete().await?;
    let asked = cluster.nodes.remove(0);
    asked.add_model(&model.path)?;
    let request = ChatRequest::greedy(&model.name, &trial::prompt(options.context), ANSWER);
    let (mut listener, route) = trial::begin(&asked, &request, BEFORE).await?;
    let before = listener.take_silences();
    // It has the output matrix as well, so that much is to be gained.
    let last = route.last().context("a route")?;
    let at = cluster.nodes.iter().position(|node| node.peer_id == *last);
    let held_up = cluster.nodes.remove(at.context("the last stage")?);
    let asked_at = Instant::now();
    let (brake, braking) = Brake::on(held_up, 6 * RUNS);
    let session = listener.session().to_owned();
    let until_moved = async {
        loop {
            let view = asked.client.session(&session).await?;
            if view["moves"][0]["gap_ms"].is_object() || view["state"] == "done" {
                drop(brake);
                return braking.await?;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let (silences, released) = tokio::join!(listener.rest_of_silences(), until_moved);
    let (after, _released) = (silences?, released?);
    if asked.client.session(&session).await?["moves"] == json!([]) {
        // By what the nodes measured of themselves when they started, that would not have been faster by enough.
        eprintln!("trial {number}: the session stayed where it was");
        return Ok(());
    }
    let view = asked.client.session(listener.session()).await?;
    let longest = |silences: &[Duration]| silences.iter().max().copied().map_or(0.0, millis);
    seen.silence.push(longest(&after));
    seen.usual_silence.push(longest(&before));
    note(&view, number, asked_at, seen)
}

/// What the node tells of the move.
fn note(view: &Value, number: usize, since: Instant, seen: &mut Seen) -> Result<()> {
    let moved = &view["moves"][0];
    ensure!(view["recoveries"] == 0, "something failed: {view}");
    let (ready, gap) = (figure(moved, "ready_ms"), figure(moved, "gap_ms"));
    let (ready, gap) = ready.zip(gap).with_context(|| format!("no move: {view}"))?;
    let rate = figure(view, "tokens_per_s").context("a rate")?;
    eprintln!(
        "trial {number}: ready {ready:.0} ms, gap {gap:.1} ms, {rate:.0} tokens/s, {:?}",
        since.elapsed()
    );
    seen.ready.push(ready);
    seen.gap.push(gap);
    seen.usual.push(1000.0 / rate);
    Ok(())
}

fn figure(of: &Value, name: &str) -> Option<f64> {
    of[name]["value"].as_f64()
}
