//! Model architectures: what tensors each has and how a layer computes.
//!
//! A new architecture is a new file with one [`Architecture`] and one line in [`ARCHITECTURES`].
//! A file that names an architecture which is not listed is refused; none quietly becomes
//! another.

mod gemma2;
mod gemma3;
mod llama;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen3;

use crate::cpu::{ExpertsSpec, Gate, LayerSpec, RopeSpec};
use crate::gguf::Gguf;
use crate::shape::{Keys, ModelError, ModelShape};

static ARCHITECTURES: [&dyn Architecture; 7] = [
    &llama::Llama,
    &qwen2::Qwen2,
    &qwen2moe::Qwen2Moe,
    &qwen3::Qwen3,
    &gemma2::Gemma2,
    &gemma3::Gemma3,
    &phi3::Phi3,
];

/// A family of models.
pub(crate) trait Architecture: Sync {
    /// The value of `general.architecture`.
    fn name(&self) -> &'static str;

    /// Numbers of the forward pass that are not sizes.
    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError>;

    /// The tensors of a layer; a layer that has others is refused.
    fn layer_tensors(&self, shape: &ModelShape, hyper: &Hyper) -> Vec<TensorSpec>;

    /// How layer `layer` computes.
    fn layer(&self, layer: u32, shape: &ModelShape, hyper: &Hyper) -> LayerSpec;
}

/// Numbers of the forward pass that are not sizes.
#[derive(Debug, Clone)]
pub(crate) struct Hyper {
    /// Added under the root of every norm.
    pub rms_eps: f32,
    /// The token embedding is multiplied by this.
    pub embedding_scale: f32,
    /// Scores of the attention are squeezed into ± this.
    pub score_softcap: Option<f32>,
    /// Logits are squeezed into ± this.
    pub logit_softcap: Option<f32>,
    /// The kinds of rotary embedding that the layers choose from.
    pub ropes: Vec<RopeSpec>,
    /// What takes their place in long sequences.
    pub long: Option<LongRopes>,
    /// How many tokens back the layers with a sliding window see, the token itself included.
    pub window: Option<usize>,
    /// Of as many layers, the last sees the whole sequence.
    pub window_pattern: u32,
    /// The mixture of experts.
    pub experts: Option<ExpertsSpec>,
}

/// Rotary embeddings of long sequences.
#[derive(Debug, Clone)]
pub(crate) struct LongRopes {
    /// Sequences that may grow beyond this are long.
    pub threshold: usize,
    /// As many as there are usual ones.
    pub ropes: Vec<RopeSpec>,
}

impl Hyper {
    /// What most architectures have; they set what is different in theirs.
    fn plain(keys: &Keys<'_>, rope: RopeSpec) -> Result<Self, ModelError> {
        Ok(Self {
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            embedding_scale: 1.0,
            score_softcap: None,
            logit_softcap: None,
            ropes: vec![rope],
            long: None,
            window: None,
            window_pattern: 1,
            experts: None,
        })
    }

    /// Every rotary embedding.
    pub(crate) fn all_ropes(&self) -> impl Iterator<Item = &RopeSpec> {
        let long = self.long.iter().flat_map(|long| &long.ropes);
        self.ropes.iter().chain(long)
    }

    /// Whether a layer sees the whole sequence.
    fn is_global(&self, layer: u32) -> bool {
        (layer + 1).is_multiple_of(self.window_pattern.max(1))
    }
}

/// A layer as most architectures have it.
fn plain_layer(shape: &ModelShape, hyper: &Hyper) -> LayerSpec {
    LayerSpec {
        rope: 0,
        window: None,
        score_scale: 1.0 / (shape.head_dim as f32).sqrt(),
        score_cap: hyper.score_softcap,
        gate: Gate::Silu,
        rms_eps: hyper.rms_eps,
        experts: hyper.experts,
    }
}

/// A tensor that a layer has.
pub(crate) struct TensorSpec {
    /// Name after `blk.N.`.
    pub name: &'static str,
    /// Sizes in the order of the file.
    pub dims: Vec<u64>,
    /// Whether a layer without it is broken.
    pub required: bool,
}

impl TensorSpec {
    /// A weight matrix of `columns` inputs and `rows` outputs.
    fn matrix(name: &'static str, columns: u32, rows: u32) -> Self {
        Self {
            name,
            dims: vec![columns.into(), rows.into()],
            required: true,
        }
    }

    /// A norm's weights or a bias.
    fn vector(name: &'static str, len: u32) -> Self {
        Self {
            name,
            dims: vec![len.into()],
            required: true,
        }
    }

    /// The weight matrices of `count` experts.
    fn matrices(name: &'static str, columns: u32, rows: u32, count: usize) -> Self {
        Self {
            name,
            dims: vec![columns.into(), rows.into(), count as u64],
            required: true,
        }
    }

    /// The same, but a layer may lack it.
    fn optional(self) -> Self {
        Self {
            required: false,
            ..self
        }
    }

    /// Name in the file for one layer.
    pub(crate) fn full_name(&self, layer: u32) -> String {
        format!("blk.{layer}.{}", self.name)
    }
}

/// Norms and attention with separate queries, keys and values.
fn attention_tensors(shape: &ModelShape) -> Vec<TensorSpec> {
    let hidden = shape.hidden;
    let (queries, keys) = (shape.query_width(), shape.kv_width());
    vec![
        TensorSpec::vector("attn_norm.weight", hidden),
        TensorSpec::matrix("attn_q.weight", hidden, queries),
        TensorSpec::matrix("attn_k.weight", hidden, keys),
        TensorSpec::matrix("attn_v.weight", hidden, keys),
        TensorSpec::matrix("attn_output.weight", queries, hidden),
        TensorSpec::vector("ffn_norm.weight", hidden),
    ]
}

/// The biases of queries, keys and values.
fn bias_tensors(shape: &ModelShape) -> [TensorSpec; 3] {
    [
        TensorSpec::vector("attn_q.bias", shape.query_width()),
        TensorSpec::vector("attn_k.bias", shape.kv_width()),
        TensorSpec::vector("attn_v.bias", shape.kv_width()),
    ]
}

/// The norms of single query and key heads.
fn head_norm_tensors(shape: &ModelShape) -> [TensorSpec; 2] {
    [
        TensorSpec::vector("attn_q_norm.weight", shape.head_dim),
        TensorSpec::vector("attn_k_norm.weight", shape.head_dim),
    ]
}

/// The norms behind the two parts of a layer.
fn post_norm_tensors(shape: &ModelShape) -> [TensorSpec; 2] {
    [
        TensorSpec::vector("post_attention_norm.weight", shape.hidden),
        TensorSpec::vector("post_ffw_norm.weight", shape.hidden),
    ]
}

/// A gated feed-forward part, or a mixture of them.
fn feed_forward_tensors(shape: &ModelShape, hyper: &Hyper) -> Vec<TensorSpec> {
    let hidden = shape.hidden;
    let Some(experts) = hyper.experts else {
        return vec![
            TensorSpec::matrix("ffn_gate.weight", hidden, shape.feed_forward),
            TensorSpec::matrix("ffn_up.weight", hidden, shape.feed_forward),
            TensorSpec::matrix("ffn_down.weight", shape.feed_forward, hidden),
        ];
    };
    let (count, width) = (experts.count, experts.width);
    let mut tensors = vec![
        TensorSpec::matrix("ffn_gate_inp.weight", hidden, count as u32),
        TensorSpec::matrices("ffn_gate_exps.weight", hidden, width, count),
        TensorSpec::matrices("ffn_up_exps.weight", hidden, width, count),
        TensorSpec::matrices("ffn_down_exps.weight", width, hidden, count),
    ];
    if let Some(shared) = experts.shared {
        tensors.extend([
            TensorSpec::vector("ffn_gate_inp_shexp.weight", hidden),
            TensorSpec::matrix("ffn_gate_shexp.weight", hidden, shared),
            TensorSpec::matrix("ffn_up_shexp.weight", hidden, shared),
            TensorSpec::matrix("ffn_down_shexp.weight", shared, hidden),
        ]);
    }
    tensors
}

/// Most experts of a layer, far above what models have.
const MOST_EXPERTS: u32 = 1 << 12;

/// Reads how many experts there are, if any; `width` is theirs where the file does not say.
fn read_experts(
    keys: &Keys<'_>,
    width: u32,
    renormalise: bool,
) -> Result<Option<ExpertsSpec>, ModelError> {
    let count = keys.u32_or("expert_count", 0)?;
    if count == 0 {
        return Ok(None);
    }
    let used = keys.u32("expert_used_count")?;
    if count > MOST_EXPERTS || used == 0 || used > count {
        return Err(ModelError::UnsupportedFeature {
            feature: format!("a mixture of {count} experts of which {used} are used"),
        });
    }
    Ok(Some(ExpertsSpec {
        count: count as usize,
        used: used as usize,
        width: keys.u32_or("expert_feed_forward_length", width)?,
        shared: None,
        renormalise,
    }))
}

/// Refuses what would need another forward pass than the plain one.
fn refuse_experts(keys: &Keys<'_>) -> Result<(), ModelError> {
    match keys.u32_or("expert_count", 0)? {
        0 => Ok(()),
        experts => Err(ModelError::UnsupportedFeature {
            feature: format!("a mixture of {experts} experts"),
        }),
    }
}

/// Names of the architectures that the engine knows.
pub fn known() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|known| known.name()).collect()
}

/// The architecture of a file.
pub(crate) fn of(gguf: &Gguf) -> Result<&'static dyn Architecture, ModelError> {
    let name = gguf.architecture().unwrap_or_default();
    let found = ARCHITECTURES.iter().find(|known| known.name() == name);
    found
        .copied()
        .ok_or_else(|| ModelError::UnknownArchitecture {
            name: name.to_owned(),
            known: known(),
        })
}

/// The numbers of the forward pass of a file.
pub(crate) fn hyper(gguf: &Gguf, shape: &ModelShape) -> Result<Hyper, ModelError> {
    let architecture = of(gguf)?;
    architecture.hyper(&Keys::new(gguf, architecture.name()), shape)
}
