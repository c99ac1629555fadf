//! From tokens to clean text: whole characters only, nothing of a stop text, no special tokens.

use std::sync::Arc;

use accel_inference::{StopMatcher, StreamDecoder, Tokenizer};

/// What a token adds to the text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// A stop text is complete: the answer ends before it.
    pub(crate) stopped: bool,
}

/// Turns the tokens of one answer into text. Pure: the same tokens give the same pieces.
pub(crate) trait TextPipe: Send {
    /// Takes the next token.
    fn push(&mut self, token: u32) -> Piece;
    /// What was held back, once no token follows.
    fn finish(&mut self) -> String;
    /// Whether the model ends its answer with this token.
    fn is_end(&self, token: u32) -> bool;
}

/// The text of an answer by a real tokenizer.
pub(crate) struct AnswerText {
    tokenizer: Arc<Tokenizer>,
    decoder: StreamDecoder,
    stop: StopMatcher,
}

impl AnswerText {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, stop: StopMatcher) -> Self {
        Self {
            decoder: StreamDecoder::new(Arc::clone(&tokenizer)),
            stop,
            tokenizer,
        }
    }
}

impl TextPipe for AnswerText {
    fn push(&mut self, token: u32) -> Piece {
        let text = self.decoder.push(token);
        let outcome = self.stop.push(&text);
        Piece {
            text: outcome.text,
            stopped: outcome.stopped,
        }
    }

    fn finish(&mut self) -> String {
        let rest = self.decoder.finish();
        let outcome = self.stop.push(&rest);
        let held = self.stop.finish();
        outcome.text + &held
    }

    fn is_end(&self, token: u32) -> bool {
        self.tokenizer.is_end(token)
    }
}
