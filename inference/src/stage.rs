//! The seam where backends meet: a stage is one loaded, contiguous range of layers.
//!
//! A backend implements [`Stage`]; everything above it (placement, sessions, the tensor plane)
//! knows only this trait and [`load_stage`].

mod error;
mod logits;

pub use error::{LoadError, StageError};
pub use logits::LogitRows;

use crate::cpu::CpuStage;
use crate::gguf::Gguf;
use crate::hardware::IsaName;
use crate::kv_format::KvFormat;
use crate::layers::LayerRange;
use std::path::Path;
use std::str::FromStr;

/// Names a sequence (one request's KV cache) within a stage.
pub type SeqId = u64;

/// What a step is fed.
#[derive(Debug, Clone, PartialEq)]
pub enum StageInput {
    /// Token ids: the input of the first stage.
    Tokens(Vec<u32>),
    /// Activations of the stage before: `rows` rows of the model's hidden width.
    Hidden {
        /// Number of rows.
        rows: usize,
        /// The rows, one after the other.
        data: Vec<f32>,
    },
}

/// What a step gives.
#[derive(Debug, Clone, PartialEq)]
pub enum StageOutput {
    /// Activations for the next stage.
    Hidden {
        /// Number of rows.
        rows: usize,
        /// The rows, one after the other.
        data: Vec<f32>,
    },
    /// Logits of the last stage.
    Logits {
        /// Number of rows: one for [`Logits::Last`], all of the step for [`Logits::All`].
        rows: usize,
        /// The rows, one after the other, each as wide as the vocabulary.
        data: LogitRows,
    },
    /// The last stage was asked for no logits.
    Nothing,
}

/// Which rows the last stage turns into logits; other stages ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: this is not the last chunk of the prompt.
    None,
    /// Only the last row: a token will be sampled.
    Last,
    /// Every row: scoring.
    All,
}

/// One sequence's part of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRequest {
    /// The sequence.
    pub seq: SeqId,
    /// Number of the first of the step's tokens in the sequence; must equal [`Stage::len`].
    pub position: usize,
    /// The rows to apply.
    pub input: StageInput,
    /// Which rows become logits, on the last stage.
    pub want_logits: Logits,
}

/// One loaded, contiguous range of layers with the KV caches of its sequences.
pub trait Stage: Send {
    /// The layers.
    fn range(&self) -> LayerRange;

    /// Memory that the loaded weights take.
    fn weights_bytes(&self) -> u64;

    /// The numerics class: equal input gives equal bits on every stage of the same class.
    fn numerics(&self) -> &str;

    /// Starts a sequence of at most `max_tokens` tokens and reserves its KV cache.
    fn open(&mut self, seq: SeqId, max_tokens: usize) -> Result<(), StageError>;

    /// Applies one step to each of several sequences at once, and gives the outcomes in the same
    /// order. Each outcome has the same bits as if its step had run alone. A sequence may occur
    /// only once; a step that fails changes nothing, and the others go on.
    fn run(&mut self, batch: Vec<StepRequest>) -> Vec<Result<StageOutput, StageError>>;

    /// One step of one sequence, alone.
    fn step(
        &mut self,
        seq: SeqId,
        position: usize,
        input: StageInput,
        want_logits: Logits,
    ) -> Result<StageOutput, StageError> {
        let request = StepRequest {
            seq,
            position,
            input,
            want_logits,
        };
        let outcome = self.run(vec![request]).pop();
        outcome.expect("a batch of one step has one outcome")
    }

    /// Forgets all tokens of a sequence from number `len` on.
    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<(), StageError>;

    /// Keys and values of some tokens of a sequence, in a form that a stage of the same layers and
    /// numerics class takes with [`Stage::import`].
    fn export(&self, seq: SeqId, tokens: std::ops::Range<usize>) -> Result<Vec<u8>, StageError>;

    /// Appends tokens whose keys and values another stage gave. `position` must equal
    /// [`Stage::len`].
    fn import(&mut self, seq: SeqId, position: usize, data: &[u8]) -> Result<(), StageError>;

    /// Number of tokens that the sequence holds, or `None` when it is not open.
    fn len(&self, seq: SeqId) -> Option<usize>;

    /// Ends a sequence and frees its memory; nothing happens when it is not open.
    fn close(&mut self, seq: SeqId);
}

/// Where a stage computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "each variant is named after the device")]
pub enum Device {
    /// The best that this build and machine offer.
    #[default]
    Auto,
    Cpu,
    Wgpu,
    Cuda,
    Metal,
}

impl Device {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Auto, "auto"),
        (Self::Cpu, "cpu"),
        (Self::Wgpu, "wgpu"),
        (Self::Cuda, "cuda"),
        (Self::Metal, "metal"),
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(device, _)| *device == self);
        found
            .map(|(_, name)| *name)
            .expect("every device is listed")
    }
}

impl FromStr for Device {
    type Err = LoadError;

    fn from_str(name: &str) -> Result<Self, LoadError> {
        let found = Self::ALL.iter().find(|(_, known)| *known == name);
        found
            .map(|(device, _)| *device)
            .ok_or_else(|| LoadError::UnknownDevice {
                name: name.to_owned(),
            })
    }
}

/// The most threads that a stage computes with.
pub const MAX_THREADS: usize = 1024;

/// How to load a stage.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Threads that compute, at most [`MAX_THREADS`]; `None` takes one per core.
    pub threads: Option<usize>,
    /// Where to compute.
    pub device: Device,
    /// Whose kernels compute; `None` takes what `ACCEL_ISA` asks for, or the best of the machine.
    /// The results are the same.
    pub isa: Option<IsaName>,
    /// How keys and values are kept. Another form is another numerics class.
    pub kv: KvFormat,
    /// Memory that the KV caches of all sequences together may take; a step that needs more is
    /// refused. `None` is no bound.
    pub kv_bytes: Option<u64>,
}

/// Loads the layers `range` of the model file at `path`, whose header is `gguf`. Only the
/// tensors that the range needs are read, so the rest of the file may be absent (sparse).
pub fn load_stage(
    path: &Path,
    gguf: &Gguf,
    range: LayerRange,
    options: &LoadOptions,
) -> Result<Box<dyn Stage>, LoadError> {
    match options.device {
        Device::Auto | Device::Cpu => {
            let stage = CpuStage::load(path, gguf, range, options)?;
            Ok(Box::new(stage))
        }
        device => Err(LoadError::DeviceUnavailable {
            device: device.name(),
        }),
    }
}
