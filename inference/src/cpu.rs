//! The engine's own CPU backend.
//!
//! Its numerics class is `cpu-1`, or `cpu-1-kv8` where the KV cache is in eight bits: the same tokens give the same bits on every instruction set,
//! with any number of threads, however the prompt is cut into chunks, whatever else is in the
//! batch. The rules that make it so:
//!
//! * kernels are generic over [`isa::Isa`] and never add across lanes except in one fixed order;
//! * each lane of a product is one output, so the inner dimension is walked in the order of the
//!   file, by one thread ([`kernels`]);
//! * a row of a batch is computed from that row and its own cache alone.
//!
//! * [`stage`] – the loaded stage: embedding, layers, head, sequences;
//! * [`layer`] – one layer over all rows of a batch; `layer/attending` – its attention part,
//!   `layer/experts` – mixtures of experts;
//! * [`attention`], [`kv`], [`rope`], [`norm`], [`math`] – its parts;
//! * [`softmax`] – the weights of a vocabulary, for sampling;
//! * [`matrix`] – products on all threads; [`kernels`] – of one tile; [`activations`] – what they
//!   are multiplied with;
//! * [`mod@format`], [`pack`] – how weights lie in memory; [`weights`], [`memory`] – how they get there;
//! * [`isa`] – instruction sets and units for tiles; [`pool`] – threads; [`probe`] – how fast the machine is.

mod activations;
mod attention;
mod format;
mod isa;
mod kernels;
mod kv;
mod layer;
mod math;
mod matrix;
mod memory;
mod norm;
mod pack;
mod pool;
mod probe;
mod rope;
mod softmax;
mod stage;
mod weights;

pub(crate) use format::Kind;
pub(crate) use isa::LANES;
#[cfg(target_arch = "x86_64")]
pub(crate) use isa::tiles_are_permitted;
pub(crate) use layer::{ExpertsSpec, LayerSpec};
pub(crate) use math::Gate;
pub(crate) use probe::Probe;
pub(crate) use rope::{Pairing, RopeSpec, Scaling};
pub(crate) use softmax::Softmax;
pub(crate) use stage::CpuStage;

use crate::kv_format::KvFormat;

/// The numerics class, which the form of the KV cache is part of.
pub(crate) fn numerics(kv: KvFormat) -> &'static str {
    match kv {
        KvFormat::F16 => "cpu-1",
        KvFormat::Q8 => "cpu-1-kv8",
    }
}
