//! The bytes that tokens stand for.

use super::data::{TokenKind, TokenizerData};
use super::{alphabet, spm};

/// The bytes of every token, one after the other.
#[derive(Debug)]
pub(super) struct Spelling {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<u32>,
}

impl Spelling {
    /// Spells all tokens: of a vocabulary of byte pairs, or of SentencePiece.
    pub(super) fn new(data: &TokenizerData, is_byte_pairs: bool) -> Self {
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(data.tokens.len());
        for (_, token, kind) in data.iter() {
            match kind {
                TokenKind::Normal | TokenKind::Unused if is_byte_pairs => {
                    // A token that is not of the alphabet was added as it reads.
                    match alphabet::bytes_of(token) {
                        Some(spelt) => bytes.extend(spelt),
                        None => bytes.extend(token.as_bytes()),
                    }
                }
                TokenKind::Normal | TokenKind::Unused => {
                    bytes.extend(token.replace(spm::SPACE, " ").as_bytes());
                }
                TokenKind::Byte => match spm::byte_of(token) {
                    Some(byte) => bytes.push(byte),
                    None => bytes.extend(token.as_bytes()),
                },
                _ => bytes.extend(token.as_bytes()),
            }
            // Never longer than the texts, whose ends fit as well.
            ends.push(bytes.len() as u32);
        }
        bytes.shrink_to_fit();
        Self { bytes, ends }
    }

    /// The bytes of a token; `None` for an id beyond the vocabulary.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start as usize..end as usize)
    }
}
