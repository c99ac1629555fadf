//! Small, valid model files with random weights: for tests and self-checks.
//!
//! Such a file has everything a real one has (weights in a real quantisation, tokenizer, chat
//! template), so a whole node runs on it; only its answers mean nothing. Equal specifications
//! give equal bytes on every machine.

mod tokenizer;
mod weights;

use crate::gguf::writer::Writer;
use crate::gguf::{GgufError, TensorType, Value};
use std::path::Path;
use tokenizer::Kind;
use weights::{Random, Rows};

/// Width of one head.
const HEAD_DIM: u32 = 16;
/// Query heads that share a key-value head.
const GROUP: u32 = 2;
/// The hidden width must be a multiple of this, so that heads and quantised blocks come out even.
const HIDDEN_STEP: u32 = 64;
/// Largest sizes that are generated; these files are meant to be small.
const MAX_LAYERS: u32 = 256;
const MAX_HIDDEN: u32 = 4096;
/// Sliding window of the generated `gemma3`, short enough to matter in a short test.
const WINDOW: u32 = 16;

/// Architectures that can be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is named after its architecture")]
pub enum SyntheticArch {
    Llama,
    Qwen2,
    Gemma3,
}

impl SyntheticArch {
    /// Every architecture.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Gemma3];

    /// The value of `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Gemma3 => "gemma3",
        }
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

    fn feed_forward(&self) -> u32 {
        self.hidden * 2
    }

    fn heads(&self) -> u32 {
        self.hidden / HEAD_DIM
    }

    fn kv_heads(&self) -> u32 {
        self.heads() / GROUP
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
    let mut writer = Writer::new();
    set_sizes(&mut writer, spec);
    let kind = match spec.arch {
        SyntheticArch::Gemma3 => Kind::SentencePiece,
        SyntheticArch::Llama | SyntheticArch::Qwen2 => Kind::BytePairs,
    };
    let special = tokenizer::write(&mut writer, kind, spec.vocab);
    add_tensors(&mut writer, spec, &special)?;
    Ok(writer)
}

fn set_sizes(writer: &mut Writer, spec: &SyntheticSpec) {
    let arch = spec.arch.name();
    writer.set("general.architecture", Value::Str(arch.to_owned()));
    writer.set("general.type", Value::Str("model".to_owned()));
    let name = format!("synthetic {arch} {}x{}", spec.layers, spec.hidden);
    writer.set("general.name", Value::Str(name));
    let sizes = [
        ("block_count", spec.layers),
        ("context_length", spec.context),
        ("embedding_length", spec.hidden),
        ("feed_forward_length", spec.feed_forward()),
        ("attention.head_count", spec.heads()),
        ("attention.head_count_kv", spec.kv_heads()),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
    ];
    for (key, size) in sizes {
        writer.set(format!("{arch}.{key}"), Value::U32(size));
    }
    let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
    writer.set(eps, Value::F32(1e-6));
    writer.set(format!("{arch}.rope.freq_base"), Value::F32(100_000.0));
    if spec.arch == SyntheticArch::Gemma3 {
        let key = format!("{arch}.attention.sliding_window");
        writer.set(key, Value::U32(WINDOW));
    }
}

/// Adds the weights. The rows of `special` tokens are faint, so that an answer seldom ends early.
fn add_tensors(
    writer: &mut Writer,
    spec: &SyntheticSpec,
    special: &[u32],
) -> Result<(), SyntheticError> {
    let mut random = Random::new(spec.seed);
    let table = Rows {
        count: spec.vocab,
        width: spec.hidden,
        faint: special,
    };
    let mut tensors = Tensors {
        writer,
        random: &mut random,
        quantisation: spec.quantisation,
    };
    tensors.table("token_embd.weight", &table)?;
    for layer in 0..spec.layers {
        add_layer(&mut tensors, spec, layer)?;
    }
    tensors.norm("output_norm.weight", spec.hidden);
    if spec.arch == SyntheticArch::Llama {
        tensors.table("output.weight", &table)?;
        tensors.norm("rope_freqs.weight", HEAD_DIM / 2);
    }
    Ok(())
}

fn add_layer(
    tensors: &mut Tensors<'_>,
    spec: &SyntheticSpec,
    layer: u32,
) -> Result<(), SyntheticError> {
    let name = |suffix: &str| format!("blk.{layer}.{suffix}");
    let hidden = spec.hidden;
    let (queries, keys) = (spec.heads() * HEAD_DIM, spec.kv_heads() * HEAD_DIM);
    tensors.norm(&name("attn_norm.weight"), hidden);
    tensors.matrix(&name("attn_q.weight"), hidden, queries)?;
    tensors.matrix(&name("attn_k.weight"), hidden, keys)?;
    tensors.matrix(&name("attn_v.weight"), hidden, keys)?;
    tensors.matrix(&name("attn_output.weight"), queries, hidden)?;
    tensors.norm(&name("ffn_norm.weight"), hidden);
    tensors.matrix(&name("ffn_gate.weight"), hidden, spec.feed_forward())?;
    tensors.matrix(&name("ffn_up.weight"), hidden, spec.feed_forward())?;
    tensors.matrix(&name("ffn_down.weight"), spec.feed_forward(), hidden)?;
    match spec.arch {
        SyntheticArch::Llama => {}
        SyntheticArch::Qwen2 => {
            tensors.norm(&name("attn_q.bias"), queries);
            tensors.norm(&name("attn_k.bias"), keys);
            tensors.norm(&name("attn_v.bias"), keys);
        }
        SyntheticArch::Gemma3 => {
            tensors.norm(&name("attn_q_norm.weight"), HEAD_DIM);
            tensors.norm(&name("attn_k_norm.weight"), HEAD_DIM);
            tensors.norm(&name("post_attention_norm.weight"), hidden);
            tensors.norm(&name("post_ffw_norm.weight"), hidden);
        }
    }
    Ok(())
}

/// Adds random tensors to a file.
struct Tensors<'a> {
    writer: &'a mut Writer,
    random: &'a mut Random,
    quantisation: TensorType,
}

impl Tensors<'_> {
    /// Values around one: norm weights, biases, divisors of frequencies.
    fn norm(&mut self, name: &str, len: u32) {
        let bytes = weights::around_one(self.random, len);
        self.writer
            .tensor(name, &[len.into()], TensorType::F32, bytes);
    }

    fn matrix(&mut self, name: &str, columns: u32, rows: u32) -> Result<(), SyntheticError> {
        let rows = Rows {
            count: rows,
            width: columns,
            faint: &[],
        };
        self.table(name, &rows)
    }

    fn table(&mut self, name: &str, rows: &Rows<'_>) -> Result<(), SyntheticError> {
        let values = rows.values(self.random);
        let bytes = weights::quantise(&values, self.quantisation)?;
        let dims = [rows.width.into(), rows.count.into()];
        self.writer.tensor(name, &dims, self.quantisation, bytes);
        Ok(())
    }
}
