//! `accel eval`: how close the local engine is to another one, or how well a model predicts a
//! text; no node is needed.

use std::path::{Path, PathBuf};

use accel_inference::eval::{EvalReport, evaluate};
use accel_inference::perplexity::{DEFAULT_CHUNK, PerplexityReport, perplexity};
use accel_inference::{KvFormat, LoadOptions};
use clap::Args;

use super::Output;
use super::local::local_model;
use crate::failure::{Failure, chain};
use crate::terminal;

/// Compare the local engine with a reference file, or score a text
#[derive(Debug, Args)]
pub struct Eval {
    /// Path of a GGUF file, or a known name
    model: String,
    #[command(flatten)]
    against: Against,
    /// Tokens of the chunks that the text is cut into; the second half of each is scored
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CHUNK, conflicts_with = "reference")]
    chunk: usize,
    /// Threads that compute [default: one per core]
    #[arg(long, value_name = "N", value_parser = super::local::threads)]
    threads: Option<usize>,
    /// How the KV cache is kept
    #[arg(long, value_name = "f16|q8", default_value_t)]
    kv: KvFormat,
}

/// What the model is held against.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Against {
    /// Reference file: what another engine answered
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Text file: its perplexity, as llama.cpp's llama-perplexity computes it
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
}

impl Eval {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let model = local_model(&self.model)?;
        let options = LoadOptions {
            threads: self.threads,
            kv: self.kv,
            ..LoadOptions::default()
        };
        if let Some(text) = &self.against.text {
            return score(&model, text, self.chunk, &options, output);
        }
        let reference = self.against.reference.as_deref();
        let reference = reference.expect("one of the two is required");
        compare(&model, reference, &options, output)
    }
}

fn compare(
    model: &Path,
    reference: &Path,
    options: &LoadOptions,
    output: Output,
) -> Result<(), Failure> {
    let spinner = terminal::spinner("loading");
    let progress = |done: usize, total: usize| {
        spinner.set_message(format!("comparing {done} of {total} completions"));
    };
    let result = evaluate(model, reference, options, &progress);
    spinner.finish_and_clear();
    let report = result.map_err(|error| Failure::new(chain(&error)))?;
    if output.json {
        return terminal::json(&report);
    }
    terminal::line(&comparison(&report))
}

fn comparison(report: &EvalReport) -> String {
    let lines = [
        format!("positions             {}", report.positions),
        format!("top-1 agreement       {:.4}", report.top1_agreement),
        format!("mean |Δ logprob|      {:.4}", report.mean_abs_logprob_diff),
        format!("max |Δ logprob|       {:.4}", report.max_abs_logprob_diff),
        format!("nll                   {:.4}", report.nll),
        format!("blake3 of the logits  {}", report.logits_blake3),
    ];
    lines.join("\n")
}

fn score(
    model: &Path,
    text: &Path,
    chunk: usize,
    options: &LoadOptions,
    output: Output,
) -> Result<(), Failure> {
    let spinner = terminal::spinner("loading");
    let progress = |done: usize, total: usize| {
        spinner.set_message(format!("scoring {done} of {total} chunks"));
    };
    let result = perplexity(model, text, chunk, options, &progress);
    spinner.finish_and_clear();
    let report = result.map_err(|error| Failure::new(chain(&error)))?;
    if output.json {
        return terminal::json(&report);
    }
    terminal::line(&scores(&report))
}

fn scores(report: &PerplexityReport) -> String {
    let lines = [
        format!("tokens scored  {}", report.tokens),
        format!("chunks         {}", report.chunks),
        format!("nll            {:.4}", report.nll),
        format!("perplexity     {:.4}", report.perplexity),
    ];
    lines.join("\n")
}
