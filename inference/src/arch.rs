//! Model architectures: what tensors each has and how a layer computes.
//!
//! A new architecture is a new file with one [`Architecture`] and one line in [`ARCHITECTURES`].
//! A file that names an architecture which is not listed is refused; none quietly becomes
//! another.

mod gemma3;
mod llama;
mod qwen2;

use crate::candle::{Layer, LayerWeights, RopeSpec};
use crate::gguf::Gguf;
use crate::shape::{Keys, ModelError, ModelShape};
use crate::stage::LoadError;

static ARCHITECTURES: [&dyn Architecture; 3] = [&llama::Llama, &qwen2::Qwen2, &gemma3::Gemma3];

/// A family of models.
pub(crate) trait Architecture: Sync {
    /// The value of `general.architecture`.
    fn name(&self) -> &'static str;

    /// Numbers of the forward pass that are not sizes.
    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError>;

    /// The tensors of a layer; a layer that has others is refused.
    fn layer_tensors(&self, shape: &ModelShape) -> Vec<TensorSpec>;

    /// Loads one layer.
    fn load_layer(
        &self,
        weights: &LayerWeights<'_>,
        shape: &ModelShape,
        hyper: &Hyper,
    ) -> Result<Box<dyn Layer>, LoadError>;
}

/// Numbers of the forward pass that are not sizes.
#[derive(Debug, Clone)]
pub(crate) struct Hyper {
    /// Added under the root of every norm.
    pub rms_eps: f32,
    /// The token embedding is multiplied by this.
    pub embedding_scale: f32,
    /// Logits are squeezed into ± this.
    pub logit_softcap: Option<f32>,
    /// The kinds of rotary embedding that the layers choose from.
    pub ropes: Vec<RopeSpec>,
    /// How many tokens back the layers with a sliding window see, the token itself included.
    pub window: Option<usize>,
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

/// The tensors that every architecture here has.
fn common_tensors(shape: &ModelShape) -> Vec<TensorSpec> {
    let hidden = shape.hidden;
    let (queries, keys) = (shape.query_width(), shape.kv_width());
    vec![
        TensorSpec::vector("attn_norm.weight", hidden),
        TensorSpec::matrix("attn_q.weight", hidden, queries),
        TensorSpec::matrix("attn_k.weight", hidden, keys),
        TensorSpec::matrix("attn_v.weight", hidden, keys),
        TensorSpec::matrix("attn_output.weight", queries, hidden),
        TensorSpec::vector("ffn_norm.weight", hidden),
        TensorSpec::matrix("ffn_gate.weight", hidden, shape.feed_forward),
        TensorSpec::matrix("ffn_up.weight", hidden, shape.feed_forward),
        TensorSpec::matrix("ffn_down.weight", shape.feed_forward, hidden),
    ]
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
