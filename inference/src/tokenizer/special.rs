//! Finds the tokens that are one token wherever they occur: control and user-defined ones.
//!
//! They are kept in order, so that those with a common beginning stand together: each further
//! byte of the text narrows the range, and at each place the longest token wins. That takes no
//! more memory than the tokens themselves (a trie took 70 times that, and the vocabulary may be a
//! stranger's), and the work per position is bounded by the longest one.

use super::TokenizerError;
use super::data::{TokenKind, TokenizerData, corrupt};

/// No special token is longer: matching takes time at each place for the longest one.
const MAX_BYTES: usize = 1024;

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    /// Text in between; never empty.
    Text(&'a str),
    /// A special token.
    Token(u32),
}

#[derive(Debug, Clone, Copy)]
struct Special {
    /// Where its text is in [`SpecialTokens::texts`].
    start: usize,
    len: u16,
    id: u32,
    kind: TokenKind,
    /// Whether the spaces after it belong to it.
    strips_after: bool,
}

/// Special tokens of Phi-3 that leave the spaces after them alone.
const PHI3_PLAIN: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// All special tokens of a vocabulary.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    /// All texts, one after the other.
    texts: Vec<u8>,
    /// In the order of their texts, each of which occurs once.
    tokens: Vec<Special>,
    /// Which bytes such a token begins with.
    begins: Box<[bool; 256]>,
}

impl SpecialTokens {
    pub(super) fn new(data: &TokenizerData) -> Result<Self, TokenizerError> {
        let is_special = |kind| {
            use TokenKind::{Control, Unknown, UserDefined};
            matches!(kind, Control | UserDefined | Unknown)
        };
        let mut found: Vec<(&str, u32, TokenKind)> = Vec::new();
        for (id, text, kind) in data.iter() {
            if !is_special(kind) || text.is_empty() {
                continue;
            }
            if text.len() > MAX_BYTES {
                let len = text.len();
                return Err(corrupt(format!("the special token {id} has {len} bytes")));
            }
            found.push((text, id, kind));
        }
        // Of two with the same text the later one counts.
        found.sort_unstable_by_key(|&(text, id, _)| (text, std::cmp::Reverse(id)));
        found.dedup_by_key(|(text, ..)| *text);
        Ok(Self::sorted(&found, data.strips_after_special))
    }

    fn sorted(found: &[(&str, u32, TokenKind)], strips_after_special: bool) -> Self {
        let total = found.iter().map(|(text, ..)| text.len()).sum();
        let mut all = Self {
            texts: Vec::with_capacity(total),
            tokens: Vec::with_capacity(found.len()),
            begins: Box::new([false; 256]),
        };
        for &(text, id, kind) in found {
            let first = text.as_bytes().first().map(|byte| usize::from(*byte));
            if let Some(begins) = first.and_then(|byte| all.begins.get_mut(byte)) {
                *begins = true;
            }
            all.tokens.push(Special {
                start: all.texts.len(),
                len: u16::try_from(text.len()).expect("special tokens are short"),
                id,
                kind,
                strips_after: strips_after_special && !PHI3_PLAIN.contains(&text),
            });
            all.texts.extend_from_slice(text.as_bytes());
        }
        all
    }

    /// The byte of a token's text at `depth`; none beyond its end, which sorts before all bytes.
    fn byte_at(&self, token: &Special, depth: usize) -> Option<u8> {
        let is_within = depth < usize::from(token.len);
        let byte = self.texts.get(token.start + depth).copied();
        byte.filter(|_| is_within)
    }

    /// The longest token at the start of `bytes` and its length. Control tokens count only when
    /// `parse_special` is set: otherwise their text is text, whoever wrote it.
    fn longest(&self, bytes: &[u8], parse_special: bool) -> Option<(Special, usize)> {
        let first = usize::from(*bytes.first()?);
        if !self.begins.get(first).is_some_and(|begins| *begins) {
            return None;
        }
        let mut best = None;
        // Those whose texts begin as `bytes` does, up to `depth`.
        let mut alike = self.tokens.as_slice();
        for (depth, byte) in bytes.iter().enumerate() {
            let from = alike.partition_point(|token| self.byte_at(token, depth) < Some(*byte));
            let (_, rest) = alike.split_at(from);
            let count = rest.partition_point(|token| self.byte_at(token, depth) == Some(*byte));
            (alike, _) = rest.split_at(count);
            let Some(shortest) = alike.first() else {
                break;
            };
            let is_whole = usize::from(shortest.len) == depth + 1;
            if is_whole && (parse_special || shortest.kind == TokenKind::UserDefined) {
                best = Some((*shortest, depth + 1));
            }
        }
        best
    }

    /// Cuts a text at its special tokens.
    pub(super) fn split<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        let mut fragments = Vec::new();
        let (mut start, mut at) = (0, 0);
        // A token begins with the first byte of a character, so every cut is at a border.
        while let Some(rest) = text.as_bytes().get(at..).filter(|rest| !rest.is_empty()) {
            let Some((token, length)) = self.longest(rest, parse_special) else {
                at += 1;
                continue;
            };
            push_text(&mut fragments, text.get(start..at));
            fragments.push(Fragment::Token(token.id));
            at += length;
            if token.strips_after {
                at += leading_spaces(rest.get(length..).unwrap_or_default());
            }
            start = at;
        }
        push_text(&mut fragments, text.get(start..));
        fragments
    }
}

/// How many of the first bytes are spaces as C's `isspace` has them.
fn leading_spaces(bytes: &[u8]) -> usize {
    let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t'..=b'\r');
    bytes.iter().take_while(is_space).count()
}

fn push_text<'a>(fragments: &mut Vec<Fragment<'a>>, text: Option<&'a str>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        fragments.push(Fragment::Text(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> SpecialTokens {
        let list = [
            ("<a>", TokenKind::Control),
            ("\n", TokenKind::UserDefined),
            ("\n\n", TokenKind::UserDefined),
            ("plain", TokenKind::Normal),
            ("", TokenKind::Control),
        ];
        SpecialTokens::new(&TokenizerData {
            tokens: list.iter().map(|token| token.0).collect(),
            kinds: list.iter().map(|token| token.1).collect(),
            ..TokenizerData::default()
        })
        .expect("none is too long")
    }

    #[test]
    fn the_longest_token_wins_at_each_place() {
        let expected = [
            Fragment::Text("plain é"),
            Fragment::Token(2),
            Fragment::Token(1),
            Fragment::Token(0),
            Fragment::Text("<a"),
        ];
        assert_eq!(tokens().split("plain é\n\n\n<a><a", true), expected);
    }

    #[test]
    fn a_special_token_of_a_kilobyte_is_the_longest() {
        let with = |len: usize| {
            SpecialTokens::new(&TokenizerData {
                tokens: ["x".repeat(len)].iter().collect(),
                kinds: vec![TokenKind::Control],
                ..TokenizerData::default()
            })
        };
        assert!(with(MAX_BYTES).is_ok());
        assert!(with(MAX_BYTES + 1).is_err());
    }

    #[test]
    fn of_two_tokens_with_one_text_the_later_counts() {
        let tokens = SpecialTokens::new(&TokenizerData {
            tokens: ["<a>", "<b>", "<a>", "<ab>"].iter().collect(),
            kinds: vec![TokenKind::Control; 4],
            ..TokenizerData::default()
        });
        let tokens = tokens.expect("none is too long");
        let expected = [2, 1, 3].map(Fragment::Token);
        assert_eq!(tokens.split("<a><b><ab>", true), expected);
    }

    #[test]
    fn spaces_after_a_token_belong_to_it_where_the_vocabulary_says_so() {
        let tokens = SpecialTokens::new(&TokenizerData {
            tokens: ["<a>", "<s>"].iter().collect(),
            kinds: vec![TokenKind::Control; 2],
            strips_after_special: true,
            ..TokenizerData::default()
        })
        .expect("none is too long");
        let expected = [
            Fragment::Text("x "),
            Fragment::Token(0),
            Fragment::Text("y"),
            Fragment::Token(1),
            Fragment::Text(" z"),
            Fragment::Token(0),
        ];
        assert_eq!(tokens.split("x <a> \n\x0by<s> z<a>\t ", true), expected);
    }

    #[test]
    fn control_tokens_are_text_unless_they_are_asked_for() {
        let expected = [Fragment::Text("x<a>"), Fragment::Token(1)];
        assert_eq!(tokens().split("x<a>\n", false), expected);
    }
}
