//! The models whose logits another implementation has computed: see `tests/golden.rs`.

use super::{SyntheticArch, SyntheticSpec};
use crate::gguf::TensorType;

/// A model with known logits.
#[derive(Debug, Clone, Copy)]
pub struct GoldenModel {
    /// Names the file with the logits.
    pub name: &'static str,
    /// How the model is generated.
    pub spec: SyntheticSpec,
}

/// Every model with known logits.
pub const MODELS: [GoldenModel; 18] = [
    model("llama", SyntheticArch::Llama),
    model("llama-linear", SyntheticArch::LlamaLinear),
    model("llama-llama3", SyntheticArch::LlamaLlama3),
    model("llama-yarn", SyntheticArch::LlamaYarn),
    model("mistral", SyntheticArch::Mistral),
    with_seed(model("mixtral", SyntheticArch::Mixtral), 21),
    model("qwen2", SyntheticArch::Qwen2),
    with_seed(model("qwen2moe", SyntheticArch::Qwen2Moe), 8),
    model("qwen3", SyntheticArch::Qwen3),
    model("gemma2", SyntheticArch::Gemma2),
    model("gemma3", SyntheticArch::Gemma3),
    model("gemma3-linear", SyntheticArch::Gemma3Linear),
    model("phi3", SyntheticArch::Phi3),
    // Trained on sequences of 128 tokens, and of 32: the test's is shorter, and longer.
    model("phi3-short", SyntheticArch::Phi3Long),
    with_context(model("phi3-long", SyntheticArch::Phi3Long), 1024),
    quantised(model("llama-q8_0", SyntheticArch::Llama)),
    with_seed(quantised(model("mixtral-q8_0", SyntheticArch::Mixtral)), 36),
    quantised(model("phi3-q8_0", SyntheticArch::Phi3)),
];

/// Weights are plain floats, so that nothing but the forward pass is compared.
const fn model(name: &'static str, arch: SyntheticArch) -> GoldenModel {
    let layers = match arch {
        // The sixth layer is the first without a window.
        SyntheticArch::Gemma3 | SyntheticArch::Gemma3Linear => 8,
        _ => 4,
    };
    GoldenModel {
        name,
        spec: SyntheticSpec {
            arch,
            layers,
            hidden: 64,
            vocab: 320,
            context: 4096,
            quantisation: TensorType::F32,
            seed: 1,
        },
    }
}

/// With some seeds two experts are so close that rounding decides which of them a token takes.
const fn with_seed(model: GoldenModel, seed: u64) -> GoldenModel {
    let GoldenModel { name, mut spec } = model;
    spec.seed = seed;
    GoldenModel { name, spec }
}

const fn with_context(model: GoldenModel, context: u32) -> GoldenModel {
    let GoldenModel { name, mut spec } = model;
    spec.context = context;
    GoldenModel { name, spec }
}

/// With weights in blocks, of which rows, experts and fused matrices must be found. There are fewer
/// layers, because rounding adds up.
const fn quantised(model: GoldenModel) -> GoldenModel {
    let GoldenModel { name, mut spec } = model;
    spec.quantisation = TensorType::Q8_0;
    spec.layers = 2;
    GoldenModel { name, spec }
}
