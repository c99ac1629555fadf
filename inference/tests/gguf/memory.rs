//! What a file may take of the memory, and files that are as expensive as can be.

use super::header_len;
use accel_inference::gguf::writer::Writer;
use accel_inference::gguf::{Array, TensorType, Value};
use accel_inference::{Gguf, LayerRange, ModelShape, Tokenizer, TokenizerData};
use proptest::prelude::*;
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
/// below); lists of broken UTF-8, 3 bytes for 1, at worst twice that while they grow, and the old
/// piece beside the new (9).
const HEADER_TIMES: usize = 12;
/// A tokenizer takes about as much again for the shortest tokens: several hash tables of five bytes
/// a place, at worst half full, and one that grows with the old one beside it.
const TOKENIZER_TIMES: usize = 16;
/// What does not depend on the file: error messages, names, lists that begin with some room.
const HEADER_ROOM: usize = 1 << 16;

/// What does not depend on the file in a tokenizer: the compiled patterns, above all.
static TOKENIZER_ROOM: LazyLock<usize> = LazyLock::new(|| {
    let data = |pre: &str| TokenizerData {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens: ["a", "b", "ab"].iter().collect(),
        merges: ["a b"].iter().collect(),
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
pub(super) fn exercise(bytes: &[u8], file_len: u64) -> Result<usize, TestCaseError> {
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
/// Writes what is expensive.
type Fill = fn(&mut Writer);

fn strings(count: usize, text: &str) -> Value {
    Value::Array(Array::Str(std::iter::repeat_n(text, count).collect()))
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
            let tokens = (0..70_000).map(|id| format!("{id:x}")).collect();
            let merges = (0..16u32).flat_map(|left| (0..16).map(move |right| (left, right)));
            let merges = merges.map(|(left, right)| format!("{left:x} {right:x}"));
            let merges = merges.filter(|merge| !merge.starts_with('0')).collect();
            writer.set("tokenizer.ggml.model", Value::Str("gpt2".into()));
            writer.set("tokenizer.ggml.pre", Value::Str("llama-bpe".into()));
            writer.set("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
            writer.set("tokenizer.ggml.merges", Value::Array(Array::Str(merges)));
        }),
        ("repeated merges", |writer| {
            let tokens = ["a", "b", "ab"].iter().collect();
            writer.set("tokenizer.ggml.model", Value::Str("gpt2".into()));
            writer.set("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
            writer.set("tokenizer.ggml.merges", strings(70_000, "a b"));
        }),
        ("short pieces", |writer| {
            let tokens = (0..70_000).map(|id| format!("{id:x}")).collect();
            writer.set("tokenizer.ggml.model", Value::Str("llama".into()));
            writer.set(
                "tokenizer.ggml.scores",
                Value::Array(Array::F32(vec![0.0; 70_000])),
            );
            writer.set("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
        }),
        ("long special tokens", |writer| {
            let tokens = (0..1000).map(|id| format!("{id:x<1000}")).collect();
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
