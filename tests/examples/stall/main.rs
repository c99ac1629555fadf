//! Measures how long an answer stands still when a node that computes a part of it is killed or
//! hangs, and where that time goes. With `--alarms`, instead, how many nodes that live are taken
//! for dead while every core is busy. With `--ways`, what each way to rebuild KV caches takes, beside
//! what it was priced at. With `--moves`, what it costs to drain the node instead.
//!
//! ```text
//! cargo run --release -p accel-tests --example stall -- --trials 20
//! cargo run --release -p accel-tests --example stall -- --trials 20 --cold
//! cargo run --release -p accel-tests --example stall -- --trials 20 --hang
//! cargo run --release -p accel-tests --example stall -- --alarms 60 --busy 8
//! cargo run --release -p accel-tests --example stall -- --trials 5 --ways 128,512 --links 0,100,10
//! cargo run --release -p accel-tests --example stall -- --trials 20 --moves
//! cargo run --release -p accel-tests --example stall -- --trials 6 --moves --slow --context 128
//! ```
//!
//! Real processes on loopback: four nodes, the model split over three of them, in a new swarm for
//! each trial. The figures are printed as a table, and written as JSON with `--out`.
//!
//! - `trial.rs`: one session, one loss
//! - `alarms.rs`: sessions under load, no loss
//! - `ways.rs`: each way to rebuild in turn, over links and lengths
//! - `links.rs`: the nodes for that
//! - `moves.rs`: one session, one move
//! - `figures.rs`: percentiles and their table

mod alarms;
mod figures;
mod links;
mod moves;
mod trial;
mod ways;

use std::path::PathBuf;
use std::process::ExitCode;

use accel_tests::models::{self, Model};
use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::json;

use figures::Figures;

/// Measures the stall of an answer when a node is lost
#[derive(Debug, Clone, Parser)]
pub struct Options {
    /// How often
    #[arg(long, default_value_t = 20)]
    trials: usize,
    /// Tokens of the prompt, roughly
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Nodes make nothing ready ahead of time
    #[arg(long)]
    cold: bool,
    /// Say nothing about stand-ins to the nodes, and wait for none: for older binaries
    #[arg(long, conflicts_with = "cold")]
    as_it_is: bool,
    /// The node hangs (SIGSTOP) instead of being killed
    #[arg(long)]
    hang: bool,
    /// Instead: count false alarms for so many minutes
    #[arg(long, value_name = "MINUTES")]
    alarms: Option<u64>,
    /// Threads that keep the machine busy meanwhile
    #[arg(long, default_value_t = 0)]
    busy: usize,
    /// Instead: compare the ways to rebuild after prompts of these lengths, in networks of their own
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',')]
    ways: Vec<usize>,
    /// Speeds of the links for that, in megabits a second; 0 is no limit
    #[arg(
        long,
        value_name = "MBIT,…",
        value_delimiter = ',',
        default_value = "0"
    )]
    links: Vec<u64>,
    /// Layers that a node takes then, of 30
    #[arg(long, value_name = "N", default_value_t = trial::LAYERS)]
    layers: u32,
    /// Memory that a node gives to models then: with little, no outputs are kept
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Instead: drain the node, and see the session move
    #[arg(long)]
    moves: bool,
    /// Slow it down instead: it keeps some layers, and the other one that computes gets more; nobody is free
    #[arg(long, requires = "moves")]
    slow: bool,
    /// File for the figures as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let model = models::smollm2()?.context("it is measured with SmolLM2")?;
    let _busy = alarms::Busy::start(options.busy);
    let report = match options.alarms {
        Some(minutes) => alarms::count(&options, &model, minutes).await?,
        None if options.moves => moves::measure(&options, &model).await?,
        None if options.ways.is_empty() => stalls(&options, &model).await?,
        None => match ways::compare(&options, &model).await? {
            Ok(report) => report,
            Err(code) => return Ok(code.into()),
        },
    };
    if let Some(path) = &options.out {
        std::fs::write(path, format!("{report:#}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn stalls(options: &Options, model: &Model) -> Result<serde_json::Value> {
    let mut figures = Figures::default();
    for number in 0..options.trials {
        let told = trial::run(options, model, number).await?;
        eprintln!("trial {number}: {told:?}");
        figures.add(&told);
    }
    println!("\n{}", figures.markdown());
    Ok(json!({
        "trials": options.trials,
        "context": options.context,
        "cold": options.cold,
        "hang": options.hang,
        "busy": options.busy,
        "figures": figures.json(),
    }))
}
