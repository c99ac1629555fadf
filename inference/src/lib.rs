//! The engine of accel: model files, architectures and their forward pass, tokenizers, sampling.
//!
//! The path of a model through the modules:
//!
//! 1. [`gguf`] parses the header of a file, or of a growing prefix of it, as hostile input;
//! 2. [`shape`] reads the sizes, refuses what cannot be run, and says which bytes of the file a
//!    range of layers needs;
//! 3. [`stage`] is the seam where backends meet: [`load_stage`] gives a [`Stage`] that takes
//!    token ids or activations and gives activations or logits. The `cpu` module is the
//!    backend on our own kernels; `arch` has one file per architecture; [`kv_format`] names the
//!    forms of the KV cache.
//!
//! The text side: [`tokenizer`] turns text into tokens and back, [`chat`] writes a conversation as
//! the model wants it, [`sampler`] draws the next token, [`stop`] watches for stop texts.
//!
//! Around it: [`hardware`] tells what the machine has, [`mod@bench`] how fast the engine is on it,
//! [`eval`] how close it is to another engine, [`mod@perplexity`] how well a model predicts a text;
//! [`synthetic`] makes small models for tests.

mod arch;
pub mod bench;
pub mod chat;
mod cpu;
pub mod eval;
pub mod gguf;
pub mod hardware;
pub mod kv_format;
pub mod layers;
pub mod perplexity;
mod quant;
pub mod sampler;
pub mod shape;
pub mod stage;
pub mod stop;
pub mod synthetic;
pub mod tokenizer;

pub use arch::known as known_architectures;
pub use chat::{ChatError, ChatMessage, ChatTemplate};
pub use gguf::{Gguf, GgufError};
pub use kv_format::{KvFormat, UnknownKvFormat};
pub use layers::LayerRange;
pub use sampler::{SampleError, Sampled, SamplingParams, sample};
pub use shape::{ModelError, ModelShape};
pub use stage::{
    Device, LoadError, LoadOptions, LogitRows, Logits, MAX_THREADS, SeqId, Stage, StageError,
    StageInput, StageOutput, StepRequest, load_stage,
};
pub use stop::{StopError, StopMatcher, StopOutcome};
pub use tokenizer::{StreamDecoder, TokenKind, Tokenizer, TokenizerData, TokenizerError};
