//! `qwen2moe`: the attention of `qwen2` and a mixture of experts, one of which every token goes
//! through. The weights of the others are not scaled to a sum of one.

use super::{
    Architecture, Hyper, TensorSpec, attention_tensors, bias_tensors, feed_forward_tensors,
    plain_layer, read_experts,
};
use crate::cpu::{ExpertsSpec, LayerSpec, Pairing, RopeSpec};
use crate::shape::{Keys, ModelError, ModelShape};

pub(super) struct Qwen2Moe;

impl Architecture for Qwen2Moe {
    fn name(&self) -> &'static str {
        "qwen2moe"
    }

    fn hyper(&self, keys: &Keys<'_>, shape: &ModelShape) -> Result<Hyper, ModelError> {
        let used = keys.u32("expert_used_count")?.max(1);
        let experts = read_experts(keys, shape.feed_forward / used, false)?;
        let Some(experts) = experts else {
            return Err(ModelError::UnsupportedFeature {
                feature: "qwen2moe without experts".into(),
            });
        };
        let shared = keys.u32_or("expert_shared_feed_forward_length", shape.feed_forward)?;
        let rope = RopeSpec::read(keys, shape, Pairing::Halves)?;
        Ok(Hyper {
            experts: Some(ExpertsSpec {
                shared: Some(shared),
                ..experts
            }),
            ..Hyper::plain(keys, rope)?
        })
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
