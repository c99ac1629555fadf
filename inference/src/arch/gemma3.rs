//! `gemma3`: the text part of Gemma 3.
//!
//! Each of the two parts of a layer has a norm before and one after it, queries and keys are
//! normed per head, the embedding is scaled by the root of its width, and five of six layers see
//! only a sliding window, with a rotary embedding of another base.

use super::{
    Architecture, Hyper, TensorSpec, attention_tensors, feed_forward_tensors, head_norm_tensors,
    plain_layer, post_norm_tensors,
};
use crate::cpu::{Gate, LayerSpec, Pairing, RopeSpec, Scaling};
use crate::shape::{Keys, ModelError, ModelShape};

/// Every sixth layer sees the whole sequence.
const PATTERN: u32 = 6;
/// Base of the rotary embedding in the layers with a window, where the file does not state it.
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
            base: keys.positive_or("rope.freq_base_swa", LOCAL_ROPE_BASE)?,
            scaling: Scaling::Linear(1.0),
            ..global.clone()
        };
        let window = keys.u32("attention.sliding_window")?.max(1);
        let softcap = keys.positive_or("final_logit_softcapping", f32::INFINITY)?;
        let plain = Hyper::plain(keys, global)?;
        Ok(Hyper {
            embedding_scale: (shape.hidden as f32).sqrt(),
            logit_softcap: Some(softcap).filter(|cap| cap.is_finite()),
            ropes: [plain.ropes, vec![local]].concat(),
            window: Some(window as usize),
            window_pattern: PATTERN,
            ..plain
        })
    }

    fn layer_tensors(&self, shape: &ModelShape, hyper: &Hyper) -> Vec<TensorSpec> {
        let mut tensors = attention_tensors(shape);
        tensors.extend(head_norm_tensors(shape));
        tensors.extend(post_norm_tensors(shape));
        tensors.extend(feed_forward_tensors(shape, hyper));
        tensors
    }

    fn layer(&self, layer: u32, shape: &ModelShape, hyper: &Hyper) -> LayerSpec {
        let mut spec = plain_layer(shape, hyper);
        spec.gate = Gate::GeluTanh;
        spec.rope = GLOBAL_ROPE;
        if !hyper.is_global(layer) {
            spec.rope = LOCAL_ROPE;
            spec.window = hyper.window;
        }
        if shape.layers == LAYERS_OF_27B {
            spec.score_scale = 1.0 / (shape.hidden as f32 / shape.heads as f32).sqrt();
        }
        spec
    }
}
