//! Tokenizers out of a model file's own data: no other file is needed.
//!
//! * `data` – what the header says, checked ([`TokenizerData`]);
//! * `special` – cuts a text at its control and user-defined tokens;
//! * `bpe` – byte pairs (`gpt2`), after `split` cut the text into words; `spm` – SentencePiece
//!   (`llama`);
//! * `lookup` – finds tokens by their texts; `spelling` – their bytes;
//! * `stream` – back to text, token by token ([`StreamDecoder`]).
//!
//! The token ids are those that llama.cpp gives for the same file and text, with three exceptions:
//! text cannot spell control tokens unless the caller asks for them (llama.cpp lets pieces join to
//! one), a text that begins with BOS does not get a second one, and `</s>` is what the file says
//! that it is (llama.cpp takes it for a control token everywhere).

mod alphabet;
mod bpe;
mod data;
mod error;
mod lookup;
mod special;
mod spelling;
mod split;
mod spm;
mod stream;
#[cfg(test)]
mod tests;

pub use data::{TokenKind, TokenizerData};
pub use error::TokenizerError;
pub use stream::StreamDecoder;

use crate::gguf::Gguf;
use bpe::BytePairs;
use special::{Fragment, SpecialTokens};
use spelling::Spelling;
use spm::SentencePiece;
use std::collections::BTreeSet;

/// The longest text that is taken: about two million tokens.
pub const MAX_TEXT_BYTES: usize = 8 << 20;

/// Values of `tokenizer.ggml.model` that are built.
const KNOWN_MODELS: [&str; 2] = ["gpt2", "llama"];

/// Control tokens that end an answer in some family of models, whatever the file's keys say:
/// chat models often name only one of theirs.
const END_NAMES: [&str; 11] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "</s>",
];

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    family: Family,
    special: SpecialTokens,
    kinds: Vec<TokenKind>,
    spelling: Spelling,
    bos: Option<u32>,
    eos: Option<u32>,
    ends: BTreeSet<u32>,
    add_bos: bool,
    add_eos: bool,
}

#[derive(Debug)]
enum Family {
    BytePairs(BytePairs),
    SentencePiece(SentencePiece),
}

impl Tokenizer {
    /// The tokenizer of a model file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(&TokenizerData::from_gguf(gguf)?)
    }

    /// A tokenizer from its data.
    pub fn new(data: &TokenizerData) -> Result<Self, TokenizerError> {
        data.check()?;
        let spelling = Spelling::new(data, data.model == "gpt2");
        let (family, adds_bos) = match data.model.as_str() {
            "gpt2" => {
                let adds_bos = BytePairs::adds_bos(data);
                (
                    Family::BytePairs(BytePairs::new(data, &spelling)?),
                    adds_bos,
                )
            }
            "llama" => (Family::SentencePiece(SentencePiece::new(data)?), true),
            other => {
                return Err(TokenizerError::UnknownModel {
                    name: data::shown(other),
                    known: KNOWN_MODELS.join(", "),
                });
            }
        };
        Ok(Self {
            family,
            special: SpecialTokens::new(data)?,
            kinds: data.iter().map(|(_, _, kind)| kind).collect(),
            spelling,
            bos: data.bos,
            eos: data.eos,
            ends: ends(data),
            add_bos: data.add_bos.unwrap_or(adds_bos),
            add_eos: data.add_eos.unwrap_or(false),
        })
    }

    /// The tokens of a text.
    ///
    /// `add_special` adds BOS and EOS where the model wants them. `parse_special` reads the text
    /// of control tokens (`<|im_start|>`) as those tokens: for rendered chat templates; without
    /// it they are plain text.
    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizerError::TooLong {
                bytes: text.len(),
                limit: MAX_TEXT_BYTES,
            });
        }
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        let (first, last) = self.affixes(add_special);
        let mut fragments = self.special.split(text, parse_special);
        if first.is_some() && fragments.first().copied() == first.map(Fragment::Token) {
            fragments.remove(0);
        }
        ids.extend(first);
        let mut opens = true;
        for fragment in fragments {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => self.encode_text(text, opens, &mut ids)?,
            }
            opens = matches!(fragment, Fragment::Token(_));
        }
        ids.extend(last);
        Ok(ids)
    }

    fn encode_text(
        &self,
        text: &str,
        opens: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        match &self.family {
            Family::BytePairs(family) => family.encode(text, &self.spelling, ids),
            Family::SentencePiece(family) => family.encode(text, opens, ids),
        }
    }

    /// What goes before and after a whole text.
    fn affixes(&self, add_special: bool) -> (Option<u32>, Option<u32>) {
        let first = self.first().filter(|_| add_special);
        let last = self.eos.filter(|_| add_special && self.add_eos);
        (first, last)
    }

    /// The text of tokens. Control tokens are not text; broken characters become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.text_bytes(id))
            .copied()
            .collect();
        let text = String::from_utf8_lossy(&bytes);
        let text = match &self.family {
            // Takes back the space that `encode` put there.
            Family::SentencePiece(family) if family.adds_space => {
                text.strip_prefix(' ').unwrap_or(&text)
            }
            _ => &text,
        };
        text.to_owned()
    }

    /// The bytes of a token, which may be a part of a character only. Of a control token: its
    /// name. `None` for an id beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.spelling.bytes(id)
    }

    /// What a token adds to the text of an answer: nothing unless it is text.
    pub fn text_bytes(&self, id: u32) -> &[u8] {
        match self.kind(id) {
            Some(kind) if kind.is_text() => self.token_bytes(id).unwrap_or_default(),
            _ => &[],
        }
    }

    /// What a token is for; `None` for an id beyond the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Whether the model ends its answer with this token.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Every token that ends an answer.
    pub fn ends(&self) -> impl Iterator<Item = u32> + '_ {
        self.ends.iter().copied()
    }

    /// The token that the model wants in front of every text: BOS, or none.
    pub fn first(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Number of tokens.
    pub fn vocab(&self) -> usize {
        self.kinds.len()
    }
}

/// The tokens that end an answer: those that the file names, and those known by their name.
fn ends(data: &TokenizerData) -> BTreeSet<u32> {
    let named = data.eos.into_iter().chain(data.ends.iter().copied());
    let known = data.iter().filter(|(_, token, kind)| {
        // Not user-defined ones: Gemma's `</s>` is a tag of HTML.
        *kind == TokenKind::Control && END_NAMES.contains(token)
    });
    named.chain(known.map(|(id, _, _)| id)).collect()
}
