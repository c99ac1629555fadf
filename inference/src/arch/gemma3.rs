//! `gemma3`: the text part of Gemma 3.
//!
//! Each of the two parts of a layer has a norm before and one after it, queries and keys are
//! normed per head, the embedding is scaled by the root of its width, and five of six layers see
//! only a sliding window, with a rotary embedding of another base.

use super::{Architecture, Hyper, TensorSpec, common_tensors};
use crate::candle::{
    Attention, FeedForward, Gate, Layer, LayerKv, LayerWeights, Norm, Pairing, Pass, RopeSpec, add,
};
use crate::shape::{Keys, ModelError, ModelShape};
use crate::stage::LoadError;

/// Every sixth layer sees the whole sequence.
const PATTERN: u32 = 6;
/// Base of the rotary embedding in the layers with a window; no file states it.
const LOCAL_ROPE_BASE: f32 = 10_000.0;
/// Indices into [`Hyper::ropes`].
const GLOBAL_ROPE: usize = 0;
const LOCAL_ROPE: usize = 1;
/// The one size (27B) whose attention is scaled by the hidden width per head.
const LAYERS_OF_27B: u32 = 62;

pub(super) struct Gemma3;

impl Architecture for Gemma3 {
    fn name(&self) -> &'static str {
        "gemma3"
    }

    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError> {
        let global = RopeSpec::read(keys, shape, Pairing::Halves)?;
        let local = RopeSpec {
            base: LOCAL_ROPE_BASE,
            divisor: 1.0,
            ..global.clone()
        };
        let window = keys.u32("attention.sliding_window")?.max(1);
        let softcap = keys.positive_or("final_logit_softcapping", f32::INFINITY)?;
        Ok(Hyper {
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            embedding_scale: (shape.hidden as f32).sqrt(),
            logit_softcap: Some(softcap).filter(|cap| cap.is_finite()),
            ropes: vec![global, local],
            window: Some(window as usize),
        })
    }

    fn layer_tensors(&self, shape: &ModelShape) -> Vec<TensorSpec> {
        let mut tensors = common_tensors(shape);
        tensors.extend([
            TensorSpec::vector("attn_q_norm.weight", shape.head_dim),
            TensorSpec::vector("attn_k_norm.weight", shape.head_dim),
            TensorSpec::vector("post_attention_norm.weight", shape.hidden),
            TensorSpec::vector("post_ffw_norm.weight", shape.hidden),
        ]);
        tensors
    }

    fn load_layer(
        &self,
        weights: &LayerWeights<'_>,
        shape: &ModelShape,
        hyper: &Hyper,
    ) -> Result<Box<dyn Layer>, LoadError> {
        let eps = hyper.rms_eps;
        let is_global = (weights.layer() + 1).is_multiple_of(PATTERN);
        let mut attention = Attention::load(weights, shape)?;
        attention.query_norm = Some(Norm::load(weights, "attn_q_norm.weight", eps)?);
        attention.key_norm = Some(Norm::load(weights, "attn_k_norm.weight", eps)?);
        if is_global {
            attention.rope = GLOBAL_ROPE;
        } else {
            attention.rope = LOCAL_ROPE;
            attention.window = hyper.window;
        }
        if shape.layers == LAYERS_OF_27B {
            attention.scale = 1.0 / (shape.hidden as f32 / shape.heads as f32).sqrt();
        }
        Ok(Box::new(Gemma3Layer {
            attention_norm: Norm::load(weights, "attn_norm.weight", eps)?,
            attention,
            post_attention_norm: Norm::load(weights, "post_attention_norm.weight", eps)?,
            feed_forward_norm: Norm::load(weights, "ffn_norm.weight", eps)?,
            feed_forward: FeedForward::load(weights, Gate::GeluTanh)?,
            post_feed_forward_norm: Norm::load(weights, "post_ffw_norm.weight", eps)?,
        }))
    }
}

struct Gemma3Layer {
    attention_norm: Norm,
    attention: Attention,
    post_attention_norm: Norm,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
    post_feed_forward_norm: Norm,
}

impl Layer for Gemma3Layer {
    fn forward(&self, pass: &Pass<'_>, x: &mut [f32], kv: &mut LayerKv) {
        let normed = self.attention_norm.apply(x);
        let attended = self.attention.forward(pass, &normed, kv);
        add(x, &self.post_attention_norm.apply(&attended));
        let normed = self.feed_forward_norm.apply(x);
        let fed = self.feed_forward.forward(&normed);
        add(x, &self.post_feed_forward_norm.apply(&fed));
    }
}
