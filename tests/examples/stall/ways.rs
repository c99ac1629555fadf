//! Each way to rebuild KV caches in turn, and the one that is chosen, over speeds of links and lengths of
//! the prompt: the time from stages that are ready to the next token, beside what it was priced at.
//!
//! The last stage is cut off from the one before it, and from nobody else. So it is replaced, and can give
//! its KV cache to whoever replaces it; the one before has kept its outputs; and there are the tokens. All
//! ways are possible, and take turns over the same nodes.

use accel_tests::ChatRequest;
use accel_tests::chaos::net::{Place, enter};
use accel_tests::models::Model;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::Options;
use crate::links::Swarm;
use crate::trial::{self, Told};

/// None is whatever the node chooses.
const WAYS: [Option<&str>; 4] = [Some("copy"), Some("replay"), Some("prefill"), None];
/// Tokens of the answer, and pieces of text before the loss.
const ANSWER: u32 = 40;
const BEFORE: usize = 8;
/// Prompts that are read before a row of the table, so that the nodes know their links.
const SETTLING: usize = 3;

/// Prints a table, and gives all of it; or the exit code of the command that ran it elsewhere.
pub async fn compare(options: &Options, model: &Model) -> Result<Result<Value, u8>> {
    match enter().await? {
        Place::Inside => {}
        Place::Done(code) => return Ok(Err(code)),
        Place::Loopback(why) => {
            bail!("it needs networks of its own, which are not possible here: {why}")
        }
    }
    let swarm = Swarm::start(options, &WAYS, model).await?;
    println!(
        "| Mbit/s | positions | way | trials | measured ms (median) | priced ms (median) | of the best |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut all = Vec::new();
    for megabits in &options.links {
        let limit = (*megabits > 0).then_some(*megabits);
        swarm.shape(limit)?;
        for context in &options.ways {
            let rows = rows(options, &swarm, model, *context).await?;
            let best = rows
                .iter()
                .map(|row| row.measured)
                .fold(f64::INFINITY, f64::min);
            let link = limit.map_or_else(|| "no limit".to_owned(), |megabits| megabits.to_string());
            // What was never possible is no row.
            for row in rows.into_iter().filter(|row| row.trials > 0) {
                let Row {
                    way,
                    trials,
                    measured,
                    priced,
                } = row;
                let ratio = measured / best;
                println!(
                    "| {link} | {context} | {way} | {trials} | {measured:.0} | {priced:.0} | {ratio:.2} |"
                );
                all.push(json!({
                    "megabits": limit,
                    "positions": context,
                    "way": way,
                    "trials": trials,
                    "measured_ms": measured,
                    "predicted_ms": priced,
                }));
            }
        }
    }
    Ok(Ok(all.into()))
}

/// What came of a way over one link and length.
struct Row {
    way: String,
    trials: usize,
    measured: f64,
    priced: f64,
}

async fn rows(options: &Options, swarm: &Swarm, model: &Model, context: usize) -> Result<Vec<Row>> {
    settle(swarm, model, context).await?;
    let mut told = [const { Vec::new() }; WAYS.len()];
    for number in 0..options.trials {
        for (index, (way, told)) in WAYS.iter().zip(&mut told).enumerate() {
            let one = part(swarm, index, model, context).await?;
            match way.is_none_or(|way| one.way == way) {
                true => told.push(one),
                false => eprintln!(
                    "trial {number} of {way:?} is left out: it took {:?}",
                    one.way
                ),
            }
        }
    }
    let rows = WAYS.iter().zip(&told).map(|(way, told)| Row {
        way: match way {
            Some(way) => (*way).to_owned(),
            None => format!("chosen: {}", ways_of(told)),
        },
        trials: told.len(),
        measured: median(told.iter().filter_map(|told| told.rebuild)),
        priced: median(told.iter().filter_map(|told| told.predicted)),
    });
    Ok(rows.collect())
}

async fn settle(swarm: &Swarm, model: &Model, context: usize) -> Result<()> {
    let asker = swarm.askers.first().context("a node to ask")?;
    for _ in 0..SETTLING {
        let request = ChatRequest::greedy(&model.name, &trial::prompt(context), 1);
        asker.node.client.chat(&request).await?;
    }
    Ok(())
}

/// One session over the node that takes this way, whose last stage is cut off from the one before it.
async fn part(swarm: &Swarm, way: usize, model: &Model, context: usize) -> Result<Told> {
    let asked = &swarm.askers.get(way).context("a node for each way")?.node;
    let request = ChatRequest::greedy(&model.name, &trial::prompt(context), ANSWER);
    let (listener, route) = trial::begin(asked, &request, BEFORE).await?;
    let [.., before, last] = route.as_slice() else {
        bail!("the model is on one node: {route:?}");
    };
    swarm.part(before, last)?;
    let told = trial::outlast(asked, listener).await;
    swarm.join(before, last)?;
    swarm.are_together().await?;
    told
}

fn ways_of(told: &[Told]) -> String {
    let mut ways: Vec<&str> = told.iter().map(|told| told.way.as_str()).collect();
    ways.sort_unstable();
    ways.dedup();
    ways.join(", ")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
