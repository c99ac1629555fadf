//! `qwen2`: Qwen 2 and 2.5. The layers of `llama` with biases on queries, keys and values, and a
//! rotary embedding that turns the two halves of a head.

use super::{
    Architecture, Hyper, TensorSpec, attention_tensors, bias_tensors, feed_forward_tensors,
    plain_layer, refuse_experts,
};
use crate::cpu::{LayerSpec, Pairing, RopeSpec};
use crate::shape::{Keys, ModelError, ModelShape};

pub(super) struct Qwen2;

impl Architecture for Qwen2 {
    fn name(&self) -> &'static str {
        "qwen2"
    }

    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError> {
        refuse_experts(keys)?;
        Hyper::plain(keys, RopeSpec::read(keys, shape, Pairing::Halves)?)
    }

    fn layer_tensors(&self, shape: &ModelShape, hyper: &Hyper) -> Vec<TensorSpec> {
        let mut tensors = attention_tensors(shape);
        tensors.extend(bias_tensors(shape));
        tensors.extend(feed_forward_tensors(shape, hyper));
        tensors
    }

    fn layer(&self, _: u32, shape: &ModelShape, hyper: &Hyper) -> LayerSpec {
        plain_layer(shape, hyper)
    }
}
