//! Writes small valid files for the fuzzer to start from: `cargo run --example seeds -- DIR`.

use accel_inference::gguf::writer::Writer;
use accel_inference::gguf::{Array, Value};
use accel_inference::synthetic::{SyntheticArch, SyntheticSpec, generate};
use std::path::{Path, PathBuf};

fn main() {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.expect("say where the files go");
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    for arch in SyntheticArch::ALL {
        let spec = SyntheticSpec {
            layers: 1,
            vocab: 300,
            ..SyntheticSpec::small(arch)
        };
        let path = dir.join(format!("{arch:?}"));
        generate(&spec, &path).expect("the model can be written");
    }
    // The same kinds of vocabulary in a few hundred bytes: mutations hit what matters.
    for pre in ["default", "smollm", "qwen2", "llama-bpe", "tekken"] {
        tiny(&dir.join(format!("tiny-{pre}")), "gpt2", pre);
    }
    tiny(&dir.join("tiny-pieces"), "llama", "default");
}

fn tiny(path: &Path, model: &str, pre: &str) {
    let tokens = ["<s>", "</s>", "<tag>", "a", "b", "ab", "Ġ", "Ġa", "<0x0A>"];
    let strings = |list: &[&str]| {
        Value::Array(Array::Str(list.iter().collect()))
    };
    let mut writer = Writer::new();
    writer.set("general.architecture", Value::Str("llama".to_owned()));
    writer.set("tokenizer.ggml.model", Value::Str(model.to_owned()));
    writer.set("tokenizer.ggml.pre", Value::Str(pre.to_owned()));
    writer.set("tokenizer.ggml.tokens", strings(&tokens));
    writer.set("tokenizer.ggml.merges", strings(&["a b", "Ġ a"]));
    let kinds = vec![3, 2, 4, 1, 1, 1, 1, 1, 6];
    writer.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    let scores = vec![0.0, 0.0, 0.0, -1.0, -2.0, -0.5, -3.0, -4.0, 0.0];
    writer.set("tokenizer.ggml.scores", Value::Array(Array::F32(scores)));
    writer.set("tokenizer.ggml.bos_token_id", Value::U32(0));
    writer.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    writer.set(
        "tokenizer.chat_template",
        Value::Str("{{ messages[0].content }}".to_owned()),
    );
    writer.write(path).expect("the file can be written");
}
