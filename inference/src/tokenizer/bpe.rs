//! Byte pairs (`gpt2`): a word begins as its bytes; the most urgent merge happens first.

use super::TokenizerError;
use super::alphabet::{byte_of, bytes_of};
use super::data::{TokenKind, TokenizerData, corrupt, shown};
use super::lookup::Lookup;
use super::spelling::Spelling;
use super::split::{PreTokenizer, Splitter};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No token, or no neighbour.
const NONE: u32 = u32::MAX;

/// The merges of a vocabulary.
#[derive(Debug)]
pub(super) struct BytePairs {
    splitter: Splitter,
    /// The token of each byte, or [`NONE`].
    bytes: Box<[u32; 256]>,
    /// The ranks of merges, by the left and the right token.
    ranks: Lookup,
    /// By rank; a lower one is more urgent.
    merges: Vec<Merge>,
    /// Words that stay whole, for vocabularies that say so.
    words: Lookup,
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    left: u32,
    right: u32,
    joined: u32,
}

/// A token in the making. The symbols of a word are a linked list within a vector.
#[derive(Clone, Copy)]
struct Symbol {
    token: u32,
    before: u32,
    after: u32,
}

/// A merge that may happen: its rank, then where. Ties go to the left.
type Candidate = Reverse<(u32, u32)>;

impl BytePairs {
    pub(super) fn new(data: &TokenizerData, spelling: &Spelling) -> Result<Self, TokenizerError> {
        let pre = PreTokenizer::find(data.pre.as_deref())?;
        let ids = ids(data);
        let (ranks, merges) = merges(data, &ids)?;
        let mut words = Lookup::default();
        if pre.whole_words_first {
            // Text must not spell what steers the model.
            let is_text = |id: u32| data.kind(id).is_text() || data.kind(id) == TokenKind::Unused;
            let is_word = |id: &u32| is_text(*id) && bytes_of(data.text(*id)).is_some();
            for id in ids.iter().filter(is_word) {
                words.insert(id, false, |id| spelling.bytes(id));
            }
        }
        Ok(Self {
            splitter: pre.splitter(),
            bytes: byte_tokens(data, &ids),
            ranks,
            merges,
            words,
        })
    }

    /// Whether a sequence begins with BOS when the file does not say.
    pub(super) fn adds_bos(data: &TokenizerData) -> bool {
        PreTokenizer::find(data.pre.as_deref()).is_ok_and(|pre| pre.adds_bos)
    }

    /// Appends the tokens of a text. Bytes that the vocabulary has no token for are left out, as
    /// the model was trained.
    pub(super) fn encode(
        &self,
        text: &str,
        spelling: &Spelling,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        for word in self.splitter.words(text)? {
            self.encode_word(word.as_bytes(), spelling, out);
        }
        Ok(())
    }

    fn encode_word(&self, word: &[u8], spelling: &Spelling, out: &mut Vec<u32>) {
        if let Some(whole) = self.words.get(Some(word), |id| spelling.bytes(id)) {
            out.push(whole);
            return;
        }
        let mut symbols = self.symbols(word);
        let mut heap: BinaryHeap<Candidate> = BinaryHeap::new();
        for left in 0..symbols.len() as u32 {
            self.offer(&symbols, left, &mut heap);
        }
        while let Some(Reverse((rank, left))) = heap.pop() {
            if self.apply(&mut symbols, rank, left) {
                let before = get(&symbols, left).before;
                self.offer(&symbols, before, &mut heap);
                self.offer(&symbols, left, &mut heap);
            }
        }
        let tokens = symbols.iter().map(|symbol| symbol.token);
        out.extend(tokens.filter(|&token| token != NONE));
    }

    /// One symbol per byte. A text is at most [`super::MAX_TEXT_BYTES`] long: indices fit `u32`.
    fn symbols(&self, word: &[u8]) -> Vec<Symbol> {
        let last = word.len().saturating_sub(1) as u32;
        let symbol = |(at, &byte): (u32, &u8)| Symbol {
            token: self.bytes.get(usize::from(byte)).copied().unwrap_or(NONE),
            before: at.checked_sub(1).unwrap_or(NONE),
            after: if at == last { NONE } else { at + 1 },
        };
        (0u32..).zip(word).map(symbol).collect()
    }

    /// Notes the merge of the symbol at `left` with the one after it, if there is one.
    fn offer(&self, symbols: &[Symbol], left: u32, heap: &mut BinaryHeap<Candidate>) {
        let symbol = get(symbols, left);
        let right = get(symbols, symbol.after);
        let pair = (symbol.token, right.token);
        if let Some(rank) = self.ranks.get(Some(pair), |rank| joins(&self.merges, rank)) {
            heap.push(Reverse((rank, left)));
        }
    }

    /// Merges at `left`, unless an earlier merge has taken one of the two.
    fn apply(&self, symbols: &mut [Symbol], rank: u32, left: u32) -> bool {
        let Some(&merge) = self.merges.get(rank as usize) else {
            return false;
        };
        let right = get(symbols, left).after;
        let taken = get(symbols, right);
        if get(symbols, left).token != merge.left || taken.token != merge.right {
            return false;
        }
        if let Some(symbol) = symbols.get_mut(left as usize) {
            symbol.token = merge.joined;
            symbol.after = taken.after;
        }
        if let Some(symbol) = symbols.get_mut(taken.after as usize) {
            symbol.before = left;
        }
        if let Some(symbol) = symbols.get_mut(right as usize) {
            symbol.token = NONE;
        }
        true
    }
}

/// The symbol at `index`; one without token or neighbours beyond the ends of the word.
fn get(symbols: &[Symbol], index: u32) -> Symbol {
    let symbol = symbols.get(index as usize).copied();
    symbol.unwrap_or(Symbol {
        token: NONE,
        before: NONE,
        after: NONE,
    })
}

/// The ids of tokens by their texts. Plain text wins where a special token is spelt the same.
fn ids(data: &TokenizerData) -> Lookup {
    let mut ids = Lookup::with_capacity(data.tokens.len());
    for (id, _, kind) in data.iter() {
        ids.insert(id, kind == TokenKind::Normal, |id| data.text(id));
    }
    ids
}

fn byte_tokens(data: &TokenizerData, ids: &Lookup) -> Box<[u32; 256]> {
    let mut tokens = Box::new([NONE; 256]);
    for id in ids.iter() {
        let mut letters = data.text(id).chars();
        if let (Some(letter), None) = (letters.next(), letters.next())
            && let Some(byte) = byte_of(letter)
            && let Some(place) = tokens.get_mut(usize::from(byte))
        {
            *place = id;
        }
    }
    tokens
}

/// The tokens that the merge of a rank joins.
fn joins(merges: &[Merge], rank: u32) -> Option<(u32, u32)> {
    let merge = merges.get(rank as usize)?;
    Some((merge.left, merge.right))
}

fn merges(data: &TokenizerData, ids: &Lookup) -> Result<(Lookup, Vec<Merge>), TokenizerError> {
    let mut ranks = Lookup::with_capacity(data.merges.len());
    let mut merges: Vec<Merge> = Vec::with_capacity(data.merges.len());
    if data.merges.is_empty() {
        let key = "tokenizer.ggml.merges";
        return Err(TokenizerError::Missing { key });
    }
    for (rank, text) in (0u32..).zip(data.merges.iter()) {
        merges.push(parse(text, data, ids)?);
        ranks.insert(rank, false, |rank| joins(&merges, rank));
    }
    Ok((ranks, merges))
}

/// Reads `left right`. Tokens have no spaces in GPT-2's alphabet.
fn parse(text: &str, data: &TokenizerData, ids: &Lookup) -> Result<Merge, TokenizerError> {
    let broken = || {
        corrupt(format!(
            "the merge {:?} does not join two tokens to a third",
            shown(text)
        ))
    };
    let (left, right) = text.split_once(' ').ok_or_else(broken)?;
    let id = |token: &str| ids.get(token, |id| data.text(id)).ok_or_else(broken);
    Ok(Merge {
        left: id(left)?,
        right: id(right)?,
        joined: id(&format!("{left}{right}"))?,
    })
}
