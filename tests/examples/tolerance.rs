//! Measures what the levels of fault tolerance cost while nothing fails: tokens per second with
//! `none`, `medium`, `high` and `critical`, one after the other and again, so that whatever else the machine does
//! meets all of them alike.
//!
//! ```text
//! cargo run --release -p accel-tests --example tolerance -- --rounds 10 --tokens 256
//! cargo run --release -p accel-tests --example tolerance -- --rounds 10 --split
//! ```
//!
//! Real processes on loopback: four nodes (seven with a split), of which one is asked and, unless
//! the model is split, computes all of it; with `critical` another one does, too. All of them share one disk, which is worse than nodes of their own.

use std::path::PathBuf;
use std::time::Instant;

use accel_tests::client::Stream;
use accel_tests::models::{self, Model};
use accel_tests::{ChatRequest, Cluster, Node};
use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde_json::{Value, json};

const LEVELS: [&str; 4] = ["none", "medium", "high", "critical"];
/// Enough for a second route and for two replicas; with a split, for two routes of three stages.
const NODES: usize = 4;
const NODES_SPLIT: usize = 7;
const PROMPT: &str = "Tell me everything.";

/// Measures what fault tolerance costs while nothing fails
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Answers of each level
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Tokens of an answer, at most
    #[arg(long, default_value_t = 256)]
    tokens: u32,
    /// Split the model over three of the nodes
    #[arg(long)]
    split: bool,
    /// Use the generated model instead of SmolLM2
    #[arg(long)]
    synthetic: bool,
    /// File for the figures as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The speeds of one level, in tokens per second after the first.
struct Speeds {
    level: &'static str,
    all: Vec<f64>,
}

impl Speeds {
    fn median(&self) -> f64 {
        let mut sorted = self.all.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let model = match options.synthetic {
        true => models::talkative()?,
        false => models::smollm2()?.context("no SmolLM2 here; --synthetic does without")?,
    };
    let layers = options.split.then(|| model.layers.div_ceil(3) as u32);
    let nodes = if options.split { NODES_SPLIT } else { NODES };
    let mut cluster = Cluster::start(nodes, layers).await?;
    cluster
        .nodes
        .iter_mut()
        .for_each(|node| node.process.hush());
    let asked = cluster.nodes.last().context("a node")?;
    asked.add_model(&model.path)?;
    let mut speeds = LEVELS.map(|level| Speeds {
        level,
        all: Vec::new(),
    });
    // The first answers fetch and load the layers.
    for level in ["none", "critical"] {
        measure(asked, &model, &options, level, 0).await?;
    }
    for round in 0..options.rounds {
        for level in &mut speeds {
            let speed = measure(asked, &model, &options, level.level, round).await?;
            eprintln!("round {round}, {}: {speed:.1} tokens/s", level.level);
            level.all.push(speed);
        }
    }
    report(&options, &speeds)
}

/// One answer; how fast it came.
async fn measure(
    node: &Node,
    model: &Model,
    options: &Options,
    level: &'static str,
    round: usize,
) -> Result<f64> {
    let mut request = ChatRequest::greedy(&model.name, PROMPT, options.tokens);
    request.temperature = 0.8;
    request.seed = round as u64;
    request.fault_tolerance = Some(level);
    let stream = node.client.stream(&request).await?;
    listen(stream).await
}

async fn listen(mut stream: Stream) -> Result<f64> {
    let (mut first, mut last, mut tokens) = (None, Instant::now(), 0);
    while let Some(event) = stream.next().await? {
        if let Some(error) = event.get("error") {
            bail!("the answer ended with {error}");
        }
        let ids = event.pointer("/choices/0/token_ids");
        let came = ids.and_then(Value::as_array).map_or(0, Vec::len);
        if came > 0 {
            last = Instant::now();
            first.get_or_insert(last);
            tokens += came;
        }
    }
    let first = first.context("an answer without a token")?;
    let seconds = (last - first).as_secs_f64().max(1e-9);
    Ok(tokens.saturating_sub(1) as f64 / seconds)
}

fn report(options: &Options, speeds: &[Speeds]) -> Result<()> {
    let base = speeds.first().map_or(0.0, Speeds::median);
    println!(
        "| level | tokens/s, median of {} | of `none` |",
        options.rounds
    );
    println!("|---|---|---|");
    for level in speeds {
        let median = level.median();
        let share = 100.0 * median / base.max(1e-9);
        println!("| `{}` | {median:.1} | {share:.1} % |", level.level);
    }
    if let Some(path) = &options.out {
        let levels = speeds.iter().map(
            |speeds| json!({"level": speeds.level, "median": speeds.median(), "all": speeds.all}),
        );
        let figures = json!({
            "tokens": options.tokens,
            "split": options.split,
            "tag": "measured",
            "tokens_per_s": levels.collect::<Vec<_>>(),
        });
        std::fs::write(path, format!("{figures:#}\n"))?;
    }
    Ok(())
}
