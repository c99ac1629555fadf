//! One transformer layer: attention and feed-forward part, each with a norm before it and, in
//! some architectures, one behind it.

mod attending;
mod experts;
mod run;

pub(crate) use run::{Item, Step, Workspace, prepare};

use super::activations::Forms;
use super::attention::AttentionSpec;
use super::math::Gate;
use super::matrix::{Matrix, Part};
use super::norm::Norm;
use super::weights::LayerWeights;
use crate::shape::ModelShape;
use crate::stage::LoadError;
use experts::Experts;

/// How the layers of an architecture compute, and where one differs from the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerSpec {
    /// Which of the model's rotary embeddings turns queries and keys.
    pub rope: usize,
    /// How many tokens back a token sees, itself included.
    pub window: Option<usize>,
    /// Scores are multiplied by this.
    pub score_scale: f32,
    /// Scores are squeezed into ± this.
    pub score_cap: Option<f32>,
    /// The function of the feed-forward part.
    pub gate: Gate,
    /// Added under the root of every norm.
    pub rms_eps: f32,
    /// The mixture of experts, where the feed-forward part is one.
    pub experts: Option<ExpertsSpec>,
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExpertsSpec {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that each token goes through.
    pub used: usize,
    /// Width of an expert.
    pub width: u32,
    /// Width of the expert that every token goes through, where there is one.
    pub shared: Option<u32>,
    /// Whether the weights of the used experts are scaled to a sum of one.
    pub renormalise: bool,
}

/// A matrix with an optional bias.
struct Linear {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    fn load(weights: &LayerWeights<'_, '_>, name: &str) -> Result<Self, LoadError> {
        Ok(Self {
            matrix: weights.matrix(&format!("{name}.weight"))?,
            bias: weights.optional_vector(&format!("{name}.bias"))?,
        })
    }

    fn part(&self, column: usize) -> Part<'_> {
        Part {
            matrix: &self.matrix,
            bias: self.bias.as_deref(),
            column,
        }
    }
}

/// `down(gate(x · gate matrix) * (x · up matrix))`
struct FeedForward {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

enum Mixing {
    Dense(Box<FeedForward>),
    Experts(Box<Experts>),
}

/// A loaded layer.
pub(crate) struct Layer {
    spec: LayerSpec,
    attention: AttentionSpec,
    attention_norm: Norm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    output: Linear,
    post_attention_norm: Option<Norm>,
    feed_forward_norm: Norm,
    mixing: Mixing,
    post_feed_forward_norm: Option<Norm>,
}

impl Layer {
    /// Loads a layer; what it has beyond the plain ones shows in its tensors, which the
    /// architecture has checked.
    pub(crate) fn load(
        weights: &LayerWeights<'_, '_>,
        shape: &ModelShape,
        spec: LayerSpec,
    ) -> Result<Self, LoadError> {
        let eps = spec.rms_eps;
        let norm = |name: &str| weights.vector(name).map(|vector| Norm::new(vector, eps));
        let optional_norm = |name: &str| {
            let vector = weights.optional_vector(name)?;
            Ok::<_, LoadError>(vector.map(|vector| Norm::new(vector, eps)))
        };
        let [queries, keys, values] = load_projections(weights, shape)?;
        let mixing = match spec.experts {
            None => {
                let dense = FeedForward::load(weights, shape.feed_forward as usize)?;
                Mixing::Dense(Box::new(dense))
            }
            Some(experts) => Mixing::Experts(Box::new(Experts::load(weights, experts)?)),
        };
        Ok(Self {
            spec,
            attention: AttentionSpec {
                heads: shape.heads as usize,
                kv_heads: shape.kv_heads as usize,
                head_dim: shape.head_dim as usize,
                scale: spec.score_scale,
                cap: spec.score_cap,
                window: spec.window,
            },
            attention_norm: norm("attn_norm.weight")?,
            queries,
            keys,
            values,
            query_norm: optional_norm("attn_q_norm.weight")?,
            key_norm: optional_norm("attn_k_norm.weight")?,
            output: Linear::load(weights, "attn_output")?,
            post_attention_norm: optional_norm("post_attention_norm.weight")?,
            feed_forward_norm: norm("ffn_norm.weight")?,
            mixing,
            post_feed_forward_norm: optional_norm("post_ffw_norm.weight")?,
        })
    }

    /// The window of its attention.
    pub(crate) fn window(&self) -> Option<usize> {
        self.spec.window
    }

    fn input_forms(&self) -> Forms {
        let inputs = [&self.queries, &self.keys, &self.values];
        Forms::of(inputs.map(|linear| linear.matrix.form()))
    }
}

/// Queries, keys and values: three matrices, or the rows of one.
fn load_projections(
    weights: &LayerWeights<'_, '_>,
    shape: &ModelShape,
) -> Result<[Linear; 3], LoadError> {
    const FUSED: &str = "attn_qkv.weight";
    if !weights.has(FUSED) {
        return Ok([
            Linear::load(weights, "attn_q")?,
            Linear::load(weights, "attn_k")?,
            Linear::load(weights, "attn_v")?,
        ]);
    }
    let (queries, keys) = (shape.query_width() as usize, shape.kv_width() as usize);
    let linear = |rows| {
        let matrix = weights.rows(FUSED, rows)?;
        Ok::<_, LoadError>(Linear { matrix, bias: None })
    };
    Ok([
        linear(0..queries)?,
        linear(queries..queries + keys)?,
        linear(queries + keys..queries + 2 * keys)?,
    ])
}

impl FeedForward {
    /// Three matrices, or two where gate and up are the rows of one.
    fn load(weights: &LayerWeights<'_, '_>, width: usize) -> Result<Self, LoadError> {
        let (gate, up) = if weights.has("ffn_gate.weight") {
            (
                weights.matrix("ffn_gate.weight")?,
                weights.matrix("ffn_up.weight")?,
            )
        } else {
            (
                weights.rows("ffn_up.weight", 0..width)?,
                weights.rows("ffn_up.weight", width..2 * width)?,
            )
        };
        Ok(Self {
            gate,
            up,
            down: weights.matrix("ffn_down.weight")?,
        })
    }

    fn input_forms(&self) -> Forms {
        Forms::of([self.gate.form(), self.up.form()])
    }
}
