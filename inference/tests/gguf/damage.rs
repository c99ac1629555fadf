//! Damaged and arbitrary files.

use super::memory::exercise;
use super::{MODEL, header_len};
use accel_inference::synthetic::{SyntheticArch, SyntheticSpec, generate_bytes};
use proptest::prelude::*;
use proptest::sample::Index;
use std::sync::LazyLock;

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
