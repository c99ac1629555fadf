//! The tokenizer as a GGUF header describes it, checked for what every family relies on.

use super::{END_NAMES, TokenizerError};
use crate::gguf::{Gguf, Metadata, Strings};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MODEL: &str = "tokenizer.ggml.model";

/// What a token is for: the numbers of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Steers the model (`<|im_start|>`); not text.
    Control,
    /// Text that is one token wherever it occurs.
    UserDefined,
    /// Fills a place in the vocabulary.
    Unused,
    /// One byte of a character that has no token.
    Byte,
}

impl TokenKind {
    /// Whether the token adds to the text of an answer.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined | Self::Byte)
    }

    fn from_gguf(number: i32) -> Result<Self, TokenizerError> {
        Ok(match number {
            // Some converters leave a type undefined; llama.cpp reads that as plain text, too.
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            other => return Err(corrupt(format!("a token has the unknown type {other}"))),
        })
    }
}

/// A vocabulary with its rules, as far as the families of tokenizers share them.
#[derive(Debug, Clone, Default)]
pub struct TokenizerData {
    /// The family: `gpt2` (byte pairs) or `llama` (SentencePiece).
    pub model: String,
    /// Names the pattern that splits a text before byte pairs are merged.
    pub pre: Option<String>,
    /// Every token, as its family spells it.
    pub tokens: Strings,
    /// One per token, or none at all: then every token is plain text.
    pub kinds: Vec<TokenKind>,
    /// One per token for SentencePiece: higher ones are merged first.
    pub scores: Vec<f32>,
    /// `left right`, most urgent first, for byte pairs.
    pub merges: Strings,
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends a sequence.
    pub eos: Option<u32>,
    /// Stands for what cannot be spelt.
    pub unknown: Option<u32>,
    /// Further tokens that end an answer (end of turn, end of message).
    pub ends: Vec<u32>,
    /// Whether a sequence begins with `bos`; the family decides when absent.
    pub add_bos: Option<bool>,
    /// Whether a sequence ends with `eos`.
    pub add_eos: Option<bool>,
    /// Whether a text is preceded by a space; SentencePiece does so when absent.
    pub add_space_prefix: Option<bool>,
    /// Whether spaces and line ends after a special token belong to it (Phi-3).
    pub strips_after_special: bool,
}

impl TokenizerData {
    /// Reads the tokenizer of a model file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let metadata = &gguf.metadata;
        let id = |name: &str| metadata.u32(&format!("tokenizer.ggml.{name}_token_id"));
        let flag = |name: &str| metadata.bool(&format!("tokenizer.ggml.{name}"));
        let model = metadata.str(MODEL);
        let tokens = metadata.strings(TOKENS);
        // SentencePiece's own ids, which early converters did not write.
        let count = tokens.map_or(0, Strings::len);
        let default = |id: u32| (model == Some("llama") && (id as usize) < count).then_some(id);
        let data = Self {
            model: model
                .ok_or(TokenizerError::Missing { key: MODEL })?
                .to_owned(),
            pre: metadata.str("tokenizer.ggml.pre").map(str::to_owned),
            tokens: tokens
                .ok_or(TokenizerError::Missing { key: TOKENS })?
                .clone(),
            kinds: kinds(metadata, tokens)?,
            scores: metadata
                .f32s("tokenizer.ggml.scores")
                .unwrap_or_default()
                .to_vec(),
            merges: metadata
                .strings("tokenizer.ggml.merges")
                .cloned()
                .unwrap_or_default(),
            bos: id("bos").or(default(1)),
            eos: id("eos").or(default(2)),
            unknown: id("unknown").or(default(0)),
            ends: ["eot", "eom"].into_iter().filter_map(id).collect(),
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            add_space_prefix: flag("add_space_prefix"),
            strips_after_special: is_phi3(metadata),
        };
        data.check()?;
        Ok(data)
    }

    /// What the token is for.
    pub fn kind(&self, id: u32) -> TokenKind {
        let kind = self.kinds.get(id as usize).copied();
        kind.unwrap_or(TokenKind::Normal)
    }

    /// How a token is spelt; an id beyond the vocabulary is not.
    pub(super) fn text(&self, id: u32) -> &str {
        self.tokens.get(id as usize).unwrap_or_default()
    }

    /// Every token with its id and kind.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        let ids = 0u32..;
        ids.zip(self.tokens.iter())
            .map(|(id, token)| (id, token, self.kind(id)))
    }

    /// Lists must fit each other, and every id must name a token.
    pub(super) fn check(&self) -> Result<(), TokenizerError> {
        let count = self.tokens.len();
        if count == 0 || u32::try_from(count).is_err() {
            return Err(corrupt(format!("it has {count} tokens")));
        }
        for (what, len) in [("types", self.kinds.len()), ("scores", self.scores.len())] {
            if len != 0 && len != count {
                return Err(corrupt(format!("{len} {what} for {count} tokens")));
            }
        }
        let named = [self.bos, self.eos, self.unknown].into_iter().flatten();
        for id in named.chain(self.ends.iter().copied()) {
            if id as usize >= count {
                return Err(corrupt(format!("special token {id} of {count} tokens")));
            }
        }
        Ok(())
    }
}

fn kinds(metadata: &Metadata, tokens: Option<&Strings>) -> Result<Vec<TokenKind>, TokenizerError> {
    let numbers = metadata.i32s("tokenizer.ggml.token_type");
    let kinds = numbers.unwrap_or_default().iter();
    let kinds: Result<Vec<_>, _> = kinds.map(|&number| TokenKind::from_gguf(number)).collect();
    let mut kinds = kinds?;
    let tokens = tokens.into_iter().flat_map(Strings::iter);
    for (kind, token) in kinds.iter_mut().zip(tokens) {
        // Some converters take these for text. `</s>` may really be text: it is a tag of HTML.
        if kind.is_text() && token != "</s>" && END_NAMES.contains(&token) {
            *kind = TokenKind::Control;
        }
    }
    Ok(kinds)
}

/// Phi-3's special tokens take the spaces after them. Files do not say so: llama.cpp knows these
/// models by their name, and so must we.
fn is_phi3(metadata: &Metadata) -> bool {
    let name = metadata.str("general.name").unwrap_or_default();
    let name = name.to_ascii_lowercase();
    name.contains("phi-3") || name.contains("phi3")
}

/// The beginning of a text out of a file, for an error message: strangers write these.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

pub(super) fn corrupt(reason: String) -> TokenizerError {
    TokenizerError::Corrupt { reason }
}
