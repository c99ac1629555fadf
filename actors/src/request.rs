//! What a client asks a node for, and what it gets: the types of [`crate::NodeHandle::generate`].

use tokio::sync::mpsc;

use accel_inference::{ChatMessage, SamplingParams};

use crate::error::ErrorKind;
use crate::tolerance::FaultTolerance;
use crate::views::ReplicaView;

/// One request for an answer.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// A name, a CID or a path.
    pub model: String,
    /// What the answer follows on.
    pub input: Input,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// The longest answer; what the context leaves when absent.
    pub max_tokens: Option<u32>,
    /// The answer ends before any of these texts.
    pub stop: Vec<String>,
    /// How many alternatives to report with each token.
    pub top_logprobs: u32,
    /// How much the request survives; the node's default when absent.
    pub fault_tolerance: Option<FaultTolerance>,
    /// What the client needs to be written to again if it comes back for the answer
    /// ([`crate::NodeHandle::resume`]): at most 4 KiB, opaque to the node. Absent, nobody can come
    /// back, and an answer that nobody reads is cancelled for good.
    pub form: Option<String>,
}

impl GenerateRequest {
    /// A greedy request for plain text.
    pub fn text(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            input: Input::Text(prompt.into()),
            sampling: SamplingParams::default(),
            max_tokens: None,
            stop: Vec::new(),
            top_logprobs: 0,
            fault_tolerance: None,
            form: None,
        }
    }
}

/// What an answer follows on.
#[derive(Debug, Clone)]
pub enum Input {
    /// Plain text.
    Text(String),
    /// A conversation, rendered with the model's own chat template.
    Chat(Vec<ChatMessage>),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// An answer on its way. Dropping it cancels the session.
#[derive(Debug)]
pub struct Generation {
    /// The session.
    pub id: String,
    /// The model's CID.
    pub cid: String,
    /// The model's name.
    pub model: String,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// The answer: tokens in order, then exactly one `Done` or `Failed`.
    pub events: mpsc::Receiver<GenEvent>,
}

/// An answer that goes on for a client that came back.
#[derive(Debug)]
pub struct Resumption {
    /// [`GenerateRequest::form`], as it was given.
    pub form: String,
    /// How many characters of the text the client has already.
    pub seen_chars: usize,
    /// The rest of the answer.
    pub generation: Generation,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum GenEvent {
    /// One more token. It is in the journal already.
    Token {
        /// Counts the tokens of the answer from 0.
        index: u64,
        /// The token.
        token: u32,
        /// The text that it adds; empty while a character or a stop text is incomplete.
        text: String,
        /// The bytes of the token itself.
        bytes: Vec<u8>,
        /// Its log probability.
        logprob: f32,
        /// The likeliest alternatives.
        top: Vec<TopToken>,
    },
    /// The answer is complete.
    Done {
        /// Why it ended.
        finish: FinishReason,
        /// How many tokens were drawn.
        completion_tokens: u64,
        /// Text that was held back until now.
        text_tail: String,
    },
    /// The answer cannot be completed.
    Failed {
        /// How a client must react.
        kind: ErrorKind,
        /// For programs, stable.
        code: String,
        /// For people.
        message: String,
        /// What to do next.
        hint: String,
        /// Other nodes that have the session, where it may be gone on with.
        replicas: Vec<ReplicaView>,
    },
}

/// An alternative to a token.
#[derive(Debug, Clone, PartialEq)]
pub struct TopToken {
    /// The token.
    pub token: u32,
    /// Its text, as far as it stands alone.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its log probability.
    pub logprob: f32,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop text came.
    Stop,
    /// It reached the longest length allowed.
    Length,
}
