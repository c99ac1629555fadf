//! What goes wrong, in the form that people and programs get to see: every error has a stable
//! code, a message, a hint that says what to do next, and a kind that decides the HTTP status.

use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use crate::models::ModelsError;
use crate::planner::PlanError;

/// The code of refusals because sessions hold the memory: it comes free when they end.
pub(crate) const MEMORY_IN_USE: &str = "memory_in_use";

/// The code of failures because a peer does not answer a call.
pub(crate) const PEER_SILENT: &str = "peer_silent";

/// The code of failures because another coordinator goes on with the session.
pub(crate) const SESSION_MOVED: &str = "session_moved";

/// The code of failures because too few other peers can keep a session's journal.
pub(crate) const TOO_FEW_REPLICAS: &str = "too_few_replicas";

/// Families of errors, as a client must react to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// What was asked for does not exist here or anywhere in the swarm.
    NotFound,
    /// The request itself must be changed.
    BadRequest,
    /// What was asked for is there, but in no state for that.
    Conflict,
    /// The same request may succeed later.
    Overloaded,
    /// The swarm cannot serve it as it is now.
    Unavailable,
    /// A fault of the node.
    Internal,
}

/// A failure in its plainest form: what a session ends with and what a peer refuses with.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize)]
#[error("{message}")]
pub struct Failure {
    /// How a client must react.
    pub kind: ErrorKind,
    /// For programs, stable.
    pub code: String,
    /// For people.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl Failure {
    /// Puts a failure together.
    pub fn new(
        kind: ErrorKind,
        code: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            code: code.into(),
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// The swarm cannot go on with it.
    pub fn unavailable(
        code: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::new(ErrorKind::Unavailable, code, message, hint)
    }

    /// A fault of our own.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(
            ErrorKind::Internal,
            "internal",
            message,
            "send the request again; if it happens again, the log of the node says more",
        )
    }
}

/// Why a request is not taken on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The model cannot be had or cannot be run.
    #[error(transparent)]
    Model(#[from] ModelsError),
    /// No placement of its layers exists.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Prompt and answer do not fit into the context.
    #[error(
        "the prompt has {prompt_tokens} tokens, but the model's context holds {context} and must leave room for an answer"
    )]
    PromptTooLong {
        /// Length of the prompt.
        prompt_tokens: usize,
        /// What the model can hold.
        context: u32,
    },
    /// The prompt has no token at all.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A field of the request is out of its range.
    #[error("{field}: {problem}")]
    BadField {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A chat was sent to a model that has no chat template.
    #[error("the model {model} has no chat template")]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// The chat template cannot render these messages.
    #[error("the chat template of the model refuses these messages: {0}")]
    Template(String),
    /// Enough is running and waiting already.
    #[error("{running} requests run and {waiting} wait; this node takes no more for now")]
    Overloaded {
        /// Sessions that run.
        running: usize,
        /// Requests that wait.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// Not enough other peers are there to keep the session's journal.
    #[error(
        "fault_tolerance `high` needs {needed} more peers that keep the journal; {there} are connected"
    )]
    TooFewReplicas {
        /// Peers that are connected.
        there: usize,
        /// Peers that are needed besides this node.
        needed: usize,
    },
    /// The session is not in the journal, or was forgotten.
    #[error("no session {session} can be gone on with here")]
    SessionNotFound {
        /// Which.
        session: String,
        /// How long sessions are kept for their clients.
        kept: Duration,
    },
    /// The session is there, but cannot be gone on with.
    #[error("session {session} cannot be gone on with: {reason}")]
    NotResumable {
        /// Which.
        session: String,
        /// Why.
        reason: String,
    },
    /// Somebody else is just taking the session up.
    #[error("session {session} is being taken up by another client")]
    SessionBusy {
        /// Which.
        session: String,
    },
    /// The node is being stopped.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// A fault of the node.
    #[error("{0}")]
    Internal(String),
}

impl GenerateError {
    /// How a client must react.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Model(error) => error.kind(),
            Self::Plan(error) => error.kind(),
            Self::PromptTooLong { .. }
            | Self::EmptyPrompt
            | Self::BadField { .. }
            | Self::NoChatTemplate { .. }
            | Self::Template(_) => ErrorKind::BadRequest,
            Self::SessionNotFound { .. } => ErrorKind::NotFound,
            Self::NotResumable { .. } | Self::SessionBusy { .. } => ErrorKind::Conflict,
            Self::Overloaded { .. } => ErrorKind::Overloaded,
            Self::ShuttingDown | Self::TooFewReplicas { .. } => ErrorKind::Unavailable,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// For programs, stable.
    pub fn code(&self) -> &str {
        match self {
            Self::Model(error) => error.code(),
            Self::Plan(error) => error.code(),
            Self::PromptTooLong { .. } => "context_length_exceeded",
            Self::EmptyPrompt => "empty_prompt",
            Self::BadField { .. } => "invalid_value",
            Self::NoChatTemplate { .. } => "no_chat_template",
            Self::Template(_) => "chat_template",
            Self::TooFewReplicas { .. } => TOO_FEW_REPLICAS,
            Self::SessionNotFound { .. } => "session_not_found",
            Self::NotResumable { .. } => "session_not_resumable",
            Self::SessionBusy { .. } => "session_busy",
            Self::Overloaded { .. } => "overloaded",
            Self::ShuttingDown => "shutting_down",
            Self::Internal(_) => "internal",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        let text = match self {
            Self::Model(error) => return error.hint(),
            Self::Plan(error) => return error.hint(),
            Self::PromptTooLong { .. } => {
                "shorten the prompt, or choose a model with a longer context"
            }
            Self::EmptyPrompt => "send at least one token of text",
            Self::BadField { .. } => "correct the field and send the request again",
            Self::NoChatTemplate { .. } => {
                "use /v1/completions (or `accel run`) with plain text, or a model tuned for chat"
            }
            Self::Template(_) => "check the roles and the order of the messages",
            Self::Overloaded { retry_after, .. } => {
                return format!(
                    "try again in {} s, or on another node of the swarm",
                    retry_after.as_secs().max(1)
                );
            }
            Self::TooFewReplicas { .. } => {
                "start more nodes, wait until they are connected (`accel peers`), or ask for \
                 `medium`"
            }
            Self::SessionNotFound { kept, .. } => {
                return format!(
                    "ask the node that took the request, within {} s of the last token, or send \
                     the request again",
                    kept.as_secs()
                );
            }
            Self::NotResumable { .. } => {
                "send the request again, as a stream with fault_tolerance `medium` to be able to \
                 go on"
            }
            Self::SessionBusy { .. } => "try again in a moment, with the same Last-Event-ID",
            Self::ShuttingDown => "send the request to another node of the swarm",
            Self::Internal(_) => {
                "send the request again; if it happens again, the log of the node says more"
            }
        };
        text.to_owned()
    }

    /// When the same request may succeed, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

/// Why a node does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory is in use, unreadable or full.
    #[error(transparent)]
    Storage(Box<accel_storage::StorageError>),
    /// The network cannot be started.
    #[error(transparent)]
    Network(Box<accel_p2p::NetworkError>),
    /// The file with the swarm's key is no good.
    #[error(transparent)]
    SwarmKey(#[from] accel_p2p::membership::KeyFileError),
    /// The file with the swarm's key cannot be read.
    #[error("the swarm key file {path} cannot be read: {source}")]
    KeyFile {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The remembered membership is no good.
    #[error("the membership remembered in {path} cannot be read: {reason}")]
    Membership {
        /// The data directory.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two settings contradict each other.
    #[error("{0}")]
    Conflict(String),
    /// An address to listen on or to join is malformed.
    #[error("{what} `{text}` is malformed: {reason}")]
    BadAddress {
        /// What it was given as.
        what: &'static str,
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system gives no threads.
    #[error("cannot start the node's threads: {0}")]
    Threads(std::io::Error),
}

impl StartError {
    /// How a caller must react.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::SwarmKey(_)
            | Self::KeyFile { .. }
            | Self::Conflict(_)
            | Self::BadAddress { .. } => ErrorKind::BadRequest,
            Self::Storage(_) | Self::Network(_) | Self::Membership { .. } | Self::Threads(_) => {
                ErrorKind::Unavailable
            }
        }
    }

    /// For programs, stable.
    pub fn code(&self) -> &str {
        match self {
            Self::Storage(_) => "storage",
            Self::Network(_) => "network",
            Self::SwarmKey(_) | Self::KeyFile { .. } => "swarm_key",
            Self::Membership { .. } => "membership",
            Self::Conflict(_) => "conflicting_settings",
            Self::BadAddress { .. } => "bad_address",
            Self::Threads(_) => "threads",
        }
    }
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Storage(error)
                if matches!(**error, accel_storage::StorageError::InUse { .. }) =>
            {
                "stop the other node, or give this one its own directory with --data"
            }
            Self::Storage(_) => "check the data directory, or choose another one with --data",
            Self::Network(_) => {
                "check the addresses of --listen and --join, the invite and the key"
            }
            Self::SwarmKey(error) => error.problem.hint(),
            Self::KeyFile { .. } => "give the file that `accel swarm init --out FILE` wrote",
            Self::Membership { .. } => {
                "give --swarm-key, --swarm or --join with an invite again, or choose another --data"
            }
            Self::Conflict(_) => "see `accel up --help`",
            Self::BadAddress { .. } => {
                "addresses look like /ip4/192.168.1.2/tcp/4001, invites begin with accel-invite:"
            }
            Self::Threads(_) => "end other programs, or raise the limit on threads",
        }
    }
}

// Boxed, because an error as large as these would make every result large.
impl From<accel_storage::StorageError> for StartError {
    fn from(error: accel_storage::StorageError) -> Self {
        Self::Storage(Box::new(error))
    }
}

impl From<accel_p2p::NetworkError> for StartError {
    fn from(error: accel_p2p::NetworkError) -> Self {
        Self::Network(Box::new(error))
    }
}
