//! What a command tells a person when it cannot go on: one `error:` line and, where the next
//! step is known, one `hint:` line.

use std::error::Error;
use std::fmt;

/// A command's failure, ready to be shown.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    quiet: bool,
}

impl Failure {
    /// A failure that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            quiet: false,
        }
    }

    /// A failure of which the reader already knows: the other end of stdout went away.
    pub fn quiet() -> Self {
        Self {
            message: "the reader of the output went away".into(),
            hint: None,
            quiet: true,
        }
    }

    /// Adds what to do next. An empty hint adds nothing.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        if !hint.is_empty() {
            self.hint = Some(hint);
        }
        self
    }

    /// Puts what was being done before the message: `could not X: message`.
    #[must_use]
    pub fn while_doing(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Whether nothing should be printed.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Joins an error with its causes, leaving out causes that the message already contains.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// Errors without a hint of their own.
macro_rules! without_hint {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(chain(&error))
            }
        }
    )*};
}

/// Errors that know what to do next.
macro_rules! with_hint {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                let hint = error.hint();
                Self::new(chain(&error)).with_hint(hint)
            }
        }
    )*};
}

without_hint!(std::io::Error, serde_json::Error);
with_hint!(
    accel_actors::StartError,
    crate::api::KeyError,
    crate::client::ClientError,
    crate::config::ConfigError,
    crate::sources::SourceError,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_stands_on_its_own_line() {
        let failure = Failure::new("no node").with_hint("start one");
        assert_eq!(failure.to_string(), "error: no node\nhint: start one");
        let bare = Failure::new("no node").with_hint("");
        assert_eq!(bare.to_string(), "error: no node");
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("could not read the file")]
        struct Outer(#[source] std::io::Error);
        let outer = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&outer), "could not read the file: disk on fire");
    }
}
