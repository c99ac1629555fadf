//! `qwen2`: Qwen 2 and 2.5. The layers of `llama` with biases on queries, keys and values, and a
//! rotary embedding that turns the two halves of a head.

use super::llama::PreNormLayer;
use super::{Architecture, Hyper, TensorSpec, common_tensors, refuse_experts};
use crate::candle::{Layer, LayerWeights, Pairing, RopeSpec};
use crate::shape::{Keys, ModelError, ModelShape};
use crate::stage::LoadError;

pub(super) struct Qwen2;

impl Architecture for Qwen2 {
    fn name(&self) -> &'static str {
        "qwen2"
    }

    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError> {
        refuse_experts(keys)?;
        Ok(Hyper {
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            embedding_scale: 1.0,
            logit_softcap: None,
            ropes: vec![RopeSpec::read(keys, shape, Pairing::Halves)?],
            window: None,
        })
    }

    fn layer_tensors(&self, shape: &ModelShape) -> Vec<TensorSpec> {
        let mut tensors = common_tensors(shape);
        tensors.extend([
            TensorSpec::vector("attn_q.bias", shape.query_width()),
            TensorSpec::vector("attn_k.bias", shape.kv_width()),
            TensorSpec::vector("attn_v.bias", shape.kv_width()),
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
