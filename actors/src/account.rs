//! The account that a stage keeps of a witnessed session: a hash chain over what it was given and
//! one over what it made of it, with a link for each position, so that it can be cut like a KV
//! cache. Who begins with the same nonce, has the same layers and computes the same has the same
//! links; without the nonce, a link tells nothing about a prompt.

use std::sync::{Mutex, MutexGuard, PoisonError};

use accel_p2p::Link;

/// What the hash that names a witnessed session is for.
const WITNESS: &str = "accel 2026 witnessed session";

/// The name of a witnessed session, which does not tell its nonce.
pub(crate) fn witness_of(nonce: &[u8; 32]) -> Link {
    blake3::derive_key(WITNESS, nonce)
}

/// A chain from the first position on.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    /// The link before the first position, then one for each.
    links: Vec<Link>,
}

impl Chain {
    /// An empty chain at the boundary before a layer.
    pub(crate) fn new(nonce: &[u8; 32], layer: u32) -> Self {
        let first = blake3::keyed_hash(nonce, &layer.to_le_bytes());
        Self {
            links: vec![*first.as_bytes()],
        }
    }

    /// How many positions it covers.
    pub(crate) fn len(&self) -> u64 {
        self.links.len() as u64 - 1
    }

    /// The link over so many positions, if they are there.
    pub(crate) fn at(&self, length: u64) -> Option<Link> {
        self.links.get(usize::try_from(length).ok()?).copied()
    }

    /// Takes in rows of so many bytes each.
    pub(crate) fn extend(&mut self, data: &[u8], row_bytes: usize) {
        for row in data.chunks_exact(row_bytes.max(1)) {
            if let Some(before) = self.links.last() {
                let mut hasher = blake3::Hasher::new();
                hasher.update(before).update(row);
                self.links.push(*hasher.finalize().as_bytes());
            }
        }
    }

    /// Takes in token ids.
    pub(crate) fn extend_tokens(&mut self, tokens: &[u32]) {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect();
        self.extend(&bytes, size_of::<u32>());
    }

    /// Forgets what is behind so many positions.
    pub(crate) fn truncate(&mut self, length: u64) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.links.truncate(length.saturating_add(1));
    }
}

/// The output of a last stage: what it drew at a position, from what it was given.
pub(crate) fn drawn(
    input: &Link,
    position: u64,
    token: u32,
    logprob: f32,
    top: &[(u32, f32)],
) -> Link {
    let mut hasher = blake3::Hasher::new();
    hasher.update(input).update(&position.to_le_bytes());
    for (token, logprob) in std::iter::once(&(token, logprob)).chain(top) {
        hasher.update(&token.to_le_bytes());
        hasher.update(&logprob.to_bits().to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Account {
    nonce: [u8; 32],
    sides: Mutex<Sides>,
}

#[derive(Debug)]
struct Sides {
    given: Chain,
    made: Chain,
}

impl Account {
    /// An account of a stage of these layers, half open.
    pub(crate) fn new(nonce: [u8; 32], (first, end): (u32, u32)) -> Self {
        let sides = Sides {
            given: Chain::new(&nonce, first),
            made: Chain::new(&nonce, end),
        };
        Self {
            nonce,
            sides: Mutex::new(sides),
        }
    }

    /// Whether it began with this nonce.
    pub(crate) fn is_of(&self, nonce: &[u8; 32]) -> bool {
        self.nonce == *nonce
    }

    /// The name of the session.
    pub(crate) fn witness(&self) -> Link {
        witness_of(&self.nonce)
    }

    fn lock(&self) -> MutexGuard<'_, Sides> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What rows at a position lead to, if they follow what was given before; nothing is kept of it.
    pub(crate) fn would_be_given(
        &self,
        position: u64,
        data: &[u8],
        row_bytes: usize,
    ) -> Option<Chain> {
        let mut tail = Chain {
            links: vec![self.lock().given.at(position)?],
        };
        tail.extend(data, row_bytes);
        Some(tail)
    }

    /// Takes in what came of [`Self::would_be_given`]: what was behind the position is forgotten.
    pub(crate) fn give(&self, position: u64, tail: Chain) {
        let mut sides = self.lock();
        sides.given.truncate(position);
        sides.given.links.extend(tail.links.into_iter().skip(1));
    }

    /// Takes in output rows. Those that do not follow what is there are no account of anything.
    pub(crate) fn make(&self, position: u64, data: &[u8], row_bytes: usize) {
        let mut sides = self.lock();
        if position == sides.made.len() {
            sides.made.extend(data, row_bytes);
        }
    }

    /// The link over what was given, up to so many positions.
    pub(crate) fn given(&self, length: u64) -> Option<Link> {
        self.lock().given.at(length)
    }

    /// The link over what was made, up to so many positions.
    pub(crate) fn made(&self, length: u64) -> Option<Link> {
        self.lock().made.at(length)
    }

    /// Forgets what is behind so many positions.
    pub(crate) fn truncate(&self, length: u64) {
        let mut sides = self.lock();
        sides.given.truncate(length);
        sides.made.truncate(length);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: [u8; 32] = [7; 32];

    fn rows(from: u64, count: u64) -> Vec<u8> {
        (from..from + count).flat_map(u64::to_le_bytes).collect()
    }

    proptest! {
        /// However rows come, and whatever was cut and came again.
        #[test]
        fn a_link_depends_on_the_rows_and_not_on_how_they_came(
            acts in proptest::collection::vec((any::<bool>(), 1..40u64), 1..30),
        ) {
            let account = Account::new(NONCE, (2, 4));
            let mut have = 0;
            for (is_given, number) in acts {
                if is_given {
                    let data = rows(have, number);
                    let tail = account.would_be_given(have, &data, 8).expect("it follows");
                    account.give(have, tail);
                    account.make(have, &data, 8);
                    have += number;
                } else {
                    account.truncate(number);
                    have = have.min(number);
                }
            }
            let mut whole = Chain::new(&NONCE, 2);
            whole.extend(&rows(0, have), 8);
            prop_assert_eq!(account.given(have), whole.at(have));
            let mut made = Chain::new(&NONCE, 4);
            made.extend(&rows(0, have), 8);
            prop_assert_eq!(account.made(have), made.at(have));
            prop_assert_eq!(account.given(have + 1), None);
        }
    }

    #[test]
    fn links_differ_by_nonce_boundary_row_and_order() {
        let link = |nonce: u8, layer: u32, tokens: &[u32]| {
            let mut chain = Chain::new(&[nonce; 32], layer);
            chain.extend_tokens(tokens);
            chain.at(tokens.len() as u64).expect("it is that long")
        };
        let base = link(1, 0, &[1, 2, 3]);
        assert_eq!(base, link(1, 0, &[1, 2, 3]));
        let others = [
            link(2, 0, &[1, 2, 3]),
            link(1, 1, &[1, 2, 3]),
            link(1, 0, &[1, 3, 2]),
            link(1, 0, &[1, 2, 4]),
            link(1, 0, &[1, 2]),
        ];
        assert!(!others.contains(&base));
    }

    #[test]
    fn rows_that_do_not_follow_are_not_in_the_account() {
        let account = Account::new(NONCE, (0, 1));
        assert!(account.would_be_given(1, &rows(0, 1), 8).is_none());
        account.make(1, &rows(0, 1), 8);
        assert_eq!(account.made(1), None);
    }

    #[test]
    fn what_was_drawn_depends_on_each_part() {
        let base = drawn(&[0; 32], 5, 7, -0.5, &[(7, -0.5)]);
        let others = [
            drawn(&[1; 32], 5, 7, -0.5, &[(7, -0.5)]),
            drawn(&[0; 32], 6, 7, -0.5, &[(7, -0.5)]),
            drawn(&[0; 32], 5, 8, -0.5, &[(7, -0.5)]),
            drawn(&[0; 32], 5, 7, -0.25, &[(7, -0.5)]),
            drawn(&[0; 32], 5, 7, -0.5, &[(7, -0.25)]),
            drawn(&[0; 32], 5, 7, -0.5, &[]),
        ];
        assert!(!others.contains(&base));
    }
}
