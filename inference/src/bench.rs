//! Speed of the local engine on one model file; no node is involved.

use crate::cpu::NUMERICS;
use crate::gguf::{Gguf, GgufError};
use crate::hardware;
use crate::layers::LayerRange;
use crate::shape::{ModelError, ModelShape};
use crate::stage::{
    LoadError, LoadOptions, Logits, Stage, StageError, StageInput, StageOutput, load_stage,
};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Tokens of the prompt that go through the model at a time, as in a session.
const CHUNK: usize = 256;
const MAX_BATCH: usize = 256;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens to generate.
    pub generate: usize,
    /// Sequences that take turns.
    pub batch: usize,
    /// How to load the model.
    pub load: LoadOptions,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            prompt: 256,
            generate: 64,
            batch: 1,
            load: LoadOptions::default(),
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchReport {
    /// Tokens per second of reading prompts.
    pub prefill_tok_s: f64,
    /// Tokens per second of generating, all sequences together.
    pub decode_tok_s: f64,
    /// Seconds from opening the file to being ready.
    pub load_s: f64,
    /// Most memory that the process had at any time, in MiB.
    pub peak_rss_mib: f64,
    /// Memory that the weights take.
    pub weights_bytes: u64,
    /// Instruction set of the kernels.
    pub isa: String,
    /// Numerics class of the engine.
    pub numerics: String,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The options make no sense.
    #[error("{0}")]
    BadOptions(String),
    /// The model file's header is not usable.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A step failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// Loads the model file at `model` and measures it.
pub fn bench(model: &Path, options: &BenchOptions) -> Result<BenchReport, BenchError> {
    let started = Instant::now();
    let gguf = Gguf::open(model)?;
    let shape = ModelShape::from_gguf(&gguf)?;
    check(options, &shape)?;
    let range = LayerRange::whole(shape.layers);
    let mut stage = load_stage(model, &gguf, range, &options.load)?;
    let load_s = started.elapsed().as_secs_f64();

    let tokens = options.prompt + options.generate;
    for seq in 0..options.batch as u64 {
        stage.open(seq, tokens)?;
    }
    let prefill_tok_s = prefill(stage.as_mut(), options, shape.vocab)?;
    let decode_tok_s = decode(stage.as_mut(), options)?;
    Ok(BenchReport {
        prefill_tok_s,
        decode_tok_s,
        load_s,
        peak_rss_mib: peak_rss_bytes() as f64 / f64::from(1 << 20),
        weights_bytes: stage.weights_bytes(),
        isa: hardware::isa().to_owned(),
        numerics: NUMERICS.to_owned(),
    })
}

fn check(options: &BenchOptions, shape: &ModelShape) -> Result<(), BenchError> {
    let refuse = |reason: String| Err(BenchError::BadOptions(reason));
    if options.prompt == 0 || options.generate == 0 {
        return refuse("prompt and answer need at least one token each".to_owned());
    }
    if options.batch == 0 || options.batch > MAX_BATCH {
        return refuse(format!("the batch must lie between 1 and {MAX_BATCH}"));
    }
    let needed = options.prompt.saturating_add(options.generate);
    if needed > shape.context as usize {
        return refuse(format!(
            "{needed} tokens do not fit the model's context of {}; ask for fewer",
            shape.context
        ));
    }
    Ok(())
}

fn prefill(stage: &mut dyn Stage, options: &BenchOptions, vocab: u32) -> Result<f64, BenchError> {
    // Any tokens do: the arithmetic does not depend on them.
    let prompt: Vec<u32> = (0..options.prompt as u32)
        .map(|i| i.wrapping_mul(7919) % vocab)
        .collect();
    let started = Instant::now();
    for seq in 0..options.batch as u64 {
        let mut position = 0;
        for chunk in prompt.chunks(CHUNK) {
            let input = StageInput::Tokens(chunk.to_vec());
            stage.step(seq, position, input, Logits::None)?;
            position += chunk.len();
        }
    }
    let tokens = options.prompt * options.batch;
    Ok(tokens as f64 / started.elapsed().as_secs_f64())
}

fn decode(stage: &mut dyn Stage, options: &BenchOptions) -> Result<f64, BenchError> {
    let mut tokens = vec![0u32; options.batch];
    let started = Instant::now();
    for step in 0..options.generate {
        for (seq, token) in tokens.iter_mut().enumerate() {
            let input = StageInput::Tokens(vec![*token]);
            let position = options.prompt + step;
            let output = stage.step(seq as u64, position, input, Logits::Last)?;
            *token = highest(&output);
        }
    }
    let generated = options.generate * options.batch;
    Ok(generated as f64 / started.elapsed().as_secs_f64())
}

fn highest(output: &StageOutput) -> u32 {
    let StageOutput::Logits { data, .. } = output else {
        return 0;
    };
    let logits = data.iter().enumerate();
    let best = logits.max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(token, _)| token as u32)
}

/// The peak where the system tells it (Linux), else what the process has now.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or_else(current_rss_bytes, |kib| kib * 1024)
}

fn current_rss_bytes() -> u64 {
    let Ok(own) = sysinfo::get_current_pid() else {
        return 0;
    };
    let mut system = sysinfo::System::new();
    system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[own]), true);
    system.process(own).map_or(0, |process| process.memory())
}
