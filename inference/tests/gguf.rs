//! The GGUF parser on good, short, damaged and arbitrary input.

use accel_inference::gguf::writer::Writer;
use accel_inference::gguf::{Array, TensorType, Value};
use accel_inference::synthetic::{SyntheticArch, SyntheticSpec, generate_bytes};
use accel_inference::{
    Gguf, GgufError, LayerRange, ModelError, ModelShape, Tokenizer, TokenizerData,
};
use proptest::prelude::*;
use proptest::sample::Index;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::LazyLock;

/// Counts what each thread holds, and the most that it has held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged. Growing is counted as the default
// does it: the new block is taken before the old one is given back.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().saturating_add_unsigned(layout.size());
        HELD.set(held);
        PEAK.set(PEAK.get().max(held));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub_unsigned(layout.size()));
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that was held at once during `work`, beyond what was held before.
fn peak<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (PEAK.get().saturating_sub(before).unsigned_abs(), result)
}

/// A header may take so many times its bytes in memory. The worst that is known: pairs with tiny
/// keys, 17 bytes in the file and about 110 with their share of the tree (6.6 times, measured
/// below); lists of empty strings, 8 bytes in the file, 24 in memory and as many again where the
/// vocabulary is copied out of the metadata (6); strings of broken UTF-8, 3 bytes for 1, and as
/// much again while they grow (6).
const HEADER_TIMES: usize = 12;
/// A tokenizer takes more for the shortest tokens: hash tables of 25 to 33 bytes an entry, at
/// worst half full, and while they grow the old one beside the new (15 times, measured below).
const TOKENIZER_TIMES: usize = 24;
/// What does not depend on the file: error messages, names, lists that begin with some room.
const HEADER_ROOM: usize = 1 << 16;

/// What does not depend on the file in a tokenizer: the compiled patterns, above all.
static TOKENIZER_ROOM: LazyLock<usize> = LazyLock::new(|| {
    let data = |pre: &str| TokenizerData {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens: ["a", "b", "ab"].map(String::from).to_vec(),
        merges: vec!["a b".into()],
        ..TokenizerData::default()
    };
    let of = |pre: &str| peak(|| Tokenizer::new(&data(pre)).expect("sound")).0;
    // Twice: a pattern compiles lazily, in parts.
    2 * ["default", "gpt-4o", "qwen2"]
        .map(of)
        .into_iter()
        .max()
        .unwrap_or(0)
});

/// Does with a file all that a stranger's file goes through, and holds it to its share of memory.
/// Says how far it came.
fn exercise(bytes: &[u8], file_len: u64) -> Result<usize, TestCaseError> {
    let (held, steps) = peak(|| {
        let Ok(gguf) = Gguf::parse(bytes, file_len) else {
            return Ok(0);
        };
        let shape = ModelShape::from_gguf(&gguf);
        if let Ok(shape) = &shape {
            for range in [LayerRange::whole(shape.layers), LayerRange::new(0, 1)] {
                for range in shape.byte_ranges(&gguf, &range) {
                    prop_assert!(range.start < range.end && range.end <= file_len);
                }
            }
        }
        for tensor in &gguf.tensors {
            prop_assert!(gguf.tensor_range(tensor).end <= file_len);
        }
        let data = TokenizerData::from_gguf(&gguf);
        Ok(1 + usize::from(shape.is_ok()) + usize::from(data.is_ok()))
    });
    let allowed = HEADER_TIMES * bytes.len() + HEADER_ROOM;
    prop_assert!(held <= allowed, "held {held} of {allowed} bytes");
    let steps = steps?;
    if steps > 1 {
        exercise_tokenizer(bytes, file_len)?;
    }
    Ok(steps)
}

fn exercise_tokenizer(bytes: &[u8], file_len: u64) -> Result<(), TestCaseError> {
    let room = *TOKENIZER_ROOM;
    let (held, _) = peak(|| {
        let gguf = Gguf::parse(bytes, file_len).ok()?;
        let tokenizer = Tokenizer::from_gguf(&gguf).ok()?;
        let ids = tokenizer.encode("Hi <s> é\n\n  12", true, true).ok()?;
        Some(tokenizer.decode(&ids))
    });
    let allowed = TOKENIZER_TIMES * bytes.len() + room;
    prop_assert!(
        held <= allowed,
        "the tokenizer held {held} of {allowed} bytes"
    );
    Ok(())
}

static MODEL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let spec = SyntheticSpec {
        layers: 2,
        vocab: 300,
        ..SyntheticSpec::small(SyntheticArch::Llama)
    };
    generate_bytes(&spec).unwrap()
});

#[test]
fn what_the_writer_writes_the_parser_reads() {
    let mut writer = Writer::new();
    let values = [
        ("a", Value::U8(200)),
        ("b", Value::I8(-3)),
        ("c", Value::U16(60_000)),
        ("d", Value::I16(-30_000)),
        ("e", Value::U32(4_000_000_000)),
        ("f", Value::I32(-2_000_000_000)),
        ("g", Value::F32(1.5)),
        ("h", Value::Bool(true)),
        ("i", Value::Str("häuschen".into())),
        ("j", Value::U64(1 << 60)),
        ("k", Value::I64(-(1 << 60))),
        ("l", Value::F64(0.1)),
        (
            "m",
            Value::Array(Array::Str(vec!["x".into(), String::new()])),
        ),
        ("n", Value::Array(Array::I32(vec![1, -1]))),
        ("o", Value::Array(Array::F32(vec![0.5]))),
        ("p", Value::Array(Array::Bool(vec![true, false]))),
        ("q", Value::Array(Array::U64(Vec::new()))),
    ];
    for (key, value) in &values {
        writer.set(*key, value.clone());
    }
    writer.tensor("t", &[4, 2], TensorType::F32, vec![1; 32]);
    writer.tensor("u", &[32], TensorType::Q8_0, vec![2; 34]);
    let bytes = writer.to_bytes();
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
    for (key, value) in &values {
        assert_eq!(gguf.metadata.get(key), Some(value));
    }
    assert_eq!(gguf.metadata.len(), values.len());
    assert_eq!(gguf.metadata.u64("c"), Some(60_000));
    assert_eq!(gguf.metadata.u32("f"), None);
    assert_eq!(gguf.metadata.f32("l"), Some(0.1));
    let range = gguf.tensor_range(gguf.tensor("u").unwrap());
    assert_eq!(bytes[range.start as usize..range.end as usize], [2; 34]);
}

#[test]
fn every_prefix_of_a_header_asks_for_more_until_it_is_whole() {
    let header = Gguf::parse(&MODEL, MODEL.len() as u64).unwrap().data_offset;
    let mut known = 0u64;
    let mut rounds = 0;
    loop {
        match Gguf::parse(&MODEL[..known as usize], MODEL.len() as u64) {
            Err(GgufError::NeedMore { at_least }) => {
                assert!(at_least > known && at_least <= header);
                known = at_least;
            }
            outcome => {
                outcome.unwrap();
                break;
            }
        }
        rounds += 1;
        assert!(rounds < 10_000, "asking makes progress");
    }
    assert!(known <= header);
}

#[test]
fn a_file_shorter_than_its_header_promises_is_truncated() {
    for len in [3, 20, 1000, MODEL.len() as u64 - 1000] {
        let outcome = Gguf::parse(&MODEL[..len as usize], len);
        assert!(
            matches!(outcome, Err(GgufError::Truncated { .. })),
            "{len}: {outcome:?}"
        );
    }
}

#[test]
fn headers_that_are_not_gguf_are_named() {
    let parse = |bytes: &[u8]| Gguf::parse(bytes, bytes.len() as u64);
    assert!(matches!(parse(&[b'P'; 64]), Err(GgufError::NotGguf { .. })));
    let version = |version: u32| {
        let mut bytes = MODEL.clone();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        parse(&bytes)
    };
    assert!(matches!(
        version(9),
        Err(GgufError::UnsupportedVersion { version: 9 })
    ));
    assert!(matches!(
        version(3u32.swap_bytes()),
        Err(GgufError::BigEndian)
    ));
    let mut bytes = MODEL.clone();
    bytes[8..16].fill(0xff);
    assert!(matches!(
        parse(&bytes),
        Err(GgufError::LimitExceeded { .. })
    ));
}

#[test]
fn a_model_that_cannot_be_run_says_why() {
    let shape_with = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = MODEL.clone();
        edit(&mut bytes);
        let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
        ModelShape::from_gguf(&gguf)
    };
    let renamed = shape_with(&|bytes| {
        replace(
            bytes,
            b"\x05\0\0\0\0\0\0\0llama",
            b"\x05\0\0\0\0\0\0\0alpac",
        )
    });
    match renamed {
        Err(ModelError::UnknownArchitecture { name, known }) => {
            assert_eq!(name, "alpac");
            assert!(known.contains(&"llama") && known.contains(&"gemma3"));
        }
        other => panic!("{other:?}"),
    }
    let missing = shape_with(&|bytes| replace(bytes, b"blk.1.ffn_up", b"blk.1.ffn_xx"));
    assert!(matches!(missing, Err(ModelError::MissingTensor { .. })));
    let stranger = shape_with(&|bytes| replace(bytes, b"rope_freqs.weight", b"rope_other.weight"));
    assert!(matches!(stranger, Err(ModelError::UnknownTensor { .. })));
    let keyless = shape_with(&|bytes| replace(bytes, b"llama.block_count", b"llama.block_hount"));
    assert!(matches!(keyless, Err(ModelError::BadKey { .. })));
    // The type number of Q8_0 in the description becomes the one of IQ4_NL, made equally long.
    let mut writer = Writer::new();
    writer.set("general.architecture", Value::Str("llama".into()));
    for key in [
        "block_count",
        "embedding_length",
        "attention.head_count",
        "context_length",
        "feed_forward_length",
    ] {
        writer.set(format!("llama.{key}"), Value::U32(1));
    }
    writer.set("llama.embedding_length", Value::U32(32));
    writer.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    let iq4_nl = TensorType::from_id(20).unwrap();
    writer.tensor("token_embd.weight", &[32, 2], iq4_nl, vec![0; 36]);
    let bytes = writer.to_bytes();
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
    match ModelShape::from_gguf(&gguf) {
        Err(ModelError::UnsupportedQuantisation { name, .. }) => assert_eq!(name, "IQ4_NL"),
        other => panic!("{other:?}"),
    }
}

/// Replaces the first occurrence.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from);
    let at = at.expect("the model has this");
    bytes[at..at + to.len()].copy_from_slice(to);
}

#[test]
fn the_stages_of_a_cut_need_all_bytes_and_share_only_header_and_embedding() {
    for arch in SyntheticArch::ALL {
        let bytes = generate_bytes(&SyntheticSpec::small(arch)).unwrap();
        let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
        let shape = ModelShape::from_gguf(&gguf).unwrap();
        let whole = shape.byte_ranges(&gguf, &LayerRange::whole(shape.layers));
        assert_eq!(whole.len(), 1, "the whole file is one range: {whole:?}");
        assert_eq!(whole[0].start, 0);
        let middle = shape.byte_ranges(&gguf, &LayerRange::new(3, 5));
        let middle_bytes: u64 = middle.iter().map(|range| range.end - range.start).sum();
        let is_of_them = |name: &str| name.starts_with("blk.3.") || name.starts_with("blk.4.");
        let tensors = gguf.tensors.iter();
        let own = tensors.filter(|tensor| is_of_them(&tensor.name));
        let layers: u64 = own.map(|tensor| tensor.bytes).sum();
        let slack = middle_bytes - gguf.data_offset - layers;
        assert!(slack < 4096, "{slack} bytes too many");
    }
}

#[test]
fn a_path_that_is_not_a_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = Gguf::open(dir.path());
    assert!(matches!(outcome, Err(GgufError::Io { .. })));
}

#[test]
fn the_name_of_a_model_holds_nothing_that_upsets_a_terminal() {
    let mut bytes = MODEL.clone();
    replace(&mut bytes, b"synthetic llama", b"syn\x1b[2Jic llama");
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
    let shape = ModelShape::from_gguf(&gguf).unwrap();
    assert_eq!(shape.name.as_deref(), Some("syn[2Jic llama 2x64"));
}

#[test]
fn generating_twice_gives_equal_bytes_and_seeds_differ() {
    for arch in SyntheticArch::ALL {
        let spec = SyntheticSpec::small(arch);
        let bytes = generate_bytes(&spec).unwrap();
        assert!(bytes == generate_bytes(&spec).unwrap());
        let other = SyntheticSpec { seed: 2, ..spec };
        assert!(bytes != generate_bytes(&other).unwrap());
    }
    let odd = SyntheticSpec {
        hidden: 65,
        ..SyntheticSpec::small(SyntheticArch::Llama)
    };
    assert!(generate_bytes(&odd).is_err());
}

/// A valid file of each kind that is small enough to be damaged many times.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let small = |arch| SyntheticSpec {
        layers: 1,
        vocab: 300,
        ..SyntheticSpec::small(arch)
    };
    let generated = SyntheticArch::ALL.map(|arch| generate_bytes(&small(arch)).unwrap());
    generated.into_iter().chain([MODEL.clone()]).collect()
});

/// Where the header of a seed ends: damage beyond it changes nothing.
fn header_len(bytes: &[u8]) -> usize {
    let gguf = Gguf::parse(bytes, bytes.len() as u64).unwrap();
    gguf.data_offset as usize
}

/// One way to damage a file.
#[derive(Debug, Clone)]
enum Damage {
    /// Flips a bit.
    Flip(Index, u8),
    /// Writes a byte.
    Byte(Index, u8),
    /// Writes a number where a length, a count or an id may be.
    Number(Index, u64, bool),
    /// Puts a stretch of the file elsewhere, pushing the rest back.
    Splice(Index, Index, u8),
    /// Takes a stretch out.
    Remove(Index, u8),
    /// Cuts the end off.
    Cut(Index),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>, reach: usize) {
        let reach = reach.min(bytes.len()).max(1);
        if bytes.is_empty() {
            return;
        }
        match *self {
            Self::Flip(at, bit) => bytes[at.index(reach)] ^= 1 << (bit % 8),
            Self::Byte(at, value) => bytes[at.index(reach)] = value,
            Self::Number(at, value, is_wide) => {
                let number = value.to_le_bytes();
                let number = if is_wide { &number[..] } else { &number[..4] };
                let at = at.index(reach);
                let end = (at + number.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            Self::Splice(from, to, len) => {
                let from = from.index(reach);
                let end = (from + usize::from(len)).min(bytes.len());
                let piece = bytes[from..end].to_vec();
                let to = to.index(reach);
                bytes.splice(to..to, piece);
            }
            Self::Remove(at, len) => {
                let at = at.index(reach);
                bytes.drain(at..(at + usize::from(len)).min(bytes.len()));
            }
            Self::Cut(at) => bytes.truncate(at.index(reach)),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    // Numbers on the edge: small ones, powers of two and their neighbours.
    let number = prop_oneof![
        0u64..64,
        any::<u64>(),
        (0u32..64, -2i64..3).prop_map(|(bit, off)| (1u64 << bit).wrapping_add_signed(off)),
    ];
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        2 => (at(), any::<u8>()).prop_map(|(at, value)| Damage::Byte(at, value)),
        4 => (at(), number, any::<bool>()).prop_map(|(at, n, wide)| Damage::Number(at, n, wide)),
        1 => (at(), at(), any::<u8>()).prop_map(|(from, to, len)| Damage::Splice(from, to, len)),
        1 => (at(), any::<u8>()).prop_map(|(at, len)| Damage::Remove(at, len)),
        1 => at().prop_map(Damage::Cut),
    ]
}

/// Writes what is expensive.
type Fill = fn(&mut Writer);

fn strings(count: usize, text: &str) -> Value {
    Value::Array(Array::Str(vec![text.into(); count]))
}

/// Files that are as expensive as a small file can be.
#[test]
fn no_valid_header_takes_more_than_its_share_of_memory() {
    let files: [(&str, Fill); 8] = [
        ("empty strings", |writer| {
            writer.set("tokenizer.ggml.model", Value::Str("gpt2".into()));
            writer.set("tokenizer.ggml.tokens", strings(50_000, ""));
            writer.set("tokenizer.ggml.merges", strings(50_000, ""));
        }),
        ("tiny keys", |writer| {
            for key in 0..30_000 {
                writer.set(format!("{key:x}"), Value::U8(0));
            }
        }),
        ("tiny tensors", |writer| {
            for name in 0..20_000 {
                writer.tensor(format!("{name:x}"), &[1], TensorType::F32, vec![0; 4]);
            }
        }),
        ("tensors of many dimensions", |writer| {
            for name in 0..20_000 {
                writer.tensor(format!("{name:x}"), &[1; 4], TensorType::F32, vec![0; 4]);
            }
        }),
        ("short tokens of byte pairs", |writer| {
            let tokens: Vec<String> = (0..70_000).map(|id| format!("{id:x}")).collect();
            let merges = (0..16u32).flat_map(|left| (0..16).map(move |right| (left, right)));
            let merges = merges.map(|(left, right)| format!("{left:x} {right:x}"));
            let merges = merges.filter(|merge| !merge.starts_with('0')).collect();
            writer.set("tokenizer.ggml.model", Value::Str("gpt2".into()));
            writer.set("tokenizer.ggml.pre", Value::Str("llama-bpe".into()));
            writer.set("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
            writer.set("tokenizer.ggml.merges", Value::Array(Array::Str(merges)));
        }),
        ("repeated merges", |writer| {
            let tokens = ["a", "b", "ab"].map(String::from).to_vec();
            writer.set("tokenizer.ggml.model", Value::Str("gpt2".into()));
            writer.set("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
            writer.set("tokenizer.ggml.merges", strings(70_000, "a b"));
        }),
        ("short pieces", |writer| {
            let tokens: Vec<String> = (0..70_000).map(|id| format!("{id:x}")).collect();
            writer.set("tokenizer.ggml.model", Value::Str("llama".into()));
            writer.set(
                "tokenizer.ggml.scores",
                Value::Array(Array::F32(vec![0.0; 70_000])),
            );
            writer.set("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
        }),
        ("long special tokens", |writer| {
            let tokens: Vec<String> = (0..1000).map(|id| format!("{id:x<1000}")).collect();
            writer.set("tokenizer.ggml.model", Value::Str("llama".into()));
            writer.set(
                "tokenizer.ggml.scores",
                Value::Array(Array::F32(vec![0.0; 1000])),
            );
            writer.set(
                "tokenizer.ggml.token_type",
                Value::Array(Array::I32(vec![3; 1000])),
            );
            writer.set("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
        }),
    ];
    for (what, fill) in files {
        let mut writer = Writer::new();
        fill(&mut writer);
        let mut bytes = writer.to_bytes();
        let file_len = bytes.len() as u64;
        // Only the header is held, and only its share counts.
        bytes.truncate(header_len(&bytes));
        let outcome = exercise(&bytes, file_len);
        let steps = outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(steps > 0, "{what}: the header is sound");
        exercise_tokenizer(&bytes, file_len).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// Strings of bytes that are no text, and lists that promise more than there is.
#[test]
fn no_broken_header_takes_more_than_its_share_of_memory() {
    let mut start = b"GGUF\x03\0\0\0".to_vec();
    start.extend(0u64.to_le_bytes());
    start.extend(u64::from(u16::MAX).to_le_bytes());
    let pair = |kind: &[u32], len: u64| {
        let mut bytes = start.clone();
        bytes.extend(1u64.to_le_bytes());
        bytes.push(b'k');
        for kind in kind {
            bytes.extend(kind.to_le_bytes());
        }
        bytes.extend(len.to_le_bytes());
        bytes
    };
    for filler in [0u8, 0xff, b'a'] {
        for kind in 0..13u32 {
            for len in [1 << 15, 1 << 20, 1 << 25] {
                for kinds in [&[kind][..], &[9, kind]] {
                    let mut bytes = pair(kinds, len);
                    bytes.resize(bytes.len() + (1 << 16), filler);
                    for file_len in [bytes.len() as u64, u64::MAX] {
                        exercise(&bytes, file_len).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn every_prefix_of_a_valid_file_is_taken_without_panic() {
    for seed in SEEDS.iter() {
        for len in (0..header_len(seed)).step_by(7) {
            exercise(&seed[..len], seed.len() as u64).unwrap();
        }
    }
}

proptest! {
    // PROPTEST_CASES asks for more.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(512)))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512), len in any::<u64>()) {
        let mut bytes = bytes;
        exercise(&bytes, len)?;
        if bytes.len() >= 8 {
            bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
            exercise(&bytes, len)?;
        }
        if bytes.len() >= 24 {
            bytes[8..24].fill(0);
            bytes[16] = 3;
            exercise(&bytes, len)?;
        }
    }

    #[test]
    fn damaged_files_never_panic_nor_take_more_than_their_share(
        seed in any::<prop::sample::Selector>(),
        damages in prop::collection::vec(damage(), 1..8),
        near_start in any::<bool>(),
        len in prop_oneof![4 => Just(None), 1 => any::<u64>().prop_map(Some)],
    ) {
        let mut bytes = seed.select(SEEDS.iter()).clone();
        // The first keys hold the counts and sizes: most damage is done there.
        let reach = if near_start { 1200 } else { header_len(&bytes) };
        for damage in &damages {
            damage.apply(&mut bytes, reach);
        }
        let file_len = len.unwrap_or(bytes.len() as u64);
        exercise(&bytes, file_len)?;
        // The same as a prefix of something longer.
        exercise(&bytes, file_len.saturating_add(1 << 20))?;
    }
}
