//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
//! numbers: as easy as 1, 2, 3" (SC 2011): four words that are a function of a key and a counter.

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Added to the key each round: the golden ratio and √3 − 1.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The four random words at `counter` of the stream `key`.
pub(super) fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let mut key = key;
    let mut words = counter;
    for _ in 0..ROUNDS {
        let [a, b, c, d] = words;
        let (high_a, low_a) = multiply(MULTIPLIERS[0], a);
        let (high_c, low_c) = multiply(MULTIPLIERS[1], c);
        words = [high_c ^ b ^ key[0], low_c, high_a ^ d ^ key[1], low_a];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    words
}

/// High and low word of a product.
fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// A number of [0, 1) with 53 random bits: a function of the seed and the position of a token.
pub(super) fn uniform(seed: u64, position: u64) -> f64 {
    let halves = |number: u64| [number as u32, (number >> 32) as u32];
    let [low, high] = halves(position);
    let [a, b, _, _] = philox(halves(seed), [low, high, 0, 0]);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_authors_library_come_out() {
        // From the known-answer tests of the authors' Random123.
        let ones = u32::MAX;
        let cases = [
            (
                [0, 0],
                [0; 4],
                [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
            ),
            (
                [ones; 2],
                [ones; 4],
                [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
            ),
            (
                [0xa4093822, 0x299f31d0],
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ];
        for (key, counter, expected) in cases {
            assert_eq!(philox(key, counter), expected);
        }
    }

    #[test]
    fn numbers_spread_evenly_over_positions_and_over_seeds() {
        for by_seed in [false, true] {
            let mut buckets = [0usize; 16];
            for n in 0..16_000 {
                let number = if by_seed {
                    uniform(n, 5)
                } else {
                    uniform(5, n)
                };
                buckets[(number * 16.0) as usize] += 1;
            }
            // Each expects 1000 with a standard deviation of 31.
            assert!(
                buckets.iter().all(|count| (850..1150).contains(count)),
                "{buckets:?}"
            );
        }
    }
}
