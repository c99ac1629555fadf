//! `phi3`: Phi 3 and 4. The layers of `llama` with queries, keys and values in one matrix, gate
//! and up in another, and perhaps two sets of rotary embeddings, for usual and for long contexts
//! (LongRoPE, Ding et al., 2024).
//!
//! Which set a sequence takes depends on how many tokens it may hold, so it never changes on the
//! way.

use super::{Architecture, Hyper, LongRopes, TensorSpec, plain_layer};
use crate::cpu::{LayerSpec, Pairing, RopeSpec};
use crate::shape::{Keys, ModelError, ModelShape, ROPE_LONG, ROPE_SHORT};

pub(super) struct Phi3;

impl Architecture for Phi3 {
    fn name(&self) -> &'static str {
        "phi3"
    }

    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError> {
        let usual = RopeSpec {
            divisors: ROPE_SHORT,
            ..RopeSpec::read(keys, shape, Pairing::Halves)?
        };
        let long = RopeSpec {
            divisors: ROPE_LONG,
            ..usual.clone()
        };
        let threshold = keys.u32_or("rope.scaling.original_context_length", shape.context)?;
        Ok(Hyper {
            long: Some(LongRopes {
                threshold: threshold as usize,
                ropes: vec![long],
            }),
            ..Hyper::plain(keys, usual)?
        })
    }

    fn layer_tensors(&self, shape: &ModelShape, _: &Hyper) -> Vec<TensorSpec> {
        let (hidden, queries) = (shape.hidden, shape.query_width());
        let projected = queries + 2 * shape.kv_width();
        vec![
            TensorSpec::vector("attn_norm.weight", hidden),
            TensorSpec::matrix("attn_qkv.weight", hidden, projected),
            TensorSpec::matrix("attn_output.weight", queries, hidden),
            TensorSpec::vector("ffn_norm.weight", hidden),
            TensorSpec::matrix("ffn_up.weight", hidden, 2 * shape.feed_forward),
            TensorSpec::matrix("ffn_down.weight", shape.feed_forward, hidden),
        ]
    }

    fn layer(&self, _: u32, shape: &ModelShape, hyper: &Hyper) -> LayerSpec {
        plain_layer(shape, hyper)
    }
}
