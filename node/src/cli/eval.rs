//! `accel eval`: how close the local engine is to another one; no node is needed.

use std::path::PathBuf;

use accel_inference::LoadOptions;
use accel_inference::eval::evaluate;
use clap::Args;

use super::Output;
use super::local::local_model;
use crate::failure::{Failure, chain};
use crate::terminal;

/// Compare the local engine with a reference file
#[derive(Debug, Args)]
pub struct Eval {
    /// Path of a GGUF file, or a known name
    model: String,
    /// Reference file: what another engine answered
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// Threads that compute [default: one per core]
    #[arg(long, value_name = "N", value_parser = super::local::threads)]
    threads: Option<usize>,
}

impl Eval {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let path = local_model(&self.model)?;
        let options = LoadOptions {
            threads: self.threads,
            ..LoadOptions::default()
        };
        let spinner = terminal::spinner("loading");
        let progress = |done: usize, total: usize| {
            spinner.set_message(format!("comparing {done} of {total} completions"));
        };
        let result = evaluate(&path, &self.reference, &options, &progress);
        spinner.finish_and_clear();
        let report = result.map_err(|error| Failure::new(chain(&error)))?;
        if output.json {
            return terminal::json(&report);
        }
        let lines = [
            format!("positions             {}", report.positions),
            format!("top-1 agreement       {:.4}", report.top1_agreement),
            format!("mean |Δ logprob|      {:.4}", report.mean_abs_logprob_diff),
            format!("max |Δ logprob|       {:.4}", report.max_abs_logprob_diff),
            format!("nll                   {:.4}", report.nll),
            format!("blake3 of the logits  {}", report.logits_blake3),
        ];
        terminal::line(&lines.join("\n"))
    }
}
