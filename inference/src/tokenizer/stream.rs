//! From tokens to text, one token at a time, never through the middle of a character.

use super::Tokenizer;
use std::sync::Arc;

/// Turns the tokens of an answer into text as they arrive. A character whose bytes are spread
/// over several tokens comes out whole with the last of them.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    /// The beginning of a character; at most three bytes between calls.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder at the beginning of an answer.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            pending: Vec::new(),
        }
    }

    /// Takes the next token; gives the text that is complete with it, often none. Control tokens
    /// are not text. Bytes that can never become a character become U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        self.pending
            .extend_from_slice(self.tokenizer.text_bytes(id));
        let mut text = String::new();
        while let Some(rest) = self.take_valid(&mut text) {
            self.pending.drain(..rest);
        }
        text
    }

    /// The end of the answer: a character that was never completed becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Moves what is valid into `text`; says how many bytes are done with when more may follow.
    fn take_valid(&self, text: &mut String) -> Option<usize> {
        let mut chunks = self.pending.utf8_chunks();
        let chunk = chunks.next()?;
        text.push_str(chunk.valid());
        let is_last = chunks.next().is_none();
        let done = chunk.valid().len();
        if chunk.invalid().is_empty() || (is_last && may_grow(chunk.invalid())) {
            return (done > 0).then_some(done);
        }
        text.push(char::REPLACEMENT_CHARACTER);
        Some(done + chunk.invalid().len())
    }
}

/// Whether these bytes are the beginning of a character and not merely wrong.
fn may_grow(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}
