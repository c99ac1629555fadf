//! A client that keeps what it has heard, whatever happens to its streams.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::client::{Stream, delta};

/// See the module.
#[derive(Debug, Default)]
pub struct Listener {
    /// The text so far.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// The id of the last event that had one.
    pub last_id: String,
}

impl Listener {
    /// Reads so many tokens, or to the end; whether it was the end.
    pub async fn hear(&mut self, stream: &mut Stream, tokens: usize) -> Result<bool> {
        let end = self.tokens.saturating_add(tokens);
        while self.tokens < end {
            let Some(event) = stream.next().await? else {
                return Ok(true);
            };
            if let Some(error) = event.get("error") {
                bail!("the answer ended with {error}");
            }
            self.take(stream, &event);
        }
        Ok(false)
    }

    /// Reads to the error in which the stream ends.
    pub async fn hear_error(&mut self, stream: &mut Stream) -> Result<Value> {
        while let Some(event) = stream.next().await? {
            if let Some(error) = event.get("error") {
                return Ok(error.clone());
            }
            self.take(stream, &event);
        }
        bail!(
            "the stream ended after {} tokens, without an error",
            self.tokens
        )
    }

    fn take(&mut self, stream: &Stream, event: &Value) {
        self.text.push_str(delta(event));
        let ids = event.pointer("/choices/0/token_ids");
        self.tokens += ids.and_then(Value::as_array).map_or(0, Vec::len);
        if let Some(id) = stream.last_id() {
            id.clone_into(&mut self.last_id);
        }
    }

    /// Reads to the end.
    pub async fn hear_all(&mut self, mut stream: Stream) -> Result<()> {
        let is_end = self.hear(&mut stream, usize::MAX).await?;
        assert!(is_end);
        Ok(())
    }

    /// The session.
    pub fn session(&self) -> &str {
        self.last_id.split(':').next().unwrap_or_default()
    }
}
