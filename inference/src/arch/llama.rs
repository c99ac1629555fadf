//! `llama`: Llama, Mistral, SmolLM and the many that share their layers; with experts, Mixtral.
//!
//! `x += attention(norm(x)); x += down(silu(gate(norm(x))) * up(norm(x)))`
//!
//! Converters permute the query and key rows of this architecture so that the rotary embedding
//! turns neighbouring values instead of the two halves of a head.

use super::{
    Architecture, Hyper, TensorSpec, attention_tensors, bias_tensors, feed_forward_tensors,
    plain_layer, read_experts,
};
use crate::cpu::{LayerSpec, Pairing, RopeSpec};
use crate::shape::{Keys, ModelError, ModelShape};

pub(super) struct Llama;

impl Architecture for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError> {
        let rope = RopeSpec::read(keys, shape, Pairing::Neighbours)?;
        Ok(Hyper {
            experts: read_experts(keys, shape.feed_forward, true)?,
            ..Hyper::plain(keys, rope)?
        })
    }

    fn layer_tensors(&self, shape: &ModelShape, hyper: &Hyper) -> Vec<TensorSpec> {
        let mut tensors = attention_tensors(shape);
        tensors.extend(bias_tensors(shape).map(TensorSpec::optional));
        tensors.push(TensorSpec::vector("attn_output.bias", shape.hidden).optional());
        tensors.extend(feed_forward_tensors(shape, hyper));
        tensors
    }

    fn layer(&self, _: u32, shape: &ModelShape, hyper: &Hyper) -> LayerSpec {
        plain_layer(shape, hyper)
    }
}
