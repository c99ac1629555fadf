//! The GGUF parser on good, short, damaged and arbitrary input.

#[path = "gguf/damage.rs"]
mod damage;
#[path = "gguf/memory.rs"]
mod memory;

use accel_inference::gguf::writer::Writer;
use accel_inference::gguf::{Array, TensorType, Value};
use accel_inference::synthetic::{SyntheticArch, SyntheticSpec, generate_bytes};
use accel_inference::{Gguf, GgufError, LayerRange, ModelError, ModelShape};
use std::sync::LazyLock;

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
        ("m", Value::Array(Array::Str(["x", ""].iter().collect()))),
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

/// Where the header of a seed ends: damage beyond it changes nothing.
fn header_len(bytes: &[u8]) -> usize {
    let gguf = Gguf::parse(bytes, bytes.len() as u64).unwrap();
    gguf.data_offset as usize
}
