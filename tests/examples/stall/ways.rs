//! Each way to rebuild KV caches in turn, and the one that is chosen, over lengths of the prompt: the
//! time from stages that are ready to the next token, beside what it was priced at.

use accel_tests::models::Model;
use anyhow::Result;
use serde_json::{Value, json};

use crate::Options;
use crate::trial::{self, Told};

/// The ways that the loss of a peer leaves; none is whatever the node chooses.
const WAYS: [Option<&str>; 3] = [Some("replay"), Some("prefill"), None];

/// Prints a table, and gives all of it.
pub async fn compare(options: &Options, model: &Model) -> Result<Value> {
    println!("| positions | way | trials | measured ms (median) | priced ms (median) |");
    println!("|---|---|---|---|---|");
    let mut all = Vec::new();
    for context in options.ways.clone() {
        for way in WAYS {
            let options = Options {
                context,
                rebuild: way,
                ..options.clone()
            };
            let told = trials(&options, model).await?;
            let measured = median(told.iter().filter_map(|told| told.rebuild));
            let predicted = median(told.iter().filter_map(|told| told.predicted));
            let name = match way {
                Some(way) => way.to_owned(),
                None => format!("chosen: {}", ways_of(&told)),
            };
            let count = told.len();
            println!("| {context} | {name} | {count} | {measured:.0} | {predicted:.0} |");
            all.push(json!({
                "positions": context,
                "way": name,
                "trials": count,
                "measured_ms": measured,
                "predicted_ms": predicted,
            }));
        }
    }
    Ok(all.into())
}

/// Trials in which KV caches were rebuilt in the way that was asked for.
async fn trials(options: &Options, model: &Model) -> Result<Vec<Told>> {
    let mut all = Vec::new();
    for number in 0..options.trials {
        let told = trial::run(options, model, number).await?;
        let is_it = options.rebuild.is_none_or(|way| told.way == way);
        match is_it {
            true => all.push(told),
            false => eprintln!("trial {number} is left out: it took {:?}", told.way),
        }
    }
    Ok(all)
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
