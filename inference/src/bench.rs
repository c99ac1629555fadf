//! Speed of the local engine on one model file; no node is involved.

use crate::gguf::{Gguf, GgufError};
use crate::hardware;
use crate::layers::LayerRange;
use crate::shape::{ModelError, ModelShape};
use crate::stage::{
    LoadError, LoadOptions, Logits, Stage, StageError, StageInput, StageOutput, StepRequest,
    load_stage,
};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Tokens of the prompt that go through the model at a time, as many as a node sends.
const CHUNK: usize = 256;
const MAX_BATCH: usize = 256;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens to generate.
    pub generate: usize,
    /// Sequences that are decoded together, a token of each in every step.
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
    /// Bytes per second, in units of 10⁹, that plain reading of memory got through.
    pub memory_gb_s: f64,
    /// Products of eight-bit integers per second, in units of 10⁹, with everything in registers.
    pub int8_gmac_s: f64,
    /// Weights read per second while decoding, in units of 10⁹ bytes. The KV cache is not counted.
    pub decode_gb_s: f64,
    /// Products with weights per second while reading prompts, in units of 10⁹. Neither those of
    /// the attention nor those of the output head, which only the last token needs, are counted.
    pub prefill_gmac_s: f64,
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
    let layer_weights = layer_weights(&gguf);
    // What the file says of itself, the vocabulary above all, is not needed any more.
    drop(gguf);

    warm_up(stage.as_mut())?;
    for seq in 0..options.batch as u64 {
        stage.open(seq, options.prompt + options.generate)?;
    }
    let prefill_tok_s = prefill(stage.as_mut(), options, shape.vocab)?;
    let decode_tok_s = decode(stage.as_mut(), options)?;
    let weights_bytes = stage.weights_bytes();
    let peak_rss_mib = peak_rss_bytes() as f64 / f64::from(1 << 20);
    let numerics = stage.numerics().to_owned();
    drop(stage);
    let machine = hardware::measure_limits(options.load.threads);
    // An embedding that is not the output head as well is only looked up.
    let read = match shape.tied_embeddings {
        true => weights_bytes,
        false => weights_bytes.saturating_sub(shape.embedding_bytes),
    };
    Ok(BenchReport {
        prefill_tok_s,
        decode_tok_s,
        load_s,
        peak_rss_mib,
        weights_bytes,
        memory_gb_s: machine.memory_gb_s,
        int8_gmac_s: machine.int8_gmac_s,
        decode_gb_s: read as f64 * decode_tok_s / options.batch as f64 / 1e9,
        prefill_gmac_s: layer_weights as f64 * prefill_tok_s / 1e9,
        isa: hardware::isa().to_owned(),
        numerics,
    })
}

/// Numbers in the matrices of all layers. (Of a mixture of experts all are counted, though each
/// token goes through a few.)
fn layer_weights(gguf: &Gguf) -> u64 {
    let matrices = gguf
        .tensors
        .iter()
        .filter(|tensor| tensor.name.starts_with("blk.") && tensor.dims.len() > 1);
    matrices.map(|tensor| tensor.len()).sum()
}

/// One prompt and one token that are not counted: buffers grow and pages are touched.
fn warm_up(stage: &mut dyn Stage) -> Result<(), BenchError> {
    const SEQ: u64 = u64::MAX;
    const TOKENS: usize = 32;
    stage.open(SEQ, TOKENS + 1)?;
    let input = StageInput::Tokens(vec![0; TOKENS]);
    stage.step(SEQ, 0, input, Logits::None)?;
    stage.step(SEQ, TOKENS, StageInput::Tokens(vec![0]), Logits::Last)?;
    stage.close(SEQ);
    Ok(())
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
            let is_last = position + chunk.len() == prompt.len();
            let wanted = if is_last { Logits::Last } else { Logits::None };
            stage.step(seq, position, input, wanted)?;
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
        let position = options.prompt + step;
        let batch = tokens.iter().enumerate().map(|(seq, token)| StepRequest {
            seq: seq as u64,
            position,
            input: StageInput::Tokens(vec![*token]),
            want_logits: Logits::Last,
        });
        let outputs = stage.run(batch.collect());
        for (token, output) in tokens.iter_mut().zip(outputs) {
            *token = highest(&output?);
        }
    }
    let generated = options.generate * options.batch;
    Ok(generated as f64 / started.elapsed().as_secs_f64())
}

fn highest(output: &StageOutput) -> u32 {
    let StageOutput::Logits { data, .. } = output else {
        return 0;
    };
    crate::sampler::highest(data).map_or(0, |(token, _)| token)
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
