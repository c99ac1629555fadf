//! `llama`: Llama, SmolLM and the many that share their layers.
//!
//! `x += attention(norm(x)); x += down(silu(gate(norm(x))) * up(norm(x)))`
//!
//! Converters permute the query and key rows of this architecture so that the rotary embedding
//! turns neighbouring values instead of the two halves of a head.

use super::{Architecture, Hyper, TensorSpec, common_tensors, refuse_experts};
use crate::candle::{
    Attention, FeedForward, Gate, Layer, LayerKv, LayerWeights, Norm, Pairing, Pass, RopeSpec, add,
};
use crate::shape::{Keys, ModelError, ModelShape};
use crate::stage::LoadError;

pub(super) struct Llama;

impl Architecture for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError> {
        refuse_experts(keys)?;
        Ok(Hyper {
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            embedding_scale: 1.0,
            logit_softcap: None,
            ropes: vec![RopeSpec::read(keys, shape, Pairing::Neighbours)?],
            window: None,
        })
    }

    fn layer_tensors(&self, shape: &ModelShape) -> Vec<TensorSpec> {
        let mut tensors = common_tensors(shape);
        let (queries, keys) = (shape.query_width(), shape.kv_width());
        tensors.extend([
            TensorSpec::vector("attn_q.bias", queries).optional(),
            TensorSpec::vector("attn_k.bias", keys).optional(),
            TensorSpec::vector("attn_v.bias", keys).optional(),
        ]);
        tensors
    }

    fn load_layer(
        &self,
        weights: &LayerWeights<'_>,
        shape: &ModelShape,
        hyper: &Hyper,
    ) -> Result<Box<dyn Layer>, LoadError> {
        Ok(Box::new(PreNormLayer::load(weights, shape, hyper)?))
    }
}

/// A layer with one norm before each of its two parts; `qwen2` has the same.
pub(super) struct PreNormLayer {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
}

impl PreNormLayer {
    pub(super) fn load(
        weights: &LayerWeights<'_>,
        shape: &ModelShape,
        hyper: &Hyper,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            attention_norm: Norm::load(weights, "attn_norm.weight", hyper.rms_eps)?,
            attention: Attention::load(weights, shape)?,
            feed_forward_norm: Norm::load(weights, "ffn_norm.weight", hyper.rms_eps)?,
            feed_forward: FeedForward::load(weights, Gate::Silu)?,
        })
    }
}

impl Layer for PreNormLayer {
    fn forward(&self, pass: &Pass<'_>, x: &mut [f32], kv: &mut LayerKv) {
        let normed = self.attention_norm.apply(x);
        add(x, &self.attention.forward(pass, &normed, kv));
        let normed = self.feed_forward_norm.apply(x);
        add(x, &self.feed_forward.forward(&normed));
    }
}
