//! Answers: the whole of one, and the chunks of a stream, for both kinds of completion.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Which of OpenAI's two endpoints is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model said so, or a stop string was met.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

impl Finish {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// How many tokens a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: u64,
    pub completion: u64,
}

/// One token with its bytes: a token may be a part of a character.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

/// One emitted token.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    pub id: u32,
    /// What the stream may show now; empty while a character or a stop string is incomplete.
    pub text: String,
    pub scored: Scored,
    /// The likeliest tokens at this position.
    pub top: Vec<Scored>,
}

/// What all chunks of one answer have in common.
#[derive(Debug, Clone)]
pub struct Answer {
    pub kind: Kind,
    /// The session that computes the answer.
    pub session: String,
    pub model: String,
    /// Seconds since 1970.
    pub created: u64,
    pub logprobs: bool,
    pub token_ids: bool,
    /// A stream that ends with the usage has a null usage in every other chunk.
    pub include_usage: bool,
}

impl Answer {
    /// The answer in one piece.
    pub fn whole(&self, pieces: &[Piece], tail: &str, finish: Finish, usage: Usage) -> Value {
        let mut text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        text.push_str(tail);
        let content = match self.kind {
            Kind::Chat => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                ("message", message)
            }
            Kind::Text => ("text", json!(text)),
        };
        let choice = self.choice(content, pieces, Some(finish), 0);
        let mut body = self.envelope(false, vec![choice]);
        body.insert("usage".into(), usage_json(usage));
        Value::Object(body)
    }

    /// The first chunk of a chat tells who speaks; a text has no such chunk.
    pub fn opening(&self) -> Option<Value> {
        match self.kind {
            Kind::Chat => {
                let delta = json!({"role": "assistant", "content": "", "refusal": null});
                let choice = self.choice(("delta", delta), &[], None, 0);
                Some(self.chunk(vec![choice]))
            }
            Kind::Text => None,
        }
    }

    /// The chunk of one token. `offset` is how many characters of text came before it.
    pub fn token(&self, piece: &Piece, offset: usize) -> Value {
        let content = match self.kind {
            Kind::Chat => ("delta", json!({"content": piece.text})),
            Kind::Text => ("text", json!(piece.text)),
        };
        let choice = self.choice(content, std::slice::from_ref(piece), None, offset);
        self.chunk(vec![choice])
    }

    /// The last chunk with a choice: the text that was held back, and why the answer ended.
    pub fn closing(&self, tail: &str, finish: Finish) -> Value {
        let content = match self.kind {
            Kind::Chat if tail.is_empty() => ("delta", json!({})),
            Kind::Chat => ("delta", json!({"content": tail})),
            Kind::Text => ("text", json!(tail)),
        };
        self.chunk(vec![self.choice(content, &[], Some(finish), 0)])
    }

    /// The chunk with the usage, which has no choice.
    pub fn usage(&self, usage: Usage) -> Value {
        let mut body = self.envelope(true, Vec::new());
        body.insert("usage".into(), usage_json(usage));
        Value::Object(body)
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut body = self.envelope(true, choices);
        if self.include_usage {
            body.insert("usage".into(), Value::Null);
        }
        Value::Object(body)
    }

    fn envelope(&self, chunk: bool, choices: Vec<Value>) -> Map<String, Value> {
        let (prefix, object) = match (self.kind, chunk) {
            (Kind::Chat, false) => ("chatcmpl", "chat.completion"),
            (Kind::Chat, true) => ("chatcmpl", "chat.completion.chunk"),
            (Kind::Text, _) => ("cmpl", "text_completion"),
        };
        let mut body = Map::new();
        body.insert("id".into(), json!(format!("{prefix}-{}", self.session)));
        body.insert("object".into(), json!(object));
        body.insert("created".into(), json!(self.created));
        body.insert("model".into(), json!(self.model));
        body.insert("choices".into(), Value::Array(choices));
        body
    }

    fn choice(
        &self,
        (key, content): (&str, Value),
        pieces: &[Piece],
        finish: Option<Finish>,
        offset: usize,
    ) -> Value {
        let mut choice = Map::new();
        choice.insert("index".into(), json!(0));
        choice.insert(key.into(), content);
        choice.insert("logprobs".into(), self.logprobs_of(pieces, offset));
        choice.insert("finish_reason".into(), json!(finish.map(Finish::name)));
        if self.token_ids {
            let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
            choice.insert("token_ids".into(), json!(ids));
        }
        Value::Object(choice)
    }

    fn logprobs_of(&self, pieces: &[Piece], offset: usize) -> Value {
        if !self.logprobs || pieces.is_empty() {
            return Value::Null;
        }
        match self.kind {
            Kind::Chat => {
                let content: Vec<Value> = pieces.iter().map(chat_logprob).collect();
                json!({"content": content, "refusal": null})
            }
            Kind::Text => text_logprobs(pieces, offset),
        }
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    })
}

fn chat_logprob(piece: &Piece) -> Value {
    let top: Vec<Value> = piece.top.iter().map(scored).collect();
    let mut entry = scored(&piece.scored);
    if let Value::Object(fields) = &mut entry {
        fields.insert("top_logprobs".into(), Value::Array(top));
    }
    entry
}

fn scored(token: &Scored) -> Value {
    json!({
        "token": String::from_utf8_lossy(&token.bytes),
        "logprob": finite(token.logprob),
        "bytes": token.bytes,
    })
}

fn text_logprobs(pieces: &[Piece], offset: usize) -> Value {
    let mut tokens = Vec::new();
    let mut logprobs = Vec::new();
    let mut tops = Vec::new();
    let mut offsets = Vec::new();
    let mut position = offset;
    for piece in pieces {
        tokens.push(json!(String::from_utf8_lossy(&piece.scored.bytes)));
        logprobs.push(json!(finite(piece.scored.logprob)));
        let mut top = Map::new();
        for other in &piece.top {
            let name = String::from_utf8_lossy(&other.bytes).into_owned();
            top.insert(name, json!(finite(other.logprob)));
        }
        tops.push(Value::Object(top));
        offsets.push(json!(position));
        position += piece.text.chars().count();
    }
    json!({
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    })
}

/// JSON has no infinity; OpenAI writes -9999 for a token of no probability.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        -9999.0
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
