//! How a stream is written, in a form that lasts: the session keeps it, so that a client which
//! comes back gets the rest as it got the beginning.

use serde::{Deserialize, Serialize};

use super::openai::response::{Answer, Kind};

/// What of an answer depends on the request and not on the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    pub kind: Kind,
    /// Seconds since 1970.
    pub created: u64,
    pub logprobs: bool,
    pub token_ids: bool,
    pub include_usage: bool,
}

impl Form {
    /// As the session keeps it.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("flags and numbers always serialise")
    }

    /// Reads it back; none when another version wrote it.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The answer of a session in this form.
    pub fn answer(self, session: String, model: String) -> Answer {
        Answer {
            kind: self.kind,
            session,
            model,
            created: self.created,
            logprobs: self.logprobs,
            token_ids: self.token_ids,
            include_usage: self.include_usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_survives_and_nonsense_is_none() {
        for kind in [Kind::Chat, Kind::Text] {
            let form = Form {
                kind,
                created: 1_700_000_000,
                logprobs: true,
                token_ids: false,
                include_usage: true,
            };
            assert_eq!(Form::read(&form.to_text()), Some(form));
        }
        for nonsense in ["", "{}", "[]", "{\"kind\":\"song\"}"] {
            assert_eq!(Form::read(nonsense), None);
        }
    }
}
