//! What a model is made of, read from its header alone: sizes, where its bytes lie, what it costs.
//!
//! Everything that can be refused without the weights is refused here: an unknown architecture,
//! a quantisation that the engine cannot compute with, a tensor that is missing, has the wrong
//! sizes or is not part of the architecture. So a coordinator learns it before anyone fetches.

mod error;
mod keys;
mod ranges;

pub use error::ModelError;
pub(crate) use keys::Keys;

use crate::arch::{self, Architecture, Hyper, TensorSpec};
use crate::gguf::{Gguf, TensorInfo};
use crate::kv_format::KvFormat;
use crate::layers::LayerRange;
use crate::quant;
use serde::Serialize;

/// The token embedding; also the output head of models that tie the two.
pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// The weights of the norm before the output head.
pub(crate) const OUTPUT_NORM: &str = "output_norm.weight";
/// The output head of models that do not tie it to the embedding.
pub(crate) const OUTPUT: &str = "output.weight";
/// Divisors of the rope frequencies, one per pair of dimensions; few models have them.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";
/// The same for models with two sets: for usual contexts, and for long ones.
pub(crate) const ROPE_SHORT: &str = "rope_factors_short.weight";
pub(crate) const ROPE_LONG: &str = "rope_factors_long.weight";
/// All of them.
const ROPES: [&str; 3] = [ROPE_FREQS, ROPE_SHORT, ROPE_LONG];

/// Letters of a model's name that are kept.
const MAX_NAME: usize = 128;

/// Sizes and costs of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelShape {
    /// `general.architecture`, one of those the engine knows.
    pub architecture: String,
    /// `general.name`, when the file has one.
    pub name: Option<String>,
    /// Number of layers.
    pub layers: u32,
    /// Width of the activations between layers.
    pub hidden: u32,
    /// Query heads per layer.
    pub heads: u32,
    /// Key and value heads per layer.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Width of the feed-forward part.
    pub feed_forward: u32,
    /// Number of tokens.
    pub vocab: u32,
    /// Longest sequence that the model was trained for.
    pub context: u32,
    /// Memory that each layer's weights take once loaded.
    pub layer_bytes: Vec<u64>,
    /// Memory that the token embedding takes.
    pub embedding_bytes: u64,
    /// Memory that the output norm and head take on a stage that does not hold the embedding.
    pub head_bytes: u64,
    /// Whether the output head is the token embedding.
    pub tied_embeddings: bool,
    /// What people call the quantisation, e.g. `Q4_K_M`.
    pub quantisation: String,
}

impl ModelShape {
    /// Reads the shape of a model and checks that the engine can run it.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let architecture = arch::of(gguf)?;
        let mut shape = Self::read_sizes(gguf, architecture)?;
        shape.check_sizes()?;
        let hyper = arch::hyper(gguf, &shape)?;
        shape.check_tensors(gguf, architecture, &hyper)?;
        shape.measure(gguf);
        Ok(shape)
    }

    fn read_sizes(gguf: &Gguf, architecture: &dyn Architecture) -> Result<Self, ModelError> {
        let keys = Keys::new(gguf, architecture.name());
        let hidden = keys.u32("embedding_length")?;
        let heads = keys.u32("attention.head_count")?;
        let kv_heads = keys.u32_or("attention.head_count_kv", heads)?;
        let head_dim = match keys.optional_u32("attention.key_length")? {
            Some(length) => length,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        if keys.u32_or("attention.value_length", head_dim)? != head_dim {
            return Err(ModelError::UnsupportedFeature {
                feature: "keys and values of different lengths".into(),
            });
        }
        let embedding = required(gguf, EMBEDDING)?;
        let vocab = embedding.dims.get(1).copied().unwrap_or(0);
        Ok(Self {
            architecture: architecture.name().to_owned(),
            name: gguf.metadata.str("general.name").map(printable),
            layers: keys.u32("block_count")?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            feed_forward: keys.u32("feed_forward_length")?,
            vocab: u32::try_from(vocab).unwrap_or(u32::MAX),
            context: keys.u32("context_length")?,
            layer_bytes: Vec::new(),
            embedding_bytes: 0,
            head_bytes: 0,
            tied_embeddings: gguf.tensor(OUTPUT).is_none(),
            quantisation: quant::name_of(gguf),
        })
    }

    /// Refuses sizes that no honest model has, so that later arithmetic cannot overflow.
    fn check_sizes(&self) -> Result<(), ModelError> {
        let limits = [
            ("block_count", self.layers, 1 << 10),
            ("embedding_length", self.hidden, 1 << 16),
            ("attention.head_count", self.heads, 1 << 10),
            ("attention.head_count_kv", self.kv_heads, 1 << 10),
            ("attention.key_length", self.head_dim, 1 << 10),
            ("feed_forward_length", self.feed_forward, 1 << 18),
            ("vocab_size", self.vocab, 1 << 21),
            ("context_length", self.context, 1 << 24),
        ];
        for (key, found, limit) in limits {
            if found == 0 || found > limit {
                return Err(ModelError::SizeOutOfRange { key, found, limit });
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) || !self.head_dim.is_multiple_of(2) {
            return Err(ModelError::UnsupportedFeature {
                feature: format!(
                    "{} heads of width {} over {} key-value heads",
                    self.heads, self.head_dim, self.kv_heads
                ),
            });
        }
        Ok(())
    }

    fn check_tensors(
        &self,
        gguf: &Gguf,
        arch: &dyn Architecture,
        hyper: &Hyper,
    ) -> Result<(), ModelError> {
        let hidden = u64::from(self.hidden);
        let table = [hidden, u64::from(self.vocab)];
        check(gguf, EMBEDDING, &table, true)?;
        check(gguf, OUTPUT, &table, false)?;
        check(gguf, OUTPUT_NORM, &[hidden], true)?;
        for rope in hyper.all_ropes() {
            check(gguf, rope.divisors, &[rope.turned as u64 / 2], false)?;
        }
        let specs = arch.layer_tensors(self, hyper);
        for layer in 0..self.layers {
            for spec in &specs {
                let name = spec.full_name(layer);
                check(gguf, &name, &spec.dims, spec.required)?;
            }
        }
        self.refuse_strangers(gguf, &specs)
    }

    /// A tensor that the architecture does not use means that this is not quite that
    /// architecture: computing without it would give wrong answers.
    fn refuse_strangers(&self, gguf: &Gguf, specs: &[TensorSpec]) -> Result<(), ModelError> {
        let mut shared = vec![EMBEDDING, OUTPUT, OUTPUT_NORM];
        shared.extend(ROPES);
        for tensor in &gguf.tensors {
            let known = match ranges::layer_of(&tensor.name) {
                Some((layer, suffix)) => {
                    layer < self.layers && specs.iter().any(|spec| spec.name == suffix)
                }
                None => shared.contains(&tensor.name.as_str()),
            };
            if !known {
                return Err(ModelError::UnknownTensor {
                    tensor: tensor.name.clone(),
                    architecture: self.architecture.clone(),
                });
            }
        }
        Ok(())
    }

    /// Fills in what the weights take in memory.
    fn measure(&mut self, gguf: &Gguf) {
        self.layer_bytes = vec![0; self.layers as usize];
        for tensor in &gguf.tensors {
            let Some((layer, _)) = ranges::layer_of(&tensor.name) else {
                continue;
            };
            if let Some(sum) = self.layer_bytes.get_mut(layer as usize) {
                *sum = sum.saturating_add(quant::loaded_bytes(tensor));
            }
        }
        let loaded = |name| gguf.tensor(name).map_or(0, quant::loaded_bytes);
        self.embedding_bytes = loaded(EMBEDDING);
        let head = if self.tied_embeddings {
            EMBEDDING
        } else {
            OUTPUT
        };
        self.head_bytes = loaded(head).saturating_add(loaded(OUTPUT_NORM));
    }

    /// Width of all query heads together.
    pub(crate) fn query_width(&self) -> u32 {
        self.heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    pub(crate) fn kv_width(&self) -> u32 {
        self.kv_heads * self.head_dim
    }

    /// Memory that one token takes in the KV cache of one layer.
    pub fn kv_bytes_per_token_layer(&self, kv: KvFormat) -> u64 {
        kv.token_bytes(self.kv_heads as usize, self.head_dim as usize) as u64
    }

    /// Memory that the weights of a stage take once loaded. The bytes to fetch are
    /// [`Self::byte_ranges`]; the two differ where the engine widens a quantisation to compute
    /// faster (see `quant`).
    pub fn stage_bytes(&self, range: &LayerRange) -> u64 {
        let mut sum = 0u64;
        for (layer, bytes) in self.layer_bytes.iter().enumerate() {
            if range.contains(layer as u32) {
                sum = sum.saturating_add(*bytes);
            }
        }
        let (holds_embedding, holds_head) = (range.is_first(), range.is_last(self.layers));
        let shares_table = holds_embedding && holds_head && self.tied_embeddings;
        if holds_embedding && !shares_table {
            sum = sum.saturating_add(self.embedding_bytes);
        }
        if holds_head {
            sum = sum.saturating_add(self.head_bytes);
        }
        sum
    }

    /// Bytes of the file that a stage needs: the header and the tensors of its layers, ordered
    /// and merged.
    pub fn byte_ranges(&self, gguf: &Gguf, range: &LayerRange) -> Vec<std::ops::Range<u64>> {
        ranges::of_stage(self, gguf, range)
    }
}

fn required<'a>(gguf: &'a Gguf, name: &str) -> Result<&'a TensorInfo, ModelError> {
    gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor {
        tensor: name.to_owned(),
    })
}

/// A name as it may be shown: strangers write these.
fn printable(name: &str) -> String {
    let shown = name.chars().filter(|letter| !letter.is_control());
    shown.take(MAX_NAME).collect()
}

/// Checks one tensor against what the architecture expects of it.
fn check(gguf: &Gguf, name: &str, dims: &[u64], is_required: bool) -> Result<(), ModelError> {
    let tensor = match gguf.tensor(name) {
        Some(tensor) => tensor,
        None if is_required => return required(gguf, name).map(|_| ()),
        None => return Ok(()),
    };
    if tensor.dims != dims {
        return Err(ModelError::WrongSizes {
            tensor: name.to_owned(),
            found: tensor.dims.clone(),
            expected: dims.to_vec(),
        });
    }
    quant::check(tensor)
}
