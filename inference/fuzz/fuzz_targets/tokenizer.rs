//! Texts and ids from strangers, through a tokenizer of each kind.
//!
//! The first byte picks the tokenizer, the second the flags; the rest is the text, and its bytes
//! in pairs are ids.

#![no_main]

use accel_inference::synthetic::{SyntheticArch, SyntheticSpec, generate_bytes};
use accel_inference::{Gguf, StreamDecoder, Tokenizer, TokenizerData};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};

const PRE_TOKENIZERS: [&str; 9] = [
    "default",
    "gpt-2",
    "smollm",
    "qwen2",
    "qwen35",
    "llama-bpe",
    "dbrx",
    "tekken",
    "gpt-4o",
];

static TOKENIZERS: LazyLock<Vec<Arc<Tokenizer>>> = LazyLock::new(|| {
    let data = |arch| {
        let bytes = generate_bytes(&SyntheticSpec::small(arch)).expect("a sound specification");
        let gguf = Gguf::parse(&bytes, bytes.len() as u64).expect("a sound file");
        TokenizerData::from_gguf(&gguf).expect("a sound vocabulary")
    };
    let pairs = data(SyntheticArch::Llama);
    let mut list: Vec<TokenizerData> = PRE_TOKENIZERS
        .map(|pre| TokenizerData {
            pre: Some(pre.to_owned()),
            ..pairs.clone()
        })
        .to_vec();
    let pieces = data(SyntheticArch::Gemma3);
    list.push(TokenizerData {
        add_space_prefix: Some(true),
        ..pieces.clone()
    });
    list.push(TokenizerData {
        strips_after_special: true,
        ..pieces
    });
    let make = |data: &TokenizerData| Arc::new(Tokenizer::new(data).expect("a sound vocabulary"));
    list.iter().map(make).collect()
});

fuzz_target!(|bytes: &[u8]| {
    let [which, flags, rest @ ..] = bytes else {
        return;
    };
    let which = usize::from(*which) % TOKENIZERS.len();
    let tokenizer = &TOKENIZERS[which];
    let text = String::from_utf8_lossy(rest);
    let ids = tokenizer.encode(&text, flags & 1 != 0, flags & 2 != 0);
    let ids = ids.expect("every text can be encoded");
    let decoded = tokenizer.decode(&ids);
    let streamed = stream(tokenizer, &ids);
    if which < PRE_TOKENIZERS.len() {
        assert_eq!(streamed, decoded);
        // Control tokens that were read out of the text are no text any more.
        if flags & 2 == 0 {
            assert_eq!(decoded, text);
        }
    }
    let arbitrary: Vec<u32> = rest
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |id, byte| id << 8 | u32::from(*byte)))
        .collect();
    tokenizer.decode(&arbitrary);
    stream(tokenizer, &arbitrary);
});

fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> String {
    let mut decoder = StreamDecoder::new(tokenizer.clone());
    let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
    text.push_str(&decoder.finish());
    text
}
