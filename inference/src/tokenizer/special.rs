//! Finds the tokens that are one token wherever they occur: control and user-defined ones.
//!
//! A trie over bytes, so that the work per position is bounded by the longest such token however
//! many there are. At each place the longest token wins.

use super::data::{TokenKind, TokenizerData};

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    /// Text in between; never empty.
    Text(&'a str),
    /// A special token.
    Token(u32),
}

#[derive(Debug, Default)]
struct Node {
    /// Sorted by byte.
    children: Vec<(u8, u32)>,
    token: Option<(u32, TokenKind)>,
}

/// All special tokens of a vocabulary.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    nodes: Vec<Node>,
}

impl SpecialTokens {
    pub(super) fn new(data: &TokenizerData) -> Self {
        let mut tokens = Self {
            nodes: vec![Node::default()],
        };
        for (id, text, kind) in data.iter() {
            let is_special = matches!(
                kind,
                TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown
            );
            if is_special && !text.is_empty() {
                tokens.insert(text, id, kind);
            }
        }
        tokens
    }

    fn insert(&mut self, text: &str, id: u32, kind: TokenKind) {
        let mut at = 0;
        for byte in text.bytes() {
            at = self.child_or_new(at, byte);
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.token = Some((id, kind));
        }
    }

    fn child_or_new(&mut self, parent: usize, byte: u8) -> usize {
        let new = self.nodes.len();
        let children = &mut self.nodes.get_mut(parent).expect("a node's index").children;
        match children.binary_search_by_key(&byte, |child| child.0) {
            Ok(found) => children.get(found).map_or(0, |child| child.1 as usize),
            Err(place) => {
                let index = u32::try_from(new).expect("vocabularies are far below 2^32 bytes");
                children.insert(place, (byte, index));
                self.nodes.push(Node::default());
                new
            }
        }
    }

    /// The longest token at the start of `bytes` and its length. Control tokens count only when
    /// `parse_special` is set: otherwise their text is text, whoever wrote it.
    fn longest(&self, bytes: &[u8], parse_special: bool) -> Option<(u32, usize)> {
        let mut node = self.nodes.first()?;
        let mut best = None;
        for (length, byte) in (1..).zip(bytes) {
            let Ok(found) = node.children.binary_search_by_key(byte, |child| child.0) else {
                break;
            };
            let index = node.children.get(found)?.1;
            node = self.nodes.get(index as usize)?;
            if let Some((id, kind)) = node.token
                && (parse_special || kind == TokenKind::UserDefined)
            {
                best = Some((id, length));
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
            let Some((id, length)) = self.longest(rest, parse_special) else {
                at += 1;
                continue;
            };
            push_text(&mut fragments, text.get(start..at));
            fragments.push(Fragment::Token(id));
            at += length;
            start = at;
        }
        push_text(&mut fragments, text.get(start..));
        fragments
    }
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
            tokens: list.iter().map(|token| token.0.to_owned()).collect(),
            kinds: list.iter().map(|token| token.1).collect(),
            ..TokenizerData::default()
        })
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
    fn control_tokens_are_text_unless_they_are_asked_for() {
        let expected = [Fragment::Text("x<a>"), Fragment::Token(1)];
        assert_eq!(tokens().split("x<a>\n", false), expected);
    }
}
