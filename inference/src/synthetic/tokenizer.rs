//! Small working tokenizers and a chat template.
//!
//! Both kinds can spell every byte; beyond that they know pairs and triples of letters, made in a
//! fixed order until the vocabulary is full.

use crate::gguf::writer::Writer;
use crate::gguf::{Array, Value};
use std::ops::RangeInclusive;

/// Vocabularies that can be filled: bytes and special tokens at least, all triples at most.
pub(super) const SIZES: RangeInclusive<u32> = 300..=18_000;

const LETTERS: std::ops::RangeInclusive<char> = 'a'..='z';
/// How GPT-2's alphabet spells a space.
const BPE_SPACE: char = 'Ġ';
/// How SentencePiece spells a space.
const SPM_SPACE: char = '▁';

/// `tokenizer.ggml.token_type`
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// Which kind of tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `gpt2`: merges over a byte alphabet.
    BytePairs,
    /// `llama`: pieces with scores, falling back to bytes.
    SentencePiece,
}

/// A vocabulary in the making.
#[derive(Default)]
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
}

impl Vocabulary {
    fn push(&mut self, token: impl Into<String>, kind: i32, score: f32) {
        self.tokens.push(token.into());
        self.types.push(kind);
        self.scores.push(score);
    }

    /// Adds a token that is spelt by joining two others.
    fn push_joined(&mut self, left: &str, right: &str) {
        // Earlier pieces score higher, as trained vocabularies have it.
        let score = -(self.tokens.len() as f32);
        self.push(format!("{left}{right}"), NORMAL, score);
        self.merges.push(format!("{left} {right}"));
    }
}

/// Writes a tokenizer of `size` tokens and a chat template; gives the ids of special tokens.
pub(super) fn write(writer: &mut Writer, kind: Kind, size: u32) -> Vec<u32> {
    let size = size as usize;
    let (mut vocabulary, space) = match kind {
        Kind::BytePairs => (byte_alphabet(), BPE_SPACE),
        Kind::SentencePiece => (pieces(), SPM_SPACE),
    };
    for (left, right) in joins(space) {
        if vocabulary.tokens.len() >= size {
            break;
        }
        vocabulary.push_joined(&left, &right);
    }
    write_common(writer, kind, &vocabulary);
    let types = vocabulary.types.iter().enumerate();
    let special = types.filter(|(_, kind)| **kind == CONTROL || **kind == UNKNOWN);
    special.map(|(id, _)| id as u32).collect()
}

fn write_common(writer: &mut Writer, kind: Kind, vocabulary: &Vocabulary) {
    let mut set = |key: &str, value| {
        writer.set(format!("tokenizer.{key}"), value);
    };
    let strings = |list: &[String]| Value::Array(Array::Str(list.iter().collect()));
    set("ggml.tokens", strings(&vocabulary.tokens));
    let types = vocabulary.types.clone();
    set("ggml.token_type", Value::Array(Array::I32(types)));
    match kind {
        Kind::BytePairs => {
            set("ggml.model", Value::Str("gpt2".into()));
            set("ggml.pre", Value::Str("qwen2".into()));
            set("ggml.merges", strings(&vocabulary.merges));
            set("ggml.bos_token_id", Value::U32(0));
            set("ggml.eos_token_id", Value::U32(2));
            set("ggml.add_bos_token", Value::Bool(false));
            set(
                "chat_template",
                Value::Str(template("<|im_start|>", "<|im_end|>", "")),
            );
        }
        Kind::SentencePiece => {
            set("ggml.model", Value::Str("llama".into()));
            set("ggml.pre", Value::Str("default".into()));
            let scores = vocabulary.scores.clone();
            set("ggml.scores", Value::Array(Array::F32(scores)));
            set("ggml.eos_token_id", Value::U32(1));
            set("ggml.bos_token_id", Value::U32(2));
            set("ggml.unknown_token_id", Value::U32(3));
            set("ggml.add_bos_token", Value::Bool(true));
            set("ggml.add_space_prefix", Value::Bool(false));
            let bos = "{{ bos_token }}";
            let turns = ("<start_of_turn>", "<end_of_turn>");
            set("chat_template", Value::Str(template(turns.0, turns.1, bos)));
        }
    }
}

fn template(start: &str, end: &str, prefix: &str) -> String {
    format!(
        "{prefix}{{% for message in messages %}}{{{{ '{start}' + message['role'] + '\\n' + \
         message['content'] + '{end}\\n' }}}}{{% endfor %}}{{% if add_generation_prompt %}}\
         {{{{ '{start}assistant\\n' }}}}{{% endif %}}"
    )
}

/// Three special tokens and GPT-2's 256 letters, one for each byte.
fn byte_alphabet() -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    for special in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] {
        vocabulary.push(special, CONTROL, 0.0);
    }
    for byte in 0..=255u8 {
        vocabulary.push(letter_of(byte), NORMAL, 0.0);
    }
    vocabulary
}

/// GPT-2's letter for a byte: printable ones stand for themselves, the others follow at 256.
fn letter_of(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !is_printable(other)).count() as u32;
    char::from_u32(256 + before).expect("there are few unprintable bytes")
}

/// Special tokens, the 256 bytes and single letters.
fn pieces() -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    for special in ["<pad>", "<eos>", "<bos>"] {
        vocabulary.push(special, CONTROL, 0.0);
    }
    vocabulary.push("<unk>", UNKNOWN, 0.0);
    for special in ["<start_of_turn>", "<end_of_turn>"] {
        vocabulary.push(special, CONTROL, 0.0);
    }
    for byte in 0..=255u8 {
        vocabulary.push(format!("<0x{byte:02X}>"), BYTE, 0.0);
    }
    vocabulary.push(SPM_SPACE, NORMAL, -1_000_000.0);
    for letter in LETTERS {
        vocabulary.push(letter, NORMAL, -1_000_000.0);
    }
    vocabulary
}

/// Pairs to join, shortest results first: a space and a letter, two letters, then triples.
fn joins(space: char) -> impl Iterator<Item = (String, String)> {
    let starts = LETTERS.map(move |letter| (space.to_string(), letter.to_string()));
    let pairs = LETTERS.flat_map(|a| LETTERS.map(move |b| (a.to_string(), b.to_string())));
    let triples = LETTERS.flat_map(|a| {
        LETTERS.flat_map(move |b| LETTERS.map(move |c| (format!("{a}{b}"), c.to_string())))
    });
    starts.chain(pairs).chain(triples)
}
