//! Token ids and rendered chats against other implementations, on real models.
//!
//! The weights are not in the repository. A test whose model is missing says so on stderr and
//! how to get it; with `ACCEL_REQUIRE_MODELS=1` a missing model is a failure.
//!
//! `tests/data/reference` holds what llama.cpp gives. `data/corpus.json` holds the ids of a nasty
//! corpus: for the byte-pair models by Hugging Face's `tokenizers` 0.23.3, for Gemma by
//! `sentencepiece` 0.2.3, both set up from the same GGUF files' vocabularies.
//!
//! `data/tokens` holds a larger corpus and its ids by llama.cpp: for the real models, and for
//! vocabularies that `tokens/vocabulary.rs` makes, one per pre-tokenizer, which need no model.
//! `data/tokens/generate` writes the ids anew.

#[path = "real_models/file.rs"]
mod file;
#[path = "tokens/vocabulary.rs"]
mod vocabulary;

use accel_inference::{
    ChatMessage, ChatTemplate, Gguf, StreamDecoder, TokenKind, Tokenizer, TokenizerData,
};
use file::{GEMMA3, ModelFile};
use proptest::prelude::*;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use vocabulary::Vocabulary;

const GEMMA: &str = GEMMA3.name;
const MODELS: [ModelFile; 3] = [file::SMOLLM2, file::QWEN2, GEMMA3];

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

/// Opens the models that are there.
fn open_models() -> Vec<(&'static ModelFile, Gguf)> {
    let is_required = file::is_set("ACCEL_REQUIRE_MODELS");
    let mut found = Vec::new();
    for model in &MODELS {
        if let Some(path) = model.find_or_tell(is_required) {
            found.push((model, Gguf::open(&path).expect("a sound model")));
        }
    }
    found
}

fn read<T: for<'a> Deserialize<'a>>(path: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("the file has the expected form")
}

fn reference(model: &ModelFile) -> Reference {
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
            assert_eq!(ids, completion.prompt_tokens, "{}: {prompt}", model.name);
            assert_eq!(tokenizer.decode(&ids), *prompt, "{}", model.name);
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
        assert_eq!(template.is_some(), !chats.is_empty(), "{}", model.name);
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a known tokenizer");
        for (template, chat) in template
            .iter()
            .flat_map(|t| chats.iter().map(move |c| (t, c)))
        {
            let text = template
                .render(&chat.messages, true)
                .expect("it can be rendered");
            assert_eq!(text, chat.rendered, "{}", model.name);
            let ids = tokenizer
                .encode(&text, true, true)
                .expect("it can be encoded");
            assert_eq!(ids.len(), chat.usage.prompt_tokens, "{}", model.name);
        }
    }
}

#[test]
fn a_nasty_corpus_has_the_ids_of_the_tokenizers_that_the_models_were_trained_with() {
    let corpus: Corpus = read("tests/data/corpus.json");
    for (model, gguf) in open_models() {
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a known tokenizer");
        // SentencePiece itself never reads control tokens out of a text.
        let parse_special = model.name != GEMMA;
        let expected = &corpus.ids[model.name];
        assert_eq!(expected.len(), corpus.texts.len());
        for (text, expected) in corpus.texts.iter().zip(expected) {
            let ids = tokenizer
                .encode(text, false, parse_special)
                .expect("it can be encoded");
            assert_eq!(ids, *expected, "{}: {text:?}", model.name);
        }
    }
}

#[test]
fn a_nasty_corpus_comes_back_from_its_tokens() {
    let corpus: Corpus = read("tests/data/corpus.json");
    for (model, gguf) in open_models() {
        // SmolLM2's vocabulary lacks bytes of some scripts: it was trained without them.
        if model.name.starts_with("SmolLM2") {
            continue;
        }
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).expect("a known tokenizer"));
        for text in &corpus.texts {
            let ids = tokenizer
                .encode(text, true, false)
                .expect("it can be encoded");
            // SentencePiece spells a space with this sign.
            let expected = match model.name {
                GEMMA => text.replace('\u{2581}', " "),
                _ => text.clone(),
            };
            assert_eq!(tokenizer.decode(&ids), expected, "{}", model.name);
            assert_eq!(stream(&tokenizer, &ids), expected, "{}", model.name);
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
        assert_eq!(found, ends[model.name], "{}", model.name);
    }
}

static CORPUS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let lines = data("corpus.jsonl");
    let read = |line: &str| serde_json::from_str(line).expect("a line is a string");
    lines.lines().map(read).collect()
});

static VOCABULARIES: LazyLock<Vec<Vocabulary>> = LazyLock::new(|| vocabulary::all(&CORPUS));

fn data(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokens");
    std::fs::read_to_string(path.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What llama.cpp gives for the empty text with the tokens that the model adds, and for each text
/// of the corpus without these: as plain text, and with control tokens read.
struct Expected {
    added: Vec<u32>,
    ids: Vec<[Vec<u32>; 2]>,
}

fn expected(name: &str) -> Expected {
    let file = data(&format!("{name}.ids"));
    let mut lines = file.lines();
    let numbers = |list: &str| -> Vec<u32> {
        let ids = list.split_whitespace();
        ids.map(|id| id.parse().expect("a number")).collect()
    };
    let added = numbers(lines.next().expect("a first line"));
    let ids = lines.map(|line| {
        // Where the two ways differ, a bar stands between them.
        let (plain, special) = line.split_once('|').unwrap_or((line, line));
        [numbers(plain), numbers(special)]
    });
    Expected {
        added,
        ids: ids.collect(),
    }
}

fn assert_agrees(name: &str, tokenizer: &Tokenizer, leave_out: fn(&str) -> bool) {
    let expected = expected(name);
    let added = tokenizer.encode("", true, true).expect("nothing to encode");
    assert_eq!(added, expected.added, "{name}: added tokens");
    assert_eq!(expected.ids.len(), CORPUS.len(), "{name}");
    let mut wrong = Vec::new();
    for (text, expected) in CORPUS.iter().zip(&expected.ids) {
        if leave_out(text) {
            continue;
        }
        for (parse_special, expected) in [false, true].into_iter().zip(expected) {
            let ids = tokenizer.encode(text, false, parse_special);
            let ids = ids.expect("it can be encoded");
            let steers = |id: &u32| {
                let kind = tokenizer.kind(*id);
                matches!(kind, Some(TokenKind::Control | TokenKind::Unknown))
            };
            if !parse_special && expected.iter().any(steers) {
                // llama.cpp lets pieces join to a control token even so; here text is text.
                assert!(!ids.iter().any(steers), "{name}: {text:?}");
                assert_eq!(tokenizer.decode(&ids), *text, "{name}");
            } else if ids != *expected {
                wrong.push(format!(
                    "{text:?} ({parse_special}): {ids:?} is not {expected:?}"
                ));
            }
        }
    }
    let count = wrong.len();
    assert!(
        wrong.is_empty(),
        "{name}: {count} texts:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_pre_tokenizer_gives_the_ids_of_llama_cpp_on_a_nasty_corpus() {
    for vocabulary in VOCABULARIES.iter() {
        let tokenizer = Tokenizer::new(&vocabulary.data).expect("a sound vocabulary");
        assert_agrees(vocabulary.name, &tokenizer, |_| false);
    }
}

#[test]
fn real_models_give_the_ids_of_llama_cpp_on_a_nasty_corpus() {
    for (model, gguf) in open_models() {
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a known tokenizer");
        let name = model.reference.trim_end_matches(".json");
        // llama.cpp takes this for a control token in every model; here it stays the piece of text
        // that it is by the files of Gemma and Qwen.
        assert_agrees(name, &tokenizer, |text| text.contains("</s>"));
    }
}

/// A header that llama.cpp has read says the same to us as the vocabulary that it was written from.
#[test]
fn a_vocabulary_comes_back_from_its_file() {
    for vocabulary in VOCABULARIES.iter() {
        let bytes = vocabulary::file(vocabulary);
        let gguf = Gguf::parse(&bytes, bytes.len() as u64).expect("a sound file");
        let data = TokenizerData::from_gguf(&gguf).expect("a sound vocabulary");
        assert_eq!(format!("{data:?}"), format!("{:?}", vocabulary.data));
    }
}

static TOKENIZERS: LazyLock<Vec<Arc<Tokenizer>>> = LazyLock::new(|| {
    let make = |vocabulary: &Vocabulary| Tokenizer::new(&vocabulary.data);
    let list = VOCABULARIES.iter().map(make);
    list.map(|made| Arc::new(made.expect("a sound vocabulary")))
        .collect()
});

fn any_line() -> impl Strategy<Value = String> {
    any::<prop::sample::Selector>().prop_map(|pick| pick.select(CORPUS.iter()).clone())
}

fn any_text() -> impl Strategy<Value = String> {
    let stretch = (any_line(), any::<prop::sample::Index>()).prop_map(|(line, at)| {
        let skipped = at.index(line.chars().count() + 1);
        line.chars().skip(skipped).take(9).collect()
    });
    let mixed = prop::collection::vec(stretch, 0..8).prop_map(|list: Vec<String>| list.concat());
    prop_oneof![any_line(), mixed, any::<String>()]
}

/// What the tokens spell, byte by byte.
fn bytes_of(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    let bytes = ids.iter().flat_map(|id| tokenizer.text_bytes(*id));
    bytes.copied().collect()
}

/// Pushes ids in groups, as steps of several tokens bring them; gives what each group brought.
fn stream_in_groups(tokenizer: &Arc<Tokenizer>, ids: &[u32], sizes: &[usize]) -> Vec<String> {
    let mut decoder = StreamDecoder::new(tokenizer.clone());
    let mut sizes = sizes.iter().cycle();
    let mut rest = ids;
    let mut groups = Vec::new();
    while !rest.is_empty() {
        let size = *sizes.next().expect("there are sizes");
        let (group, after) = rest.split_at(size.min(rest.len()));
        groups.push(group.iter().map(|id| decoder.push(*id)).collect());
        rest = after;
    }
    groups.push(decoder.finish());
    groups
}

proptest! {
    #[test]
    fn a_stream_brings_whole_characters_and_adds_up(
        text in any_text(),
        pick in any::<prop::sample::Selector>(),
        parse_special in any::<bool>(),
        sizes in prop::collection::vec(1usize..6, 1..4),
    ) {
        let tokenizer = pick.select(TOKENIZERS.iter());
        let ids = tokenizer.encode(&text, true, parse_special).expect("it can be encoded");
        let whole = String::from_utf8(bytes_of(tokenizer, &ids)).expect("tokens of a text are text");
        let mut so_far = String::new();
        for piece in stream_in_groups(tokenizer, &ids, &sizes) {
            so_far.push_str(&piece);
            prop_assert!(whole.starts_with(&so_far), "{so_far:?} does not begin {whole:?}");
        }
        prop_assert_eq!(&so_far, &whole);
        // The space that SentencePiece puts before a text is not part of it.
        let decoded = tokenizer.decode(&ids);
        prop_assert!(decoded == whole || whole.strip_prefix(' ') == Some(&decoded));
    }

    #[test]
    fn any_ids_stream_as_they_decode(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        others in prop::collection::vec(prop_oneof![0u32..1600, any::<u32>()], 0..40),
        pick in any::<prop::sample::Selector>(),
        sizes in prop::collection::vec(1usize..6, 1..4),
    ) {
        let tokenizer = pick.select(TOKENIZERS.iter());
        // Bytes that are no text reach the tokenizer as what stands for broken characters.
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(tokenizer.encode(&text, true, true).is_ok());
        // A model may well write them, though: these tokens are single bytes.
        let first_byte = if tokenizer.eos() == Some(0) { 6 } else { 10 };
        let broken = bytes.iter().map(|byte| first_byte + u32::from(*byte));
        let ids: Vec<u32> = broken.chain(others).collect();
        let streamed = stream_in_groups(tokenizer, &ids, &sizes).concat();
        let whole = bytes_of(tokenizer, &ids);
        prop_assert_eq!(&streamed, &String::from_utf8_lossy(&whole));
        let decoded = tokenizer.decode(&ids);
        prop_assert!(decoded == streamed || streamed.strip_prefix(' ') == Some(&decoded));
    }
}

#[test]
#[ignore = "writes files for data/tokens/generate"]
fn vocabularies_are_written_for_llama_cpp() {
    let dir = std::env::var_os("ACCEL_VOCABULARIES").expect("ACCEL_VOCABULARIES names a directory");
    for vocabulary in VOCABULARIES.iter() {
        let path = Path::new(&dir).join(format!("{}.gguf", vocabulary.name));
        std::fs::write(path, vocabulary::file(vocabulary)).expect("the directory can be written");
    }
}
