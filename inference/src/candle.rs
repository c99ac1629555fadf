//! The CPU backend on candle's quantised kernels.
//!
//! Only the dot products are candle's ([`matrix`]); activations are plain `f32` slices and the
//! rest of a layer is written here, so that a decode step costs its arithmetic and nothing else.
//!
//! Every output value is computed by one thread in an order that depends on neither the number
//! of threads nor the number of rows of the step. So the same tokens give the same bits however
//! the prompt is cut into chunks and the layers into stages. For the same reason candle's
//! repacked kernels are not used: they change with the number of rows and with the machine.
//!
//! * [`stage`] – the loaded stage: embedding, layers, head, sequences;
//! * [`attention`], [`feed_forward`], [`norm`], [`rope`] – the parts of a layer;
//! * [`kv`] – the KV cache; [`weights`] – reading tensors; [`matrix`] – products.

mod attention;
mod feed_forward;
mod kv;
mod matrix;
mod norm;
mod rope;
mod stage;
mod weights;

pub(crate) use attention::Attention;
pub(crate) use feed_forward::{FeedForward, Gate};
pub(crate) use kv::LayerKv;
pub(crate) use matrix::Matrix;
pub(crate) use norm::{Norm, add};
pub(crate) use rope::{Pairing, RopeSpec};
pub(crate) use stage::CandleStage;
pub(crate) use weights::LayerWeights;

use rope::RopeTable;

/// The numerics class: the instruction set for which the kernels were compiled is part of it.
pub(crate) const NUMERICS: &str = if cfg!(all(target_arch = "x86_64", target_feature = "avx2")) {
    "candle-x86-64-v3"
} else if cfg!(target_arch = "x86_64") {
    "candle-x86-64"
} else if cfg!(target_arch = "aarch64") {
    "candle-neon"
} else {
    "candle-scalar"
};

/// What the layers of one step share.
pub(crate) struct Pass<'a> {
    /// Position in the sequence of the first row.
    pub position: usize,
    /// The rotary embeddings that the layers choose from.
    pub ropes: &'a [RopeTable],
}

/// One loaded layer.
pub(crate) trait Layer: Send + Sync {
    /// Replaces the rows `x` (rows, hidden) by the layer's output and appends the rows' keys and
    /// values to the cache.
    fn forward(&self, pass: &Pass<'_>, x: &mut [f32], kv: &mut LayerKv);
}
