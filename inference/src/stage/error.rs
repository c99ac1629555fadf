//! What can go wrong when a stage is loaded or stepped.

use super::SeqId;
use crate::gguf::GgufError;
use crate::hardware::CpuError;
use crate::kv_format::KvFormat;
use crate::layers::LayerRange;
use crate::shape::ModelError;
use std::path::PathBuf;

/// Why a stage could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The header is not usable.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model cannot be run by this engine.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The processor lacks what the kernels were compiled for.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The range is empty or lies outside the model.
    #[error("the layers {range} are not within the model's 0..{layers}; ask for layers it has")]
    BadRange {
        /// What was asked for.
        range: LayerRange,
        /// Layers of the model.
        layers: u32,
    },
    /// Reading the weights failed.
    #[error("cannot read the tensor {tensor} from {}: {source}", path.display())]
    Read {
        /// The tensor.
        tensor: String,
        /// The model file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The weights do not fit into memory.
    #[error("out of memory: the tensor {tensor} takes {bytes} bytes; give this node fewer layers")]
    OutOfMemory {
        /// The tensor that did not fit.
        tensor: String,
        /// Its size.
        bytes: u64,
    },
    /// A weight, or a scale of weights, is no finite number.
    #[error(
        "the tensor {tensor} holds a value that is not finite; the file is damaged, fetch it again"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// The threads that compute could not be started.
    #[error("cannot start {threads} threads: {reason}; ask for fewer")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What went wrong.
        reason: String,
    },
    /// No such device.
    #[error("the device {name:?} is unknown; choose one of auto, cpu, wgpu, cuda, metal")]
    UnknownDevice {
        /// What was asked for.
        name: String,
    },
    /// This build has no backend for the device.
    #[error("the device {device} has no backend in this build; choose cpu or auto")]
    DeviceUnavailable {
        /// What was asked for.
        device: &'static str,
    },
}

/// Why a step, or another operation on a sequence, was refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The sequence is not open.
    #[error("the sequence {seq:016x} is not open on this stage; open it first")]
    UnknownSequence {
        /// The sequence.
        seq: SeqId,
    },
    /// The sequence is open already.
    #[error("the sequence {seq:016x} is open already; close it first")]
    SequenceExists {
        /// The sequence.
        seq: SeqId,
    },
    /// The step does not follow the tokens that are there.
    #[error("a step for position {got} came while the sequence holds {have} tokens")]
    PositionGap {
        /// Tokens in the KV cache.
        have: usize,
        /// Position of the step.
        got: usize,
    },
    /// More tokens than were reserved, or than the model's context.
    #[error("{needed} tokens do not fit the limit of {limit}; shorten the prompt or the answer")]
    ContextOverflow {
        /// Tokens that the request needs.
        needed: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// The cache behind a sliding window was given up.
    #[error(
        "the cache no longer holds what token {len} sees; open the sequence again and feed it from the start"
    )]
    Forgotten {
        /// The token that would come next.
        len: usize,
    },
    /// The input is not what this stage takes.
    #[error("bad input: {reason}")]
    BadInput {
        /// What is wrong with it.
        reason: String,
    },
    /// A token that the vocabulary does not have.
    #[error(
        "the token {token} is outside the vocabulary of {vocab}; use the model's own tokenizer"
    )]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: u32,
    },
    /// The arithmetic left the finite numbers: damaged weights, or a lying peer.
    #[error(
        "{what} holds a value that is not finite; the weights may be damaged, fetch them again"
    )]
    NonFinite {
        /// Which values.
        what: String,
    },
    /// The KV cache does not fit into memory.
    #[error("out of memory: the cache of {tokens} tokens takes {bytes} bytes; allow fewer tokens")]
    OutOfMemory {
        /// Tokens asked for.
        tokens: usize,
        /// Bytes that they take in this stage.
        bytes: u64,
    },
    /// The rows of a cache are in another form than the stage's own.
    #[error(
        "rows of keys and values in {got} do not fit a cache in {have}; take those of a stage with --kv {have}"
    )]
    KvMismatch {
        /// The form of the stage.
        have: KvFormat,
        /// The form of the rows.
        got: KvFormat,
    },
    /// The KV caches of the stage may not take more memory.
    #[error(
        "the cache needs {needed} bytes more, and {held} of the {allowed} that are allowed are \
         held; try again when other sequences have ended, or allow more memory"
    )]
    KvLimit {
        /// Bytes that the request needs besides those that are held.
        needed: u64,
        /// Bytes that all caches of the stage hold.
        held: u64,
        /// Bytes that they may hold.
        allowed: u64,
    },
}
