//! Reference files: what another engine answered.

use super::EvalError;
use serde::Deserialize;
use std::path::Path;

/// Reference files are a few dozen kilobytes; anything far beyond is another file.
const MAX_BYTES: u64 = 64 << 20;

/// The answers of another engine.
#[derive(Debug, Clone, Deserialize)]
pub struct Reference {
    /// One entry per prompt.
    pub completions: Vec<Completion>,
}

/// One prompt and its answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Completion {
    /// The prompt's tokens.
    pub prompt_tokens: Vec<u32>,
    /// The answer's tokens.
    pub tokens: Vec<u32>,
    /// For each token of the answer, the most likely tokens there with their log-probabilities.
    pub top5: Vec<Vec<(u32, f64)>>,
}

impl Reference {
    /// Reads and checks a reference file.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let read_error = |source| EvalError::Read {
            path: path.to_path_buf(),
            source,
        };
        let bad = |reason: String| EvalError::BadReference {
            path: path.to_path_buf(),
            reason,
        };
        let len = std::fs::metadata(path).map_err(read_error)?.len();
        if len > MAX_BYTES {
            return Err(bad(format!("{len} bytes are far too many")));
        }
        let text = std::fs::read(path).map_err(read_error)?;
        let reference: Self =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        for completion in &reference.completions {
            completion
                .check()
                .map_err(|reason| bad(reason.to_owned()))?;
        }
        if reference.completions.is_empty() {
            return Err(bad("it has no completions".to_owned()));
        }
        Ok(reference)
    }
}

impl Completion {
    fn check(&self) -> Result<(), &'static str> {
        if self.prompt_tokens.is_empty() || self.tokens.is_empty() {
            return Err("a completion lacks its prompt or its answer");
        }
        let is_listed = self.top5.iter().all(|listed| !listed.is_empty());
        if self.top5.len() != self.tokens.len() || !is_listed {
            return Err("a completion has not one list of likely tokens per token");
        }
        Ok(())
    }

    /// Tokens that are fed in all.
    pub(super) fn len(&self) -> usize {
        self.prompt_tokens.len() + self.tokens.len()
    }

    /// The prompt without its last token, and that token.
    pub(super) fn split_prompt(&self) -> (&[u32], u32) {
        let split = self.prompt_tokens.split_last();
        let (last, before) = split.expect("a checked completion has a prompt");
        (before, *last)
    }

    /// The tokens of the answer with what the reference lists for them.
    pub(super) fn targets(&self) -> impl Iterator<Item = (u32, &[(u32, f64)])> {
        let listed = self.top5.iter().map(Vec::as_slice);
        self.tokens.iter().copied().zip(listed)
    }
}
