//! What sets the generated models apart: a recipe for each.
//!
//! Sizes are small, but every feature of the real models is there: numbers that would hide a
//! mistake (a wide soft cap, a window that no test reaches) are made to matter.

use super::SyntheticArch;
use super::tokenizer::Kind;

/// Width of one head, of which the heads together are as wide as the hidden state.
const NARROW_HEAD: u32 = 16;
/// Width of one head, of which the heads together are twice as wide as the hidden state.
const WIDE_HEAD: u32 = 32;
/// Sliding window, short enough to matter in a short test.
const WINDOW: u32 = 16;
/// Base of the rotary embedding where the file states it.
const ROPE_BASE: f32 = 100_000.0;

/// How one generated model is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipe {
    /// `general.architecture`.
    pub arch: &'static str,
    /// Names the model among the generated ones.
    pub label: &'static str,
    pub tokenizer: Kind,
    pub head_dim: u32,
    /// Whether the file states the width of a head; the others follow from the hidden width.
    pub states_head_dim: bool,
    /// Whether the file states the number of tokens.
    pub states_vocab: bool,
    /// Whether the output head is the token embedding.
    pub is_tied: bool,
    pub layer: LayerRecipe,
    pub rope: RopeRecipe,
    /// `attention.sliding_window`, where the file states it.
    pub window: Option<u32>,
    /// Caps of the attention scores and of the logits.
    pub softcaps: Option<(f32, f32)>,
}

/// Which tensors a layer has beyond the usual ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerRecipe {
    /// Biases of queries, keys and values.
    pub has_biases: bool,
    /// Norms of each query and key head.
    pub has_head_norms: bool,
    /// Norms after attention and feed-forward part.
    pub has_post_norms: bool,
    /// Queries, keys and values in one matrix, and gate and up in one.
    pub is_fused: bool,
    pub experts: Experts,
}

/// The feed-forward part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Experts {
    /// One for all.
    None,
    /// The best of several, each as wide as `feed_forward_length`.
    Plain,
    /// The best of several, of a width of their own, and one that always takes part.
    WithShared,
}

/// The rotary embedding.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeRecipe {
    /// Base of the frequencies; a file without it means 10000.
    pub base: Option<f32>,
    /// Whether the file states how many values of a head are turned.
    pub states_dims: bool,
    /// Quarters of a head that are turned.
    pub quarters: u32,
    pub scaling: Scaling,
}

/// How the rotary embedding is stretched over longer sequences than the model was trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scaling {
    None,
    /// Positions are divided.
    Linear {
        factor: f32,
    },
    /// Random divisors of the frequencies.
    RandomDivisors,
    /// Divisors of the frequencies as Llama 3 has them.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
    },
    /// Slow frequencies are divided, fast ones kept.
    Yarn {
        factor: f32,
    },
    /// One set of divisors for short and one for long sequences.
    Long,
}

const LLAMA: Recipe = Recipe {
    arch: "llama",
    label: "llama",
    tokenizer: Kind::BytePairs,
    head_dim: NARROW_HEAD,
    states_head_dim: true,
    states_vocab: true,
    is_tied: false,
    layer: LayerRecipe {
        has_biases: false,
        has_head_norms: false,
        has_post_norms: false,
        is_fused: false,
        experts: Experts::None,
    },
    rope: RopeRecipe {
        base: Some(ROPE_BASE),
        states_dims: true,
        quarters: 4,
        scaling: Scaling::RandomDivisors,
    },
    window: None,
    softcaps: None,
};

const LLAMA_LINEAR: Recipe = LLAMA.scaled("llama-linear", Scaling::Linear { factor: 4.0 });

const LLAMA_LLAMA3: Recipe = LLAMA.scaled(
    "llama-llama3",
    Scaling::Llama3 {
        factor: 8.0,
        low: 1.0,
        high: 4.0,
    },
);

const LLAMA_YARN: Recipe = LLAMA.scaled("llama-yarn", Scaling::Yarn { factor: 4.0 });

const MISTRAL: Recipe = Recipe {
    tokenizer: Kind::SentencePiece,
    head_dim: WIDE_HEAD,
    ..LLAMA.scaled("mistral", Scaling::None)
};

const MIXTRAL: Recipe = Recipe {
    tokenizer: Kind::SentencePiece,
    layer: LayerRecipe {
        experts: Experts::Plain,
        ..LLAMA.layer
    },
    ..LLAMA.scaled("mixtral", Scaling::None)
};

const QWEN2: Recipe = Recipe {
    arch: "qwen2",
    states_vocab: false,
    is_tied: true,
    layer: LayerRecipe {
        has_biases: true,
        ..LLAMA.layer
    },
    rope: RopeRecipe {
        states_dims: false,
        scaling: Scaling::None,
        ..LLAMA.rope
    },
    ..LLAMA.scaled("qwen2", Scaling::None)
};

const QWEN2MOE: Recipe = Recipe {
    arch: "qwen2moe",
    label: "qwen2moe",
    states_head_dim: false,
    is_tied: false,
    layer: LayerRecipe {
        experts: Experts::WithShared,
        ..QWEN2.layer
    },
    ..QWEN2
};

const QWEN3: Recipe = Recipe {
    arch: "qwen3",
    label: "qwen3",
    head_dim: WIDE_HEAD,
    layer: LayerRecipe {
        has_head_norms: true,
        ..LLAMA.layer
    },
    ..QWEN2
};

const GEMMA2: Recipe = Recipe {
    arch: "gemma2",
    label: "gemma2",
    tokenizer: Kind::SentencePiece,
    head_dim: WIDE_HEAD,
    layer: LayerRecipe {
        has_post_norms: true,
        ..LLAMA.layer
    },
    rope: RopeRecipe {
        base: None,
        ..QWEN2.rope
    },
    window: Some(WINDOW),
    softcaps: Some((2.0, 3.0)),
    ..QWEN2
};

const GEMMA3: Recipe = Recipe {
    arch: "gemma3",
    label: "gemma3",
    tokenizer: Kind::SentencePiece,
    layer: LayerRecipe {
        has_head_norms: true,
        has_post_norms: true,
        ..LLAMA.layer
    },
    window: Some(WINDOW),
    ..QWEN2
};

const GEMMA3_LINEAR: Recipe = GEMMA3.scaled("gemma3-linear", Scaling::Linear { factor: 8.0 });

const PHI3: Recipe = Recipe {
    arch: "phi3",
    label: "phi3",
    tokenizer: Kind::SentencePiece,
    states_head_dim: false,
    is_tied: false,
    layer: LayerRecipe {
        is_fused: true,
        ..LLAMA.layer
    },
    rope: RopeRecipe {
        states_dims: true,
        ..QWEN2.rope
    },
    // The real ones state a window too, and nobody applies it.
    window: Some(2047),
    ..QWEN2
};

const PHI3_LONG: Recipe = Recipe {
    tokenizer: Kind::BytePairs,
    is_tied: true,
    rope: RopeRecipe {
        quarters: 3,
        scaling: Scaling::Long,
        ..PHI3.rope
    },
    window: Some(0),
    ..PHI3.scaled("phi3-long", Scaling::Long)
};

impl Recipe {
    /// The same model with another rotary embedding.
    const fn scaled(self, label: &'static str, scaling: Scaling) -> Self {
        Self {
            label,
            rope: RopeRecipe {
                scaling,
                ..self.rope
            },
            ..self
        }
    }

    pub(super) fn of(arch: SyntheticArch) -> &'static Self {
        match arch {
            SyntheticArch::Llama => &LLAMA,
            SyntheticArch::LlamaLinear => &LLAMA_LINEAR,
            SyntheticArch::LlamaLlama3 => &LLAMA_LLAMA3,
            SyntheticArch::LlamaYarn => &LLAMA_YARN,
            SyntheticArch::Mistral => &MISTRAL,
            SyntheticArch::Mixtral => &MIXTRAL,
            SyntheticArch::Qwen2 => &QWEN2,
            SyntheticArch::Qwen2Moe => &QWEN2MOE,
            SyntheticArch::Qwen3 => &QWEN3,
            SyntheticArch::Gemma2 => &GEMMA2,
            SyntheticArch::Gemma3 => &GEMMA3,
            SyntheticArch::Gemma3Linear => &GEMMA3_LINEAR,
            SyntheticArch::Phi3 => &PHI3,
            SyntheticArch::Phi3Long => &PHI3_LONG,
        }
    }

    /// How many values of a head are turned.
    pub(super) fn rope_dims(&self) -> u32 {
        self.head_dim * self.rope.quarters / 4
    }
}
