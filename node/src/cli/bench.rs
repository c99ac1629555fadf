//! `accel bench`: how fast the local engine is; no node is needed.

use accel_inference::bench::{BenchOptions, bench};
use accel_inference::{KvFormat, LoadOptions};
use clap::Args;

use super::Output;
use super::local::local_model;
use crate::failure::{Failure, chain};
use crate::terminal;

/// Measure the local engine on a model
#[derive(Debug, Args)]
pub struct Bench {
    /// Path of a GGUF file, or a known name
    model: String,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 256)]
    prompt: usize,
    /// Tokens to generate
    #[arg(long = "gen", value_name = "N", default_value_t = 64)]
    generate: usize,
    /// Threads that compute [default: one per core]
    #[arg(long, value_name = "N", value_parser = super::local::threads)]
    threads: Option<usize>,
    /// How the KV cache is kept
    #[arg(long, value_name = "f16|q8", default_value_t)]
    kv: KvFormat,
    /// Sequences at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
}

impl Bench {
    pub fn run(self, output: Output) -> Result<(), Failure> {
        let path = local_model(&self.model)?;
        let options = BenchOptions {
            prompt: self.prompt,
            generate: self.generate,
            batch: self.batch,
            load: LoadOptions {
                threads: self.threads,
                kv: self.kv,
                ..LoadOptions::default()
            },
        };
        let spinner = terminal::spinner("measuring");
        let result = bench(&path, &options);
        spinner.finish_and_clear();
        let report = result.map_err(|error| Failure::new(chain(&error)))?;
        if output.json {
            return terminal::json(&report);
        }
        terminal::line(&format!(
            "prefill  {:.1} tokens/s measured",
            report.prefill_tok_s
        ))?;
        terminal::line(&format!(
            "decode   {:.1} tokens/s measured",
            report.decode_tok_s
        ))?;
        terminal::line(&format!(
            "machine  {:.1} GB/s read, {:.0} billion 8-bit products/s, measured; decode read {:.1} GB/s",
            report.memory_gb_s, report.int8_gmac_s, report.decode_gb_s
        ))?;
        terminal::line(&format!("load     {:.2} s measured", report.load_s))?;
        terminal::line(&format!(
            "memory   {:.0} MiB at most, measured",
            report.peak_rss_mib
        ))?;
        let weights = terminal::human_bytes(report.weights_bytes);
        terminal::line(&format!("weights  {weights}"))?;
        terminal::line(&format!("engine   {} on {}", report.numerics, report.isa))
    }
}
