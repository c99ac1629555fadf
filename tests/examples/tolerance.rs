//! Measures what the levels of fault tolerance cost while nothing fails: tokens per second with
//! `none`, `medium`, `high` and `critical`, one after the other and again, each time in another order, so that
//! whatever else the machine does meets all of them alike. What counts is the ratio within a round: its median
//! over the rounds, and the interval that has the true median with 95 % (from the order statistics; nothing is
//! assumed about how the machine disturbs).
//!
//! ```text
//! cargo run --release -p accel-tests --example tolerance -- --rounds 10 --tokens 256
//! cargo run --release -p accel-tests --example tolerance -- --rounds 10 --split
//! cargo run --release -p accel-tests --example tolerance -- --rounds 200 --tokens 96 --levels none,medium,high
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

fn level(name: &str) -> Result<&'static str> {
    let mut known = LEVELS.into_iter();
    let known = known.find(|known| *known == name);
    known.with_context(|| format!("there is no level {name}; there are {}", LEVELS.join(", ")))
}

/// Measures what fault tolerance costs while nothing fails
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Answers of each level
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Tokens of an answer, at most
    #[arg(long, default_value_t = 256)]
    tokens: u32,
    /// Levels to compare with the first of them
    #[arg(long, value_delimiter = ',', value_parser = level, default_values = LEVELS)]
    levels: Vec<&'static str>,
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

/// The speeds of one level, in tokens per second after the first, round by round.
struct Speeds {
    level: &'static str,
    all: Vec<f64>,
}

impl Speeds {
    fn median(&self) -> f64 {
        middle(&self.all).value
    }

    /// Of each round, this level's speed by another's.
    fn by(&self, base: &Self) -> Middle {
        let ratios = self.all.iter().zip(&base.all);
        middle(&ratios.map(|(own, base)| own / base).collect::<Vec<_>>())
    }
}

/// A median, and between what the true one is with 95 %.
struct Middle {
    value: f64,
    low: f64,
    high: f64,
}

/// How many values are below the true median is binomial: the normal approximation of that says which
/// ones are its bounds. Of few values, the least and the greatest.
fn middle(values: &[f64]) -> Middle {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    let reach = 1.96 * count.sqrt() / 2.0;
    let at = |index: f64| {
        let index = index.clamp(0.0, (count - 1.0).max(0.0)) as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    };
    Middle {
        value: at((count / 2.0).floor()),
        low: at((count / 2.0 - reach).floor()),
        high: at((count / 2.0 + reach).ceil()),
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
    let levels = options.levels.iter();
    let mut speeds: Vec<Speeds> = levels
        .map(|level| Speeds {
            level,
            all: Vec::new(),
        })
        .collect();
    // The first answers fetch and load the layers.
    for level in &options.levels {
        measure(asked, &model, &options, level, 0).await?;
    }
    for round in 0..options.rounds {
        for turn in 0..speeds.len() {
            let whose = order(round, turn, speeds.len());
            let Some(level) = speeds.get_mut(whose) else {
                continue;
            };
            let speed = measure(asked, &model, &options, level.level, round).await?;
            eprintln!("round {round}, {}: {speed:.1} tokens/s", level.level);
            level.all.push(speed);
        }
    }
    report(&options, &speeds)
}

/// Whose turn it is: each level is first as often as last, before and behind each other one.
fn order(round: usize, turn: usize, levels: usize) -> usize {
    let turned = (turn + round / 2) % levels;
    match round.is_multiple_of(2) {
        true => turned,
        false => levels - 1 - turned,
    }
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
    let base = speeds.first().context("a level")?;
    println!(
        "| level | tokens/s, median of {} | of `{}`, by round | with 95 % within |",
        options.rounds, base.level
    );
    println!("|---|---|---|---|");
    for level in speeds {
        let Middle { value, low, high } = level.by(base);
        let (share, low, high) = (100.0 * value, 100.0 * low, 100.0 * high);
        let (name, median) = (&level.level, level.median());
        println!("| `{name}` | {median:.1} | {share:.1} % | {low:.1} to {high:.1} % |");
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
