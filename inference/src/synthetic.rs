//! Small, valid model files with random weights: for tests and self-checks.
//!
//! Such a file has everything a real one has (weights in a real quantisation, tokenizer, chat
//! template), so a whole node runs on it; only its answers mean nothing. Equal specifications
//! give equal bytes on every machine.

pub mod golden;
mod recipe;
mod sizes;
mod tensors;
mod tokenizer;
mod weights;

use crate::gguf::writer::Writer;
use crate::gguf::{GgufError, TensorType};
use recipe::Recipe;
use std::path::Path;

/// The hidden width must be a multiple of this, so that heads and quantised blocks come out even.
const HIDDEN_STEP: u32 = 64;
/// Largest sizes that are generated; these files are meant to be small.
const MAX_LAYERS: u32 = 256;
const MAX_HIDDEN: u32 = 4096;

/// Models that can be generated: one for each architecture, and one for each form of it that
/// computes differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyntheticArch {
    /// `llama`, with divisors of its rope frequencies.
    Llama,
    /// `llama` with a rotary embedding that is stretched evenly.
    LlamaLinear,
    /// `llama` with the divisors that Llama 3 has.
    LlamaLlama3,
    /// `llama` with a rotary embedding stretched by YaRN.
    LlamaYarn,
    /// `llama` whose queries are wider than the hidden state, as in Mistral Nemo.
    Mistral,
    /// `llama` with a mixture of experts.
    Mixtral,
    /// `qwen2`.
    Qwen2,
    /// `qwen2moe`: a mixture of experts, and one that always takes part.
    Qwen2Moe,
    /// `qwen3`.
    Qwen3,
    /// `gemma2`.
    Gemma2,
    /// `gemma3`.
    Gemma3,
    /// `gemma3` whose layers without a window have a stretched rotary embedding.
    Gemma3Linear,
    /// `phi3`.
    Phi3,
    /// `phi3` with divisors for short and for long sequences, and heads that turn in part.
    Phi3Long,
}

impl SyntheticArch {
    /// Every architecture that the engine runs.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Gemma3];

    /// The others: what the engine cannot run yet, or runs as a form of one in [`Self::ALL`].
    pub const PLANNED: [Self; 11] = [
        Self::LlamaLinear,
        Self::LlamaLlama3,
        Self::LlamaYarn,
        Self::Mistral,
        Self::Mixtral,
        Self::Qwen2Moe,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3Linear,
        Self::Phi3,
        Self::Phi3Long,
    ];

    /// The value of `general.architecture`.
    pub fn name(self) -> &'static str {
        Recipe::of(self).arch
    }

    /// A name of its own for each, e.g. `llama-yarn`.
    pub fn label(self) -> &'static str {
        Recipe::of(self).label
    }
}

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyntheticSpec {
    /// The architecture.
    pub arch: SyntheticArch,
    /// Number of layers.
    pub layers: u32,
    /// Hidden width, a multiple of 64 (of 256 for the K-quants).
    pub hidden: u32,
    /// Number of tokens, at least 300.
    pub vocab: u32,
    /// Longest sequence.
    pub context: u32,
    /// Quantisation of the matrices.
    pub quantisation: TensorType,
    /// The weights are a function of this.
    pub seed: u64,
}

impl SyntheticSpec {
    /// A model that loads and answers in milliseconds.
    pub fn small(arch: SyntheticArch) -> Self {
        Self {
            arch,
            layers: 8,
            hidden: 64,
            vocab: 512,
            context: 512,
            quantisation: TensorType::Q8_0,
            seed: 1,
        }
    }

    fn check(&self) -> Result<(), SyntheticError> {
        let is_sound = (1..=MAX_LAYERS).contains(&self.layers)
            && (HIDDEN_STEP..=MAX_HIDDEN).contains(&self.hidden)
            && self.hidden.is_multiple_of(HIDDEN_STEP)
            && self.hidden.is_multiple_of(self.quantisation.block_len)
            && tokenizer::SIZES.contains(&self.vocab)
            && self.context > 0;
        if is_sound {
            return Ok(());
        }
        Err(SyntheticError::BadSpec { spec: *self })
    }
}

/// Why no file was generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyntheticError {
    /// The sizes do not make a model.
    #[error(
        "no model has these sizes: {spec:?}; see the fields of SyntheticSpec for what is allowed"
    )]
    BadSpec {
        /// What was asked for.
        spec: SyntheticSpec,
    },
    /// The kernels do not take the quantisation.
    #[error("weights cannot be quantised as {name}; choose another quantisation")]
    BadQuantisation {
        /// What was asked for.
        name: &'static str,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] GgufError),
}

/// Generates a model file at `path`.
pub fn generate(spec: &SyntheticSpec, path: &Path) -> Result<(), SyntheticError> {
    Ok(writer(spec)?.write(path)?)
}

/// Generates a model file in memory.
pub fn generate_bytes(spec: &SyntheticSpec) -> Result<Vec<u8>, SyntheticError> {
    Ok(writer(spec)?.to_bytes())
}

fn writer(spec: &SyntheticSpec) -> Result<Writer, SyntheticError> {
    spec.check()?;
    let recipe = Recipe::of(spec.arch);
    let mut writer = Writer::new();
    sizes::write(&mut writer, spec, recipe);
    let special = tokenizer::write(&mut writer, recipe.tokenizer, spec.vocab);
    tensors::add(&mut writer, spec, recipe, &special)?;
    Ok(writer)
}
