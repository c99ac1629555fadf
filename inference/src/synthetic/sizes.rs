//! The sizes of a generated model, and the metadata that states them.

use super::SyntheticSpec;
use super::recipe::{Experts, Recipe, Scaling};
use crate::gguf::Value;
use crate::gguf::writer::Writer;

/// The hidden width is this many times the number of query heads.
const HIDDEN_PER_HEAD: u32 = 16;
/// Query heads that share a key-value head.
const GROUP: u32 = 2;
/// Experts of a layer, and how many of them a token takes.
const EXPERTS: u32 = 4;
const EXPERTS_USED: u32 = 2;
/// How many times longer than in training the sequences of a stretched model may be.
const STRETCH: u32 = 4;
/// The same for the models with a set of divisors for long sequences.
const LONG_STRETCH: u32 = 32;

/// The sizes of the tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub hidden: u32,
    pub vocab: u32,
    pub heads: u32,
    pub kv_heads: u32,
    /// Width of all queries, and of all keys or values.
    pub queries: u32,
    pub keys: u32,
    pub feed_forward: u32,
    pub experts: u32,
    /// Width of an expert, and of the one that always takes part.
    pub expert: u32,
    pub shared_expert: u32,
    /// Longest sequence in training; `context` is what the rotary embedding is stretched to.
    pub trained_context: u32,
}

impl Sizes {
    pub(super) fn of(spec: &SyntheticSpec, recipe: &Recipe) -> Self {
        let heads = spec.hidden / HIDDEN_PER_HEAD;
        let kv_heads = heads / GROUP;
        let feed_forward = spec.hidden * 2;
        let (experts, expert, shared_expert) = match recipe.layer.experts {
            Experts::None => (0, 0, 0),
            Experts::Plain => (EXPERTS, feed_forward, 0),
            Experts::WithShared => (EXPERTS, spec.hidden, spec.hidden * 3),
        };
        let stretch = match recipe.rope.scaling {
            Scaling::Long => LONG_STRETCH,
            Scaling::Yarn { .. } | Scaling::Llama3 { .. } => STRETCH,
            Scaling::None | Scaling::Linear { .. } | Scaling::RandomDivisors => 1,
        };
        Self {
            hidden: spec.hidden,
            vocab: spec.vocab,
            heads,
            kv_heads,
            queries: heads * recipe.head_dim,
            keys: kv_heads * recipe.head_dim,
            feed_forward,
            experts,
            expert,
            shared_expert,
            trained_context: spec.context.div_ceil(stretch),
        }
    }
}

/// Writes the metadata of a model, but for its tokenizer.
pub(super) fn write(writer: &mut Writer, spec: &SyntheticSpec, recipe: &Recipe) {
    let sizes = Sizes::of(spec, recipe);
    let arch = recipe.arch;
    writer.set("general.architecture", Value::Str(arch.to_owned()));
    writer.set("general.type", Value::Str("model".to_owned()));
    let name = format!("synthetic {} {}x{}", recipe.label, spec.layers, spec.hidden);
    writer.set("general.name", Value::Str(name));
    let mut keys = Keys { writer, arch };
    keys.size("block_count", spec.layers);
    keys.size("context_length", spec.context);
    keys.size("embedding_length", sizes.hidden);
    keys.size("feed_forward_length", sizes.feed_forward);
    keys.size("attention.head_count", sizes.heads);
    keys.size("attention.head_count_kv", sizes.kv_heads);
    if recipe.states_head_dim {
        keys.size("attention.key_length", recipe.head_dim);
        keys.size("attention.value_length", recipe.head_dim);
    }
    if recipe.states_vocab {
        keys.size("vocab_size", sizes.vocab);
    }
    keys.number("attention.layer_norm_rms_epsilon", 1e-6);
    write_rope(&mut keys, recipe, &sizes);
    if let Some(window) = recipe.window {
        keys.size("attention.sliding_window", window);
    }
    if let Some((attention, logits)) = recipe.softcaps {
        keys.number("attn_logit_softcapping", attention);
        keys.number("final_logit_softcapping", logits);
    }
    if sizes.experts > 0 {
        keys.size("expert_count", sizes.experts);
        keys.size("expert_used_count", EXPERTS_USED);
    }
    if recipe.layer.experts == Experts::WithShared {
        keys.size("expert_feed_forward_length", sizes.expert);
        keys.size("expert_shared_feed_forward_length", sizes.shared_expert);
    }
}

fn write_rope(keys: &mut Keys<'_>, recipe: &Recipe, sizes: &Sizes) {
    if let Some(base) = recipe.rope.base {
        keys.number("rope.freq_base", base);
    }
    if recipe.rope.states_dims {
        keys.size("rope.dimension_count", recipe.rope_dims());
    }
    match recipe.rope.scaling {
        // Divisors of the frequencies are tensors; the metadata does not tell of them.
        Scaling::None | Scaling::RandomDivisors | Scaling::Llama3 { .. } => {}
        Scaling::Linear { factor } => {
            keys.text("rope.scaling.type", "linear");
            keys.number("rope.scaling.factor", factor);
        }
        Scaling::Yarn { factor } => {
            keys.text("rope.scaling.type", "yarn");
            keys.number("rope.scaling.factor", factor);
        }
        Scaling::Long => {
            let stretch = libm::log(LONG_STRETCH.into());
            let trained = libm::log(sizes.trained_context.into());
            let factor = libm::sqrt(1.0 + stretch / trained) as f32;
            keys.number("rope.scaling.attn_factor", factor);
        }
    }
    let states_context = matches!(recipe.rope.scaling, Scaling::Yarn { .. });
    if states_context || recipe.layer.is_fused {
        let key = "rope.scaling.original_context_length";
        keys.size(key, sizes.trained_context);
    }
}

/// Sets the keys of one architecture.
struct Keys<'a> {
    writer: &'a mut Writer,
    arch: &'static str,
}

impl Keys<'_> {
    fn set(&mut self, key: &str, value: Value) {
        self.writer.set(format!("{}.{key}", self.arch), value);
    }

    fn size(&mut self, key: &str, size: u32) {
        self.set(key, Value::U32(size));
    }

    fn number(&mut self, key: &str, number: f32) {
        self.set(key, Value::F32(number));
    }

    fn text(&mut self, key: &str, text: &str) {
        self.set(key, Value::Str(text.to_owned()));
    }
}
