//! A model file from a stranger: header, shape, vocabulary, chat template.

#![no_main]

use accel_inference::{ChatTemplate, Gguf, GgufError, LayerRange, ModelShape, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let len = bytes.len() as u64;
    // As a whole file, and as the beginning of a large one that has room for its tensors.
    for file_len in [len, len.saturating_add(1 << 40)] {
        match Gguf::parse(bytes, file_len) {
            Ok(gguf) => exercise(&gguf, file_len),
            Err(GgufError::NeedMore { at_least }) => {
                assert!(
                    len < at_least && at_least <= file_len,
                    "asking makes progress"
                );
            }
            Err(error) => drop(error.to_string()),
        }
    }
});

fn exercise(gguf: &Gguf, file_len: u64) {
    for tensor in &gguf.tensors {
        assert!(gguf.tensor_range(tensor).end <= file_len);
    }
    match ModelShape::from_gguf(gguf) {
        Ok(shape) => {
            for range in shape.byte_ranges(gguf, &LayerRange::whole(shape.layers)) {
                assert!(range.start < range.end && range.end <= file_len);
            }
        }
        Err(error) => drop(error.to_string()),
    }
    match Tokenizer::from_gguf(gguf) {
        Ok(tokenizer) => {
            let text = "Hi <s><tag> é\n\n  12 ab";
            for parse_special in [false, true] {
                if let Ok(ids) = tokenizer.encode(text, true, parse_special) {
                    tokenizer.decode(&ids);
                }
            }
        }
        Err(error) => drop(error.to_string()),
    }
    if let Err(error) = ChatTemplate::from_gguf(gguf) {
        drop(error.to_string());
    }
}
