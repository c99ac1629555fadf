use super::*;
use crate::gguf::writer::Writer;
use crate::gguf::{Array, Strings, Value};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

const EOT: &str = "<|end|>";

/// Byte pairs over the whole alphabet, with some merges that compete.
fn byte_pairs(pre: &str) -> TokenizerData {
    let mut tokens: Vec<String> = (0..=255)
        .map(|byte| alphabet::letter(byte).into())
        .collect();
    let merges = [
        "Ġ t", "h e", "Ġt he", "a b", "b c", "ab c", "a a", "aa aa", "Ã ©", "Ġ Ġ", "1 2", "Ċ Ċ",
    ];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    for (token, kind) in [(EOT, TokenKind::Control), ("<tag>", TokenKind::UserDefined)] {
        tokens.push(token.to_owned());
        kinds.push(kind);
    }
    TokenizerData {
        model: "gpt2".to_owned(),
        pre: Some(pre.to_owned()),
        eos: Some(tokens.len() as u32 - 2),
        bos: Some(tokens.len() as u32 - 2),
        tokens: tokens.iter().collect(),
        kinds,
        merges: merges.iter().collect(),
        ..TokenizerData::default()
    }
}

/// Pieces with scores, and every byte.
fn sentence_pieces() -> TokenizerData {
    let special = [
        ("<unk>", TokenKind::Unknown),
        ("<s>", TokenKind::Control),
        ("</s>", TokenKind::Control),
        ("\n\n", TokenKind::UserDefined),
    ];
    let mut data = TokenizerData {
        model: "llama".to_owned(),
        unknown: Some(0),
        bos: Some(1),
        eos: Some(2),
        ..TokenizerData::default()
    };
    let mut push = |token: String, kind, score| {
        data.tokens.push(&token);
        data.kinds.push(kind);
        data.scores.push(score);
    };
    for (token, kind) in special {
        push(token.to_owned(), kind, 0.0);
    }
    for byte in 0..=255u8 {
        push(format!("<0x{byte:02X}>"), TokenKind::Byte, 0.0);
    }
    let pieces = ["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "▁▁", "é"];
    let scores = [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -4.0, -5.0, -9.0];
    for (piece, score) in pieces.iter().zip(scores) {
        push((*piece).to_owned(), TokenKind::Normal, score);
    }
    data
}

fn tokenizer(data: &TokenizerData) -> Tokenizer {
    Tokenizer::new(data).expect("the data is fine")
}

/// The texts of the tokens of a text.
fn spelt(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer
        .encode(text, true, true)
        .expect("the text can be encoded");
    let spelling = |id: &u32| {
        tokenizer
            .token_bytes(*id)
            .expect("a token of the vocabulary")
    };
    ids.iter()
        .map(|id| String::from_utf8_lossy(spelling(id)).into_owned())
        .collect()
}

#[test]
fn byte_pairs_merge_the_most_urgent_first() {
    let tokenizer = tokenizer(&byte_pairs("gpt-2"));
    let cases: [(&str, &[&str]); 6] = [
        ("the the", &["t", "he", " the"]),
        ("abc", &["abc"]),
        ("bcab", &["bc", "ab"]),
        ("aaaaaaa", &["aaaa", "aa", "a"]),
        ("é<tag>1212", &["é", "<tag>", "12", "12"]),
        ("<|end|>x", &["<|end|>", "x"]),
    ];
    for (text, expected) in cases {
        assert_eq!(spelt(&tokenizer, text), expected, "{text}");
    }
}

#[test]
fn sentence_pieces_join_by_score_and_fall_back_to_bytes() {
    let tokenizer = tokenizer(&sentence_pieces());
    let cases: [(&str, &[&str]); 5] = [
        // "bc" scores higher than "ab"; "a" and "bc" join to "abc" in the end.
        ("abc", &["<s>", " ", "abc"]),
        ("ba", &["<s>", " ", "b", "a"]),
        ("a\n\na", &["<s>", " a", "\n\n", " a"]),
        ("", &["<s>"]),
        ("<s>a", &["<s>", " a"]),
    ];
    for (text, expected) in cases {
        assert_eq!(spelt(&tokenizer, text), expected, "{text}");
    }
    let ids = tokenizer
        .encode("日", false, false)
        .expect("bytes spell everything");
    assert_eq!(ids.len(), 4);
    assert_eq!(tokenizer.decode(&ids), "日");
}

#[test]
fn text_cannot_spell_control_tokens_unless_asked() {
    for data in [byte_pairs("qwen2"), sentence_pieces()] {
        let tokenizer = tokenizer(&data);
        let eos = tokenizer.eos().expect("it has one");
        let name = data.text(eos);
        let as_text = tokenizer.encode(name, false, false).expect("it is text");
        assert!(!as_text.contains(&eos), "{name}");
        assert_eq!(tokenizer.decode(&as_text), name);
        let as_token = tokenizer.encode(name, false, true).expect("it is a token");
        assert_eq!(as_token, [eos]);
        assert_eq!(tokenizer.decode(&as_token), "");
        assert!(tokenizer.is_end(eos));
    }
}

#[test]
fn a_text_that_brings_its_bos_gets_no_second_one() {
    let tokenizer = tokenizer(&sentence_pieces());
    let count = |text: &str| {
        let ids = tokenizer
            .encode(text, true, true)
            .expect("it can be encoded");
        ids.iter().filter(|id| **id == 1).count()
    };
    assert_eq!((count("a"), count("<s>a"), count("<s><s>a")), (1, 1, 2));
}

#[test]
fn flags_of_the_file_decide_over_the_family() {
    let ids = |data: &TokenizerData| tokenizer(data).encode("a", true, true).expect("fine");
    let mut data = sentence_pieces();
    data.add_bos = Some(false);
    data.add_eos = Some(true);
    data.add_space_prefix = Some(false);
    let plain = data
        .tokens
        .iter()
        .position(|token| token == "a")
        .expect("a piece") as u32;
    assert_eq!(ids(&data), [plain, 2]);
    let llama = byte_pairs("llama-bpe");
    assert_eq!(ids(&llama).first().copied(), llama.bos);
    assert_eq!(ids(&byte_pairs("qwen2")), [u32::from(b'a')]);
}

/// What a file leaves out or gets wrong, and what llama.cpp makes of it.
#[test]
fn gaps_in_a_file_are_filled_as_llama_cpp_does() {
    let read = |name: &str, tokens: &[&str], model: &str| {
        let mut writer = Writer::new();
        let text = |text: &str| Value::Str(text.to_owned());
        let list = tokens.iter().collect();
        let kinds = vec![1; tokens.len()];
        writer.set("general.name", text(name));
        writer.set("tokenizer.ggml.model", text(model));
        writer.set("tokenizer.ggml.tokens", Value::Array(Array::Str(list)));
        writer.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
        let bytes = writer.to_bytes();
        let gguf = Gguf::parse(&bytes, bytes.len() as u64).expect("a sound header");
        TokenizerData::from_gguf(&gguf).expect("a sound vocabulary")
    };
    let data = read("Llama", &["a", "b", "c", "</s>", "<|im_end|>"], "llama");
    assert_eq!(
        (data.bos, data.eos, data.unknown),
        (Some(1), Some(2), Some(0))
    );
    assert_eq!(data.kinds.last(), Some(&TokenKind::Control));
    assert_eq!(data.kinds.get(3), Some(&TokenKind::Normal));
    assert!(!data.strips_after_special);
    let data = read("Phi-3 mini", &["a"], "llama");
    assert_eq!((data.bos, data.eos, data.unknown), (None, None, Some(0)));
    assert!(data.strips_after_special);
    assert_eq!(read("x", &["a", "b", "c"], "gpt2").bos, None);
}

#[test]
fn whole_words_first_spells_no_control_token() {
    let mut data = byte_pairs("llama-bpe");
    data.add_bos = Some(false);
    data.tokens.push("xyz");
    data.kinds.push(TokenKind::Control);
    assert_eq!(
        tokenizer(&data)
            .encode("xyz", true, false)
            .expect("text")
            .len(),
        3
    );
    assert_eq!(
        tokenizer(&data)
            .encode("xyz", true, true)
            .expect("a token")
            .len(),
        1
    );
}

#[test]
fn a_word_that_is_a_token_stays_whole_where_the_vocabulary_says_so() {
    let mut data = byte_pairs("llama-bpe");
    data.add_bos = Some(false);
    data.tokens.push("xyz");
    data.kinds.push(TokenKind::Normal);
    assert_eq!(spelt(&tokenizer(&data), "xyz"), ["xyz"]);
    data.pre = Some("qwen2".to_owned());
    assert_eq!(spelt(&tokenizer(&data), "xyz"), ["x", "y", "z"]);
}

#[test]
fn a_broken_vocabulary_is_a_typed_error() {
    let broken: [fn(&mut TokenizerData); 9] = [
        |data| data.tokens = Strings::default(),
        |data| data.kinds.truncate(3),
        |data| data.scores = vec![0.0; 5],
        |data| data.eos = Some(u32::MAX),
        |data| data.merges.push("nospace"),
        |data| data.merges.push("no such"),
        |data| data.merges = Strings::default(),
        |data| data.model = "bert".to_owned(),
        |data| data.pre = Some("klingon".to_owned()),
    ];
    for (case, damage) in broken.iter().enumerate() {
        let mut data = byte_pairs("qwen2");
        damage(&mut data);
        assert!(Tokenizer::new(&data).is_err(), "case {case}");
    }
    let mut data = sentence_pieces();
    data.scores.fill(f32::NAN);
    assert!(matches!(
        Tokenizer::new(&data),
        Err(TokenizerError::Corrupt { .. })
    ));
}

#[test]
fn what_is_not_known_is_refused_with_what_is() {
    let mut data = byte_pairs("qwen2");
    data.model = "bert".to_owned();
    let message = Tokenizer::new(&data).expect_err("unknown").to_string();
    assert!(
        message.contains("bert") && message.contains("gpt2, llama"),
        "{message}"
    );
}

#[test]
fn a_character_that_nothing_spells_is_unknown_or_an_error() {
    let mut data = sentence_pieces();
    for kind in data
        .kinds
        .iter_mut()
        .filter(|kind| **kind == TokenKind::Byte)
    {
        *kind = TokenKind::Unused;
    }
    let ids = tokenizer(&data)
        .encode("日", false, false)
        .expect("unknown is a token");
    assert_eq!(ids.last(), Some(&0));
    data.unknown = None;
    let error = tokenizer(&data)
        .encode("日", false, false)
        .expect_err("nothing spells it");
    assert!(matches!(error, TokenizerError::Unspeakable { .. }));
}

#[test]
fn a_text_beyond_the_limit_is_refused() {
    let text = "x".repeat(MAX_TEXT_BYTES + 1);
    let error = tokenizer(&byte_pairs("qwen2"))
        .encode(&text, true, true)
        .expect_err("too long");
    assert!(matches!(error, TokenizerError::TooLong { .. }));
}

/// A merge that looks at every pair again after each step, or a splitter that goes back at each
/// character, would take hours here.
#[test]
fn a_megabyte_of_anything_is_encoded() {
    const SIZE: usize = 1 << 20;
    let units = [
        "a", " ", "\n", "ab", "1", "é", " \n", "!", "<", "日本", "  x",
    ];
    let pairs = ["default", "smollm", "qwen2", "gpt-4o"].map(byte_pairs);
    for data in pairs.into_iter().chain([sentence_pieces()]) {
        let tokenizer = tokenizer(&data);
        for unit in units {
            let text = unit.repeat(SIZE / unit.len());
            let ids = tokenizer
                .encode(&text, false, true)
                .expect("it can be encoded");
            assert_eq!(tokenizer.decode(&ids).len(), text.len(), "{unit:?}");
        }
    }
}

#[test]
fn ids_beyond_the_vocabulary_are_no_text() {
    let tokenizer = tokenizer(&byte_pairs("qwen2"));
    assert_eq!(tokenizer.decode(&[u32::MAX, 97, 5_000_000]), "a");
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
    assert!(!tokenizer.is_end(u32::MAX));
}

#[test]
fn a_character_is_held_until_it_is_whole() {
    let mut decoder = StreamDecoder::new(Arc::new(tokenizer(&byte_pairs("qwen2"))));
    let mut push = |byte: u8| decoder.push(u32::from(byte));
    assert_eq!([0xf0, 0x9f, 0x98].map(&mut push), ["", "", ""]);
    assert_eq!(push(0x80), "😀");
    // Broken off by a letter: what came before can never become a character.
    assert_eq!([0xe2, 0x82].map(&mut push), ["", ""]);
    assert_eq!(push(b'x'), "\u{fffd}x");
    assert_eq!(push(0xff), "\u{fffd}");
    assert_eq!(push(0xe2), "");
    assert_eq!(decoder.finish(), "\u{fffd}");
    assert_eq!(decoder.finish(), "");
}

/// Merges by the definition: the most urgent pair of the whole word, leftmost first, again and
/// again.
fn merged_by_definition(data: &TokenizerData, word: &str) -> Vec<String> {
    let ranks: HashMap<&str, usize> = data
        .merges
        .iter()
        .enumerate()
        .map(|(rank, merge)| (merge, rank))
        .collect();
    let mut parts: Vec<String> = word
        .bytes()
        .map(|b| alphabet::letter(b).to_string())
        .collect();
    loop {
        let pairs = parts.windows(2).enumerate();
        let ranked = pairs.filter_map(|(at, pair)| {
            Some((*ranks.get(format!("{} {}", pair[0], pair[1]).as_str())?, at))
        });
        let Some((_, at)) = ranked.min() else {
            return parts;
        };
        let right = parts.remove(at + 1);
        parts[at].push_str(&right);
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let scraps = prop::sample::select(vec![
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "the",
        "ab",
        "abc",
        "aaaa",
        "1",
        "12",
        "'ll",
        "é",
        "日本",
        "👩‍👩‍👧",
        "🇩🇪",
        "a\u{301}",
        "\u{200b}",
        "\u{a0}",
        "\u{2581}",
        "ß",
        "ﬁ",
        "<tag>",
        "<|end|>",
        "<0x0A>",
        "\0",
        "{}",
        "::",
        "١٢",
        "½",
        "नमस्ते",
    ]);
    let mixed = prop::collection::vec(scraps, 0..30).prop_map(|scraps| scraps.concat());
    prop_oneof![mixed, any::<String>()]
}

proptest! {
    #[test]
    fn every_text_comes_back_from_its_tokens(
        text in any_text(),
        pre in prop::sample::select(vec!["default", "gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "tekken", "gpt-4o"]),
    ) {
        let tokenizer = tokenizer(&byte_pairs(pre));
        let ids = tokenizer.encode(&text, true, false).expect("every text can be encoded");
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn every_text_comes_back_from_its_pieces(text in any_text()) {
        // The sign that spells a space is the one that cannot come back.
        let text = text.replace(spm::SPACE, "");
        let tokenizer = tokenizer(&sentence_pieces());
        let ids = tokenizer.encode(&text, true, false).expect("every text can be encoded");
        // Before each text after a user-defined token, the vocabulary puts a space.
        prop_assume!(!text.contains("\n\n"));
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn merges_are_those_of_the_definition(word in "[abct he12é]{0,24}") {
        let data = byte_pairs("gpt-2");
        let tokenizer = tokenizer(&data);
        let known = PreWords::of("gpt-2").words(&word);
        let expected: Vec<String> =
            known.iter().flat_map(|word| merged_by_definition(&data, word)).collect();
        let ids = tokenizer.encode(&word, false, false).expect("it can be encoded");
        let spelt: Vec<_> = ids.iter().map(|id| data.text(*id)).collect();
        prop_assert_eq!(spelt, expected);
    }

    #[test]
    fn streamed_text_is_whole_characters_and_adds_up(bytes in prop::collection::vec(
        prop_oneof![any::<u8>(), prop::sample::select("é日😀".as_bytes().to_vec())], 0..60,
    )) {
        let tokenizer = Arc::new(tokenizer(&byte_pairs("qwen2")));
        let ids: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte)).collect();
        let mut decoder = StreamDecoder::new(tokenizer.clone());
        let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
        text.push_str(&decoder.finish());
        prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes));
        prop_assert_eq!(text, tokenizer.decode(&ids));
    }
}

/// The words of a pre-tokenizer.
struct PreWords(split::Splitter);

impl PreWords {
    fn of(name: &str) -> Self {
        Self(
            split::PreTokenizer::find(Some(name))
                .expect("it is known")
                .splitter(),
        )
    }

    fn words<'a>(&self, text: &'a str) -> Vec<&'a str> {
        self.0.words(text).expect("it can be split")
    }
}
