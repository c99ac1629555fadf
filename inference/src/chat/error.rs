//! Why a conversation cannot be written for a model.

use super::helpers::Raised;
use minijinja::{Error, ErrorKind};

/// Why a chat template does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template's source is longer than any honest one.
    #[error(
        "the model's chat template has {bytes} bytes (the limit is {limit}); use another model"
    )]
    TemplateTooLong {
        /// Length of the source.
        bytes: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// The template is not valid Jinja.
    #[error("the model's chat template is broken in line {line}: {reason}; use another model")]
    BadTemplate {
        /// Line of the template, from 1; 0 when not known.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The messages are longer than any context.
    #[error("the conversation has {bytes} bytes (the limit is {limit}); send a shorter one")]
    ConversationTooLong {
        /// Length of all messages.
        bytes: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// The template itself refuses the conversation.
    #[error("the model's chat template refuses these messages: {message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// The template asked for too much time or memory.
    #[error("the model's chat template takes too much time or memory; send fewer messages")]
    TooExpensive,
    /// The template cannot be run on this conversation.
    #[error("the model's chat template fails in line {line}: {reason}; use another model")]
    Render {
        /// Line of the template, from 1; 0 when not known.
        line: usize,
        /// What went wrong there.
        reason: String,
    },
}

impl ChatError {
    pub(super) fn bad_template(error: Error) -> Self {
        Self::BadTemplate {
            line: error.line().unwrap_or(0),
            reason: reason(&error),
        }
    }

    pub(super) fn from_render(error: Error) -> Self {
        if let Some(message) = raised(&error) {
            return Self::Refused { message };
        }
        if error.kind() == ErrorKind::OutOfFuel {
            return Self::TooExpensive;
        }
        Self::Render {
            line: error.line().unwrap_or(0),
            reason: reason(&error),
        }
    }
}

fn reason(error: &Error) -> String {
    let detail = error.detail().map(|detail| format!(": {detail}"));
    format!("{}{}", error.kind(), detail.unwrap_or_default())
}

/// What `raise_exception` was called with, if that is how the rendering ended.
fn raised(error: &Error) -> Option<String> {
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        if let Some(Raised(message)) = source.downcast_ref::<Raised>() {
            return Some(message.clone());
        }
        cause = source.source();
    }
    None
}
