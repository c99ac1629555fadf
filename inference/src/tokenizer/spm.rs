//! SentencePiece's byte-pair form (`llama`): characters are joined while the result is a piece,
//! the piece with the highest score first; what no piece spells falls back to bytes.

use super::TokenizerError;
use super::data::{TokenKind, TokenizerData, corrupt, shown};
use super::lookup::Lookup;
use crate::gguf::Strings;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No token, or no neighbour.
const NONE: u32 = u32::MAX;

/// How pieces spell a space.
pub(super) const SPACE: char = '\u{2581}';

/// The pieces of a vocabulary.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// The tokens that are pieces, by their texts.
    pieces: Lookup,
    /// The texts of all tokens, and how urgent their joins are.
    texts: Strings,
    urgencies: Vec<Urgency>,
    longest: usize,
    /// The token of each byte, or [`NONE`].
    bytes: Box<[u32; 256]>,
    unknown: Option<u32>,
    /// Whether a text is preceded by a space.
    pub(super) adds_space: bool,
}

/// A score as an integer with the same order.
type Urgency = i32;

/// A stretch of the text. The symbols are a linked list within a vector.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    /// Length in bytes; 0 once it is part of another symbol.
    len: u32,
    before: u32,
    after: u32,
}

const NOWHERE: Symbol = Symbol {
    start: 0,
    len: 0,
    before: NONE,
    after: NONE,
};

/// A join that may happen: most urgent first, then leftmost; and the length it would have.
type Candidate = (Urgency, Reverse<u32>, u32);

impl SentencePiece {
    pub(super) fn new(data: &TokenizerData) -> Result<Self, TokenizerError> {
        if data.scores.is_empty() {
            let key = "tokenizer.ggml.scores";
            return Err(TokenizerError::Missing { key });
        }
        let mut pieces = Lookup::with_capacity(data.tokens.len());
        let mut urgencies = vec![0; data.tokens.len()];
        let mut longest = 0;
        let mut bytes = Box::new([NONE; 256]);
        let scored = data.scores.iter().zip(&mut urgencies);
        for ((token, text, kind), (&score, place)) in data.iter().zip(scored) {
            match kind {
                // Control tokens are never spelt by text: only the text's author could forge them.
                TokenKind::Control | TokenKind::Unknown => {}
                TokenKind::Byte => put_byte(&mut bytes, text, token)?,
                TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused => {
                    *place = urgency(score)?;
                    longest = longest.max(text.len());
                    pieces.insert(token, true, |token| data.text(token));
                }
            }
        }
        Ok(Self {
            longest,
            pieces,
            texts: data.tokens.clone(),
            urgencies,
            bytes,
            unknown: data.unknown,
            adds_space: data.add_space_prefix.unwrap_or(true),
        })
    }

    /// Appends the tokens of a text; `opens` says that it begins the whole or follows a special
    /// token, where the vocabulary may want a space.
    pub(super) fn encode(
        &self,
        text: &str,
        opens: bool,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut spelt = String::with_capacity(text.len() + text.len() / 4 + SPACE.len_utf8());
        if opens && self.adds_space {
            spelt.push(SPACE);
        }
        spelt.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        for symbol in self.join(&spelt) {
            self.emit(slice(&spelt, symbol.start, symbol.len), out)?;
        }
        Ok(())
    }

    /// Joins characters to pieces until no two neighbours make a piece.
    fn join(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = characters(text);
        let mut heap = BinaryHeap::new();
        for left in 0..symbols.len() as u32 {
            self.offer(text, &symbols, left, &mut heap);
        }
        while let Some((_, Reverse(left), len)) = heap.pop() {
            if apply(&mut symbols, left, len) {
                let before = get(&symbols, left).before;
                self.offer(text, &symbols, before, &mut heap);
                self.offer(text, &symbols, left, &mut heap);
            }
        }
        symbols.retain(|symbol| symbol.len > 0);
        symbols
    }

    /// Notes the join of the symbol at `left` with the one after it, if they make a piece.
    fn offer(&self, text: &str, symbols: &[Symbol], left: u32, heap: &mut BinaryHeap<Candidate>) {
        let symbol = get(symbols, left);
        let right = get(symbols, symbol.after);
        let len = symbol.len + right.len;
        if symbol.len == 0 || right.len == 0 || len as usize > self.longest {
            return;
        }
        let piece = self.piece(slice(text, symbol.start, len));
        let urgency = piece.and_then(|token| self.urgencies.get(token as usize));
        if let Some(&urgency) = urgency {
            heap.push((urgency, Reverse(left), len));
        }
    }

    /// The token of a piece.
    fn piece(&self, text: &str) -> Option<u32> {
        let text_of = |token: u32| self.texts.get(token as usize).unwrap_or_default();
        self.pieces.get(text, text_of)
    }

    /// Appends the token of a piece, or of the bytes of a character that has none.
    fn emit(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if let Some(token) = self.piece(text) {
            out.push(token);
            return Ok(());
        }
        let token = |byte: u8| self.bytes.get(usize::from(byte)).copied().unwrap_or(NONE);
        if text.bytes().all(|byte| token(byte) != NONE) {
            out.extend(text.bytes().map(token));
            return Ok(());
        }
        let unspeakable = || TokenizerError::Unspeakable {
            character: text.to_owned(),
        };
        out.push(self.unknown.ok_or_else(unspeakable)?);
        Ok(())
    }
}

/// One symbol per character. Texts are far below 4 GiB: positions fit `u32`.
fn characters(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    for (index, (start, character)) in (0u32..).zip(text.char_indices()) {
        symbols.push(Symbol {
            start: start as u32,
            len: character.len_utf8() as u32,
            before: index.checked_sub(1).unwrap_or(NONE),
            after: index + 1,
        });
    }
    if let Some(last) = symbols.last_mut() {
        last.after = NONE;
    }
    symbols
}

/// Joins at `left`, unless an earlier join has changed one of the two.
fn apply(symbols: &mut [Symbol], left: u32, len: u32) -> bool {
    let symbol = get(symbols, left);
    let right = get(symbols, symbol.after);
    if symbol.len == 0 || right.len == 0 || symbol.len + right.len != len {
        return false;
    }
    if let Some(gone) = symbols.get_mut(symbol.after as usize) {
        gone.len = 0;
    }
    if let Some(after) = symbols.get_mut(right.after as usize) {
        after.before = left;
    }
    if let Some(joined) = symbols.get_mut(left as usize) {
        joined.len = len;
        joined.after = right.after;
    }
    true
}

fn get(symbols: &[Symbol], index: u32) -> Symbol {
    symbols.get(index as usize).copied().unwrap_or(NOWHERE)
}

fn slice(text: &str, start: u32, len: u32) -> &str {
    let range = start as usize..(start + len) as usize;
    text.get(range)
        .expect("symbols lie on borders of characters")
}

/// Reads `<0xAB>`.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

fn put_byte(bytes: &mut [u32; 256], text: &str, token: u32) -> Result<(), TokenizerError> {
    let byte =
        byte_of(text).ok_or_else(|| corrupt(format!("{:?} is no byte token", shown(text))))?;
    if let Some(place) = bytes.get_mut(usize::from(byte)) {
        *place = token;
    }
    Ok(())
}

/// An integer that orders as the score does.
fn urgency(score: f32) -> Result<Urgency, TokenizerError> {
    if score.is_nan() {
        return Err(corrupt("a score is not a number".to_owned()));
    }
    // Adding zero makes both zeros one. Below zero the bits run backwards.
    let bits = (score + 0.0).to_bits().cast_signed();
    Ok(if bits < 0 { bits ^ i32::MAX } else { bits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgency_orders_as_scores_do() {
        let scores = [f32::NEG_INFINITY, -1e6, -2.5, -0.0, 0.0, 1e-9, 3.0];
        let list: Vec<_> = scores
            .map(|score| urgency(score).expect("a number"))
            .to_vec();
        assert!(list.is_sorted());
        assert_eq!(list.get(3), list.get(4));
        assert!(urgency(f32::NAN).is_err());
    }

    #[test]
    fn byte_tokens_are_read_and_others_refused() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        for text in ["<0x>", "<0xGG>", "0x0A", "<0x100>"] {
            assert_eq!(byte_of(text), None, "{text}");
        }
    }
}
