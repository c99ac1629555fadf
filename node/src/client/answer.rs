//! Listens to a streamed answer: shows its text as it comes and keeps what it was made of.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Client, Event, Lasting};
use crate::failure::Failure;

/// An answer that was heard to its end.
#[derive(Debug, Default)]
pub struct Heard {
    /// The session that computed it.
    pub session: String,
    pub text: String,
    pub token_ids: Vec<u32>,
    pub finish_reason: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// From sending the request to the first token, as this client measured it.
    pub first_token_s: f64,
    /// From the first token to the last, as this client measured it.
    pub decode_s: f64,
    /// Tokens per second after the first as the node measured them, once it was asked.
    pub node_tokens_per_s: Option<f64>,
}

impl Heard {
    /// Asks the node how fast the session was: a client that has to wait for its turn to run reads
    /// several tokens at once.
    pub async fn ask_for_speed(&mut self, client: &Client) -> Result<(), Failure> {
        let path = format!("/api/v1/sessions/{}", self.session);
        let session = client.get(&path).await?;
        let speed = session.pointer("/tokens_per_s/value");
        self.node_tokens_per_s = speed.and_then(Value::as_f64);
        Ok(())
    }

    /// Tokens per second after the first; absent when there was no second one.
    pub fn tokens_per_s(&self) -> Option<f64> {
        if self.node_tokens_per_s.is_some() {
            return self.node_tokens_per_s;
        }
        let more = self
            .token_ids
            .len()
            .checked_sub(1)
            .filter(|more| *more > 0)?;
        (self.decode_s > 0.0).then(|| more as f64 / self.decode_s)
    }

    /// For programs; figures say where they come from.
    pub fn json(&self) -> Value {
        let measured = |value: Option<f64>| json!({"value": value, "tag": "measured"});
        json!({
            "session": self.session,
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_s": measured(Some(self.first_token_s)),
            "tokens_per_s": measured(self.tokens_per_s()),
        })
    }

    fn take(&mut self, event: &Event) -> String {
        if let Some((session, _)) = event.id.as_deref().and_then(|id| id.rsplit_once(':')) {
            self.session = session.to_owned();
        }
        if let Some(usage) = event.data.get("usage").filter(|usage| usage.is_object()) {
            let count = |key: &str| usage.get(key).and_then(Value::as_u64).unwrap_or(0);
            self.prompt_tokens = count("prompt_tokens");
            self.completion_tokens = count("completion_tokens");
        }
        let Some(choice) = event.data.pointer("/choices/0") else {
            return String::new();
        };
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.finish_reason = reason.to_owned();
        }
        let ids = choice.get("token_ids").and_then(Value::as_array);
        let ids = ids.into_iter().flatten().filter_map(Value::as_u64);
        self.token_ids
            .extend(ids.filter_map(|id| u32::try_from(id).ok()));
        let text = choice.pointer("/delta/content").or(choice.get("text"));
        let text = text.and_then(Value::as_str).unwrap_or_default().to_owned();
        self.text.push_str(&text);
        text
    }
}

/// Sends a request for a stream and hands every piece of text to `show`, once. A stream that
/// breaks is gone on with.
pub async fn listen(
    client: &Client,
    path: &str,
    mut request: Value,
    show: &mut dyn FnMut(&str) -> Result<(), Failure>,
) -> Result<Heard, Failure> {
    if let Value::Object(fields) = &mut request {
        fields.insert("stream".into(), json!(true));
        fields.insert("stream_options".into(), json!({"include_usage": true}));
        fields.insert("return_token_ids".into(), json!(true));
    }
    let mut heard = Heard::default();
    let start = Instant::now();
    let mut first: Option<Duration> = None;
    let mut last = Duration::ZERO;
    let events = client.stream(path, &request).await?;
    let mut events = Lasting::new(client, events);
    while let Some(event) = events.next().await? {
        let before = heard.token_ids.len();
        let text = heard.take(&event);
        if heard.token_ids.len() > before {
            last = start.elapsed();
            first.get_or_insert(last);
        }
        if !text.is_empty() {
            show(&text)?;
        }
    }
    if heard.finish_reason.is_empty() {
        let failure = Failure::new("the answer broke off without saying why");
        return Err(failure.with_hint("look at the log of the node, and try again"));
    }
    let first = first.unwrap_or(last);
    heard.first_token_s = first.as_secs_f64();
    heard.decode_s = (last - first).as_secs_f64();
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: Option<&str>, data: Value) -> Event {
        Event {
            id: id.map(str::to_owned),
            data,
        }
    }

    #[test]
    fn chunks_of_both_kinds_add_up() {
        let mut heard = Heard::default();
        let chunks = [
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}, "token_ids": []}]}),
            json!({"choices": [{"delta": {"content": "a"}, "token_ids": [5]}], "usage": null}),
            json!({"choices": [{"text": "b", "token_ids": [6]}]}),
            json!({"choices": [{"delta": {}, "finish_reason": "stop", "token_ids": []}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
        ];
        for chunk in chunks {
            heard.take(&event(Some("5e55:0"), chunk));
        }
        assert_eq!(heard.session, "5e55");
        assert_eq!(
            (heard.text.as_str(), heard.token_ids.as_slice()),
            ("ab", &[5, 6][..])
        );
        assert_eq!((heard.prompt_tokens, heard.completion_tokens), (3, 2));
        assert_eq!(heard.finish_reason, "stop");
    }

    #[test]
    fn a_single_token_has_no_speed() {
        let mut heard = Heard {
            token_ids: vec![1],
            decode_s: 0.0,
            ..Heard::default()
        };
        assert_eq!(heard.tokens_per_s(), None);
        heard.token_ids = vec![1, 2, 3];
        heard.decode_s = 0.5;
        assert_eq!(heard.tokens_per_s(), Some(4.0));
        heard.node_tokens_per_s = Some(3.0);
        assert_eq!(heard.tokens_per_s(), Some(3.0));
    }
}
