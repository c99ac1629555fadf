//! `gemma2`: each of the two parts of a layer has a norm before and one after it, the embedding is
//! scaled by the root of its width, scores and logits are squeezed, and every other layer sees
//! only a sliding window.

use super::{
    Architecture, Hyper, TensorSpec, attention_tensors, feed_forward_tensors, plain_layer,
    post_norm_tensors,
};
use crate::cpu::{Gate, LayerSpec, Pairing, RopeSpec};
use crate::shape::{Keys, ModelError, ModelShape};

/// What files that do not say mean, as in the published models.
const WINDOW: u32 = 4096;
const SCORE_CAP: f32 = 50.0;
const LOGIT_CAP: f32 = 30.0;
/// Every second layer sees the whole sequence.
const PATTERN: u32 = 2;
/// The one size (27B) whose attention is scaled by the hidden width per head.
const LAYERS_OF_27B: u32 = 46;

pub(super) struct Gemma2;

impl Architecture for Gemma2 {
    fn name(&self) -> &'static str {
        "gemma2"
    }

    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError> {
        let window = keys.u32_or("attention.sliding_window", WINDOW)?.max(1);
        let rope = RopeSpec::read(keys, shape, Pairing::Halves)?;
        Ok(Hyper {
            embedding_scale: (shape.hidden as f32).sqrt(),
            score_softcap: Some(keys.positive_or("attn_logit_softcapping", SCORE_CAP)?),
            logit_softcap: Some(keys.positive_or("final_logit_softcapping", LOGIT_CAP)?),
            window: Some(window as usize),
            window_pattern: PATTERN,
            ..Hyper::plain(keys, rope)?
        })
    }

    fn layer_tensors(&self, shape: &ModelShape, hyper: &Hyper) -> Vec<TensorSpec> {
        let mut tensors = attention_tensors(shape);
        tensors.extend(post_norm_tensors(shape));
        tensors.extend(feed_forward_tensors(shape, hyper));
        tensors
    }

    fn layer(&self, layer: u32, shape: &ModelShape, hyper: &Hyper) -> LayerSpec {
        let mut spec = plain_layer(shape, hyper);
        spec.gate = Gate::GeluTanh;
        if !hyper.is_global(layer) {
            spec.window = hyper.window;
        }
        if shape.layers == LAYERS_OF_27B {
            spec.score_scale = 1.0 / (shape.hidden as f32 / shape.heads as f32).sqrt();
        }
        spec
    }
}
