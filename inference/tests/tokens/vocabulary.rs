//! Vocabularies made from nothing, for the pre-tokenizers that no model at hand has.
//!
//! Pairs are merged by how often they stand together in the corpus, over whole texts: merges join
//! spaces, digits, letters and signs as it comes. So wherever a pre-tokenizer cuts and another
//! does not, the tokens differ.

use accel_inference::gguf::writer::Writer;
use accel_inference::gguf::{Array, Strings, Value};
use accel_inference::{TokenKind, TokenizerData};
use std::cmp::Reverse;
use std::collections::HashMap;

const MERGES: usize = 1200;

/// A vocabulary and how the tests call it.
pub struct Vocabulary {
    pub name: &'static str,
    /// `general.name`: llama.cpp strips spaces after the special tokens of some models.
    pub model_name: &'static str,
    pub data: TokenizerData,
}

/// One vocabulary per rule, ready for llama.cpp and for us.
pub fn all(corpus: &[String]) -> Vec<Vocabulary> {
    let pairs = byte_pairs(corpus);
    let pieces = sentence_pieces(corpus);
    let plain = |name, data| Vocabulary {
        name,
        model_name: "generated",
        data,
    };
    let mut list: Vec<Vocabulary> = [
        "default",
        "gpt-2",
        "smollm",
        "qwen2",
        "qwen35",
        "llama-bpe",
        "dbrx",
        "tekken",
        "gpt-4o",
    ]
    .into_iter()
    .map(|pre| {
        let pre_tokenizer = Some(pre.to_owned());
        plain(
            pre,
            TokenizerData {
                pre: pre_tokenizer,
                ..pairs.clone()
            },
        )
    })
    .collect();
    list.push(plain("llama", pieces.clone()));
    list.push(Vocabulary {
        name: "phi-3",
        model_name: "Phi-3 generated",
        data: TokenizerData {
            strips_after_special: true,
            add_bos: Some(false),
            add_space_prefix: Some(false),
            ..pieces
        },
    });
    list
}

/// The header of a model file with this vocabulary and nothing else.
pub fn file(vocabulary: &Vocabulary) -> Vec<u8> {
    let data = &vocabulary.data;
    let mut writer = Writer::new();
    let text = |text: &str| Value::Str(text.to_owned());
    let texts = |list: &Strings| Value::Array(Array::Str(list.clone()));
    let kinds = data.kinds.iter().map(|kind| number(*kind)).collect();
    writer.set("general.architecture", text("llama"));
    writer.set("general.name", text(vocabulary.model_name));
    for key in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
    ] {
        writer.set(format!("llama.{key}"), Value::U32(32));
    }
    writer.set("llama.attention.head_count", Value::U32(1));
    writer.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    writer.set("tokenizer.ggml.model", text(&data.model));
    writer.set("tokenizer.ggml.tokens", texts(&data.tokens));
    writer.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    if let Some(pre) = &data.pre {
        writer.set("tokenizer.ggml.pre", text(pre));
    }
    if !data.merges.is_empty() {
        writer.set("tokenizer.ggml.merges", texts(&data.merges));
    }
    if !data.scores.is_empty() {
        let scores = Value::Array(Array::F32(data.scores.clone()));
        writer.set("tokenizer.ggml.scores", scores);
    }
    let flags = [
        ("add_bos_token", data.add_bos),
        ("add_space_prefix", data.add_space_prefix),
    ];
    for (key, flag) in flags {
        if let Some(flag) = flag {
            writer.set(format!("tokenizer.ggml.{key}"), Value::Bool(flag));
        }
    }
    for (key, id) in [
        ("bos", data.bos),
        ("eos", data.eos),
        ("unknown", data.unknown),
    ] {
        if let Some(id) = id {
            writer.set(format!("tokenizer.ggml.{key}_token_id"), Value::U32(id));
        }
    }
    writer.to_bytes()
}

fn number(kind: TokenKind) -> i32 {
    match kind {
        TokenKind::Normal => 1,
        TokenKind::Unknown => 2,
        TokenKind::Control => 3,
        TokenKind::UserDefined => 4,
        TokenKind::Unused => 5,
        TokenKind::Byte => 6,
    }
}

/// GPT-2's letter for a byte: printable ones stand for themselves, the others follow at 256.
fn letter(byte: u8) -> String {
    let prints = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = match prints(byte) {
        true => u32::from(byte),
        false => 256 + (0..byte).filter(|other| !prints(*other)).count() as u32,
    };
    char::from_u32(code).expect("a letter").to_string()
}

fn byte_pairs(corpus: &[String]) -> TokenizerData {
    let mut data = TokenizerData {
        model: "gpt2".to_owned(),
        bos: Some(0),
        eos: Some(0),
        ..TokenizerData::default()
    };
    for special in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] {
        push(&mut data, special, TokenKind::Control);
    }
    for tag in ["<tool_call>", "</tool_call>", "<think>"] {
        push(&mut data, tag, TokenKind::UserDefined);
    }
    let first = data.tokens.len();
    for byte in 0..=255 {
        push(&mut data, &letter(byte), TokenKind::Normal);
    }
    let ids = |text: &String| text.bytes().map(|byte| first + usize::from(byte)).collect();
    merge_pairs(&mut data, first, corpus.iter().map(ids).collect());
    // Words that no merge makes: only a vocabulary that looks for whole words first finds them.
    for word in [
        "Hello", "Ġworld", "quick", "ĠMarch", "ĊĊĊĊ", "999", "!!!!!!!!",
    ] {
        if !data.tokens.iter().any(|token| token == word) {
            push(&mut data, word, TokenKind::Normal);
        }
    }
    data
}

fn sentence_pieces(corpus: &[String]) -> TokenizerData {
    let mut data = TokenizerData {
        model: "llama".to_owned(),
        unknown: Some(0),
        bos: Some(1),
        eos: Some(2),
        ..TokenizerData::default()
    };
    push(&mut data, "<unk>", TokenKind::Unknown);
    for special in ["<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"] {
        push(&mut data, special, TokenKind::Control);
    }
    for tag in ["<tool_call>", "\n\n", "\n\n\n", "▁▁▁▁"] {
        push(&mut data, tag, TokenKind::UserDefined);
    }
    let first = data.tokens.len();
    for byte in 0..=255u8 {
        push(&mut data, &format!("<0x{byte:02X}>"), TokenKind::Byte);
    }
    // Letters that stand in the corpus once are left to the bytes; so is NUL, at which llama.cpp
    // ends a token's text.
    let texts: Vec<String> = corpus.iter().map(|text| text.replace(' ', "▁")).collect();
    let mut counts: HashMap<char, usize> = HashMap::new();
    for letter in texts.iter().flat_map(|text| text.chars()) {
        *counts.entry(letter).or_default() += 1;
    }
    let is_piece = |(letter, count): (char, usize)| (count > 1 && letter != '\0').then_some(letter);
    let mut letters: Vec<char> = counts.into_iter().filter_map(is_piece).collect();
    letters.sort_unstable();
    let mut ids = HashMap::new();
    for letter in letters {
        ids.insert(letter, data.tokens.len());
        push(&mut data, &letter.to_string(), TokenKind::Normal);
    }
    let known = |text: &String| {
        text.chars()
            .filter_map(|letter| ids.get(&letter).copied())
            .collect()
    };
    merge_pairs(&mut data, first, texts.iter().map(known).collect());
    data.merges = Strings::default();
    // Two pieces share a score each time, so that ties are met as well.
    data.scores = (0..data.tokens.len())
        .map(|at| -((at / 2) as f32))
        .collect();
    data
}

fn push(data: &mut TokenizerData, token: &str, kind: TokenKind) {
    data.tokens.push(token);
    data.kinds.push(kind);
}

/// Joins the pair that is most frequent, again and again; of equally frequent ones the first.
/// The tokens before `first` are special: no pair spells one.
fn merge_pairs(data: &mut TokenizerData, first: usize, mut texts: Vec<Vec<usize>>) {
    for _ in 0..MERGES {
        let mut counts: HashMap<(usize, usize), usize> = HashMap::new();
        for text in &texts {
            for pair in text.windows(2) {
                *counts.entry((pair[0], pair[1])).or_default() += 1;
            }
        }
        let text = |id: usize| data.tokens.get(id).unwrap();
        let spelt = |(left, right): (usize, usize)| text(left).to_owned() + text(right);
        let special = |text: &str| data.tokens.iter().take(first).any(|token| token == text);
        let mut ranked: Vec<_> = counts.into_iter().collect();
        ranked.sort_unstable_by_key(|(pair, count)| (Reverse(*count), *pair));
        let mut pairs = ranked.into_iter().map(|(pair, _)| pair);
        let best = pairs.find(|pair| !special(&spelt(*pair)));
        let (left, right) = best.expect("the corpus is larger than that");
        let joined = spelt((left, right));
        let merge = format!("{} {}", text(left), text(right));
        data.merges.push(&merge);
        let known = data.tokens.iter().position(|token| token == joined);
        let id = known.unwrap_or(data.tokens.len());
        if known.is_none() {
            push(data, &joined, TokenKind::Normal);
        }
        for text in &mut texts {
            join(text, (left, right), id);
        }
    }
}

fn join(text: &mut Vec<usize>, (left, right): (usize, usize), joined: usize) {
    let mut at = 0;
    while at + 1 < text.len() {
        if text[at] == left && text[at + 1] == right {
            text[at] = joined;
            text.remove(at + 1);
        }
        at += 1;
    }
}
