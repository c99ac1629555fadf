//! `qwen3`: the layers of `llama` with a norm on every query and key head before the rotary
//! embedding, which turns the two halves of a head.

use super::{
    Architecture, Hyper, TensorSpec, attention_tensors, feed_forward_tensors, head_norm_tensors,
    plain_layer, refuse_experts,
};
use crate::cpu::{LayerSpec, Pairing, RopeSpec};
use crate::shape::{Keys, ModelError, ModelShape};

pub(super) struct Qwen3;

impl Architecture for Qwen3 {
    fn name(&self) -> &'static str {
        "qwen3"
    }

    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError> {
        refuse_experts(keys)?;
        Hyper::plain(keys, RopeSpec::read(keys, shape, Pairing::Halves)?)
    }

    fn layer_tensors(&self, shape: &ModelShape, hyper: &Hyper) -> Vec<TensorSpec> {
        let mut tensors = attention_tensors(shape);
        tensors.extend(head_norm_tensors(shape));
        tensors.extend(feed_forward_tensors(shape, hyper));
        tensors
    }

    fn layer(&self, _: u32, shape: &ModelShape, hyper: &Hyper) -> LayerSpec {
        plain_layer(shape, hyper)
    }
}
