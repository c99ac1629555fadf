//! Splits a text into the words within which byte pairs are merged.
//!
//! Each pre-tokenizer is a short list of patterns, applied one after the other to what the one
//! before left; text that no pattern takes is a word of its own. The patterns are those that the
//! models were trained with, by the names that GGUF files give them, but for one thing: theirs
//! leave the last space of a run to the word that follows by looking ahead (`\s+(?!\S)|\s+`).
//! That goes back character by character and gives up on long runs; here the pattern takes the
//! whole run, and [`Splitter`] gives the last space back.

use super::TokenizerError;
use super::data::shown;
use fancy_regex::Regex;

/// GPT-2's own words: contractions, letters, digits, other signs, spaces.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
/// As GPT-2's, with contractions in any case, digits one by one, line ends kept together.
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// As Qwen's, with up to three digits together.
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// As Qwen2's, with marks counted among the letters.
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// Words end where a small letter is followed by a capital one, in ASCII: so has llama.cpp it.
/// Mistral's own pattern looks at the case of every script and takes marks for letters.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";
/// The same, with contractions kept at their word and up to three digits together.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";
const SINGLE_DIGITS: &str = r"\p{N}";

/// A pre-tokenizer that is known.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// A run of spaces up to a line end is a word: its last character is not given back.
    keeps_line_ends: bool,
    /// A word that is a token stays whole, whatever the merges say.
    pub(super) whole_words_first: bool,
    /// Whether a sequence begins with BOS when the file does not say.
    pub(super) adds_bos: bool,
}

impl PreTokenizer {
    /// A pre-tokenizer without peculiarities.
    const fn plain(names: &'static [&'static str], patterns: &'static [&'static str]) -> Self {
        Self {
            names,
            patterns,
            keeps_line_ends: false,
            whole_words_first: false,
            adds_bos: false,
        }
    }

    const fn keeping_line_ends(self) -> Self {
        Self {
            keeps_line_ends: true,
            ..self
        }
    }

    const fn looking_for_whole_words(self) -> Self {
        Self {
            whole_words_first: true,
            ..self
        }
    }

    const fn adding_bos(self) -> Self {
        Self {
            adds_bos: true,
            ..self
        }
    }
}

/// Every pre-tokenizer; a new one is one more entry. The names are those that llama.cpp takes for
/// the same rule; the ids of each are checked against it in `tests/tokens.rs`.
static KNOWN: [PreTokenizer; 9] = [
    // What llama.cpp does with a file that names none.
    PreTokenizer::plain(
        &["default"],
        &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9]{3}"],
    ),
    PreTokenizer::plain(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "mellum",
            "gigachat",
            "a.x-4.0",
        ],
        &[GPT2],
    ),
    PreTokenizer::plain(
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        &[SINGLE_DIGITS, GPT2],
    ),
    PreTokenizer::plain(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "hunyuan",
            "megrez",
            "grok-2",
            "solar-open",
            "kormo",
        ],
        &[QWEN2],
    )
    .keeping_line_ends(),
    PreTokenizer::plain(&["qwen35"], &[QWEN35]).keeping_line_ends(),
    PreTokenizer::plain(
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        &[LLAMA3],
    )
    .keeping_line_ends()
    .looking_for_whole_words()
    .adding_bos(),
    // Phi-4 and others: Llama's words without its other rules.
    PreTokenizer::plain(&["dbrx", "smaug-bpe"], &[LLAMA3]).keeping_line_ends(),
    PreTokenizer::plain(&["tekken"], &[TEKKEN])
        .keeping_line_ends()
        .looking_for_whole_words()
        .adding_bos(),
    PreTokenizer::plain(&["gpt-4o", "llama4", "kanana2"], &[GPT4O]).keeping_line_ends(),
];

impl PreTokenizer {
    /// The pre-tokenizer of this name; a file that names none gets `default`.
    pub(super) fn find(name: Option<&str>) -> Result<&'static Self, TokenizerError> {
        let wanted = name.unwrap_or("default");
        if name.is_none() {
            tracing::warn!("the model file names no pre-tokenizer; taking llama.cpp's default");
        }
        let mut known = KNOWN.iter();
        known
            .find(|candidate| candidate.names.contains(&wanted))
            .ok_or_else(|| TokenizerError::UnknownPreTokenizer {
                name: shown(wanted),
                known: known_names(),
            })
    }

    /// Compiles the patterns.
    pub(super) fn splitter(&self) -> Splitter {
        let compile = |pattern: &&str| {
            let regex = Regex::new(pattern);
            regex.expect("the patterns are constants and compile")
        };
        Splitter {
            patterns: self.patterns.iter().map(compile).collect(),
            keeps_line_ends: self.keeps_line_ends,
        }
    }
}

/// The names of all pre-tokenizers, for error messages.
fn known_names() -> String {
    let names = KNOWN.iter().flat_map(|known| known.names);
    names.copied().collect::<Vec<_>>().join(", ")
}

/// A compiled pre-tokenizer.
#[derive(Debug)]
pub(super) struct Splitter {
    patterns: Vec<Regex>,
    keeps_line_ends: bool,
}

impl Splitter {
    /// The words of a text, in order; together they are the text.
    pub(super) fn words<'a>(&self, text: &'a str) -> Result<Vec<&'a str>, TokenizerError> {
        let mut words = vec![text];
        for pattern in &self.patterns {
            let mut finer = Vec::with_capacity(words.len());
            for word in words {
                self.cut(pattern, word, &mut finer)?;
            }
            words = finer;
        }
        Ok(words)
    }

    /// Cuts a word into what the pattern matches and what lies in between.
    fn cut<'a>(
        &self,
        pattern: &Regex,
        word: &'a str,
        out: &mut Vec<&'a str>,
    ) -> Result<(), TokenizerError> {
        let mut push = |start: usize, end: usize| {
            out.extend(word.get(start..end).filter(|piece| !piece.is_empty()));
        };
        let mut done = 0;
        while done < word.len() {
            let found = pattern.find_from_pos(word, done);
            let found = found.map_err(|error| TokenizerError::Split(Box::new(error)))?;
            let Some(found) = found else {
                break;
            };
            push(done, found.start());
            let is_last = found.end() == word.len();
            let given_back = if is_last {
                0
            } else {
                self.given_back(found.as_str())
            };
            done = found.end() - given_back;
            push(found.start(), done);
        }
        push(done, word.len());
        Ok(())
    }

    /// Bytes at the end of a match that belong to the next word: the last of several spaces.
    fn given_back(&self, found: &str) -> usize {
        let mut letters = found.chars();
        let Some(last) = letters.next_back().filter(|last| last.is_whitespace()) else {
            return 0;
        };
        let is_kept = self.keeps_line_ends && matches!(last, '\r' | '\n');
        let before = letters.as_str();
        if is_kept || before.is_empty() || !before.chars().all(char::is_whitespace) {
            return 0;
        }
        last.len_utf8()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        let known = PreTokenizer::find(Some(name)).expect("a known pre-tokenizer");
        known.splitter().words(text).expect("the text can be split")
    }

    #[test]
    fn each_pre_tokenizer_splits_digits_and_spaces_its_own_way() {
        let text = "I'LL pay  1234\n\n  now!";
        let cases: [(&str, &[&str]); 4] = [
            (
                "gpt-2",
                &["I", "'", "LL", " pay", " ", " 1234", "\n\n ", " now", "!"],
            ),
            (
                "smollm",
                &[
                    "I", "'", "LL", " pay", "  ", "1", "2", "3", "4", "\n\n ", " now", "!",
                ],
            ),
            (
                "qwen2",
                &[
                    "I", "'LL", " pay", " ", " ", "1", "2", "3", "4", "\n\n", " ", " now", "!",
                ],
            ),
            (
                "llama-bpe",
                &[
                    "I", "'LL", " pay", " ", " ", "123", "4", "\n\n", " ", " now", "!",
                ],
            ),
        ];
        for (name, expected) in cases {
            assert_eq!(words(name, text), expected, "{name}");
        }
    }

    #[test]
    fn words_add_up_to_the_text() {
        let text = "fn main() {\r\n\t\tlet é = \"日本語\"; // ½ ٣ 👩‍👩‍👧\u{a0}\u{2028}\0 \t ";
        for name in KNOWN.iter().filter_map(|known| known.names.first()) {
            assert_eq!(words(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = PreTokenizer::find(Some("klingon")).expect_err("there is no such thing");
        let message = error.to_string();
        assert!(
            message.contains("klingon") && message.contains("smollm"),
            "{message}"
        );
    }
}
