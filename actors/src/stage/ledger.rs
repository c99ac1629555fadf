//! Who takes how much of the memory for models. Pure: time is an argument.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use accel_inference::LayerRange;
use accel_p2p::wire::SessionId;
use cid::Cid;

/// Names the weights of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StageKey {
    pub(crate) model: Cid,
    pub(crate) layers: LayerRange,
}

/// There is not enough memory, even with everything unused evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) needed: u64,
    pub(crate) free: u64,
    /// Whether it would fit if no session held anything: then it is worth waiting.
    pub(crate) passing: bool,
}

#[derive(Debug)]
struct Weights {
    bytes: u64,
    users: HashSet<SessionId>,
    last_used: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit: u64,
    weights: HashMap<StageKey, Weights>,
    kv: HashMap<SessionId, (StageKey, u64)>,
}

impl Ledger {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            weights: HashMap::new(),
            kv: HashMap::new(),
        }
    }

    /// The same memory with nothing in it.
    pub(crate) fn emptied(&self) -> Self {
        Self::new(self.limit)
    }

    /// Memory that there is.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Memory that is taken, weights without users included.
    pub(crate) fn used(&self) -> u64 {
        let weights: u64 = self.weights.values().map(|weights| weights.bytes).sum();
        let kv: u64 = self.kv.values().map(|(_, bytes)| bytes).sum();
        weights + kv
    }

    /// Memory that sessions hold on to.
    pub(crate) fn held(&self) -> u64 {
        let in_use = self
            .weights
            .values()
            .filter(|weights| !weights.users.is_empty());
        let weights: u64 = in_use.map(|weights| weights.bytes).sum();
        let kv: u64 = self.kv.values().map(|(_, bytes)| bytes).sum();
        weights + kv
    }

    /// Sessions that hold memory.
    pub(crate) fn sessions(&self) -> usize {
        self.kv.len()
    }

    /// Takes memory for a session: its KV cache, and the weights unless they are there. What it
    /// had before is given back. The stages returned must be dropped to make room.
    pub(crate) fn reserve(
        &mut self,
        session: SessionId,
        key: StageKey,
        weights: u64,
        kv: u64,
        now: Instant,
    ) -> Result<Vec<StageKey>, Shortage> {
        self.release(session, now);
        let more_weights = if self.weights.contains_key(&key) {
            0
        } else {
            weights
        };
        let needed = more_weights.saturating_add(kv);
        let evicted = self.make_room(key, needed).map_err(|free| Shortage {
            needed,
            free,
            passing: weights.saturating_add(kv) <= self.limit,
        })?;
        let entry = self.weights.entry(key).or_insert_with(|| Weights {
            bytes: weights,
            users: HashSet::new(),
            last_used: now,
        });
        entry.users.insert(session);
        entry.last_used = now;
        self.kv.insert(session, (key, kv));
        Ok(evicted)
    }

    /// Takes memory that is free for weights that nobody needs yet; whether they are in now. They
    /// are unused weights like others, so whoever needs the memory gets it.
    pub(crate) fn keep_spare(&mut self, key: StageKey, weights: u64, now: Instant) -> bool {
        if let Some(known) = self.weights.get_mut(&key) {
            known.last_used = now;
            return true;
        }
        if weights > self.limit.saturating_sub(self.used()) {
            return false;
        }
        let spare = Weights {
            bytes: weights,
            users: HashSet::new(),
            last_used: now,
        };
        self.weights.insert(key, spare);
        true
    }

    /// Takes memory that is free for something of use to a session, beside what it needs; whether
    /// there is enough. At least as much stays free for others.
    pub(crate) fn add_spare(&mut self, session: SessionId, bytes: u64) -> bool {
        let free = self.limit.saturating_sub(self.used());
        let Some((_, held)) = self.kv.get_mut(&session) else {
            return false;
        };
        let fits = bytes <= free / 2;
        if fits {
            *held += bytes;
        }
        fits
    }

    /// Evicts unused weights, least recently used first, until `needed` bytes are free. Where
    /// that is not enough, says how many are free then, and evicts nothing.
    fn make_room(&mut self, keep: StageKey, needed: u64) -> Result<Vec<StageKey>, u64> {
        let mut unused: Vec<(StageKey, Instant, u64)> = self
            .weights
            .iter()
            .filter(|(key, weights)| weights.users.is_empty() && **key != keep)
            .map(|(key, weights)| (*key, weights.last_used, weights.bytes))
            .collect();
        unused.sort_by_key(|(_, last_used, _)| *last_used);
        let mut free = self.limit.saturating_sub(self.used());
        let mut evicted = Vec::new();
        for (key, _, bytes) in unused {
            if free >= needed {
                break;
            }
            free += bytes;
            evicted.push(key);
        }
        if free < needed {
            return Err(free);
        }
        for key in &evicted {
            self.weights.remove(key);
        }
        Ok(evicted)
    }

    /// Gives back what a session holds; its weights stay until memory is needed.
    pub(crate) fn release(&mut self, session: SessionId, now: Instant) {
        let Some((key, _)) = self.kv.remove(&session) else {
            return;
        };
        if let Some(weights) = self.weights.get_mut(&key) {
            weights.users.remove(&session);
            weights.last_used = now;
        }
    }

    /// Forgets weights that could not be loaded or whose thread died, once nobody uses them.
    pub(crate) fn forget_unused(&mut self, key: &StageKey) -> bool {
        let unused = self
            .weights
            .get(key)
            .is_some_and(|weights| weights.users.is_empty());
        if unused {
            self.weights.remove(key);
        }
        unused
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(first: u32) -> StageKey {
        let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
        StageKey {
            model: cid.parse().unwrap(),
            layers: LayerRange::new(first, first + 1),
        }
    }

    fn session(n: u8) -> SessionId {
        SessionId([n; 16])
    }

    #[test]
    fn weights_are_counted_once_for_all_their_sessions() {
        let (mut ledger, now) = (Ledger::new(100), Instant::now());
        ledger.reserve(session(1), key(0), 60, 10, now).unwrap();
        ledger.reserve(session(2), key(0), 60, 10, now).unwrap();
        assert_eq!((ledger.used(), ledger.sessions()), (80, 2));
    }

    #[test]
    fn a_shortage_says_how_much_is_needed_and_free_and_takes_nothing() {
        let (mut ledger, now) = (Ledger::new(100), Instant::now());
        ledger.reserve(session(1), key(0), 60, 10, now).unwrap();
        let shortage = ledger.reserve(session(2), key(1), 40, 5, now);
        assert_eq!(
            shortage,
            Err(Shortage {
                needed: 45,
                free: 30,
                passing: true,
            })
        );
        assert_eq!(ledger.used(), 70);
    }

    #[test]
    fn what_would_not_fit_with_all_the_memory_is_not_worth_waiting_for() {
        let (mut ledger, now) = (Ledger::new(100), Instant::now());
        ledger.reserve(session(1), key(0), 60, 10, now).unwrap();
        for (weights, kv, passing) in [(60, 40, true), (60, 41, false)] {
            let shortage = ledger.reserve(session(2), key(1), weights, kv, now);
            assert_eq!(shortage.map_err(|shortage| shortage.passing), Err(passing));
        }
    }

    #[test]
    fn unused_weights_stay_until_memory_is_needed_and_the_oldest_go_first() {
        let (mut ledger, start) = (Ledger::new(100), Instant::now());
        for n in 0..3 {
            let now = start + Duration::from_secs(u64::from(n));
            ledger
                .reserve(session(n), key(u32::from(n)), 30, 1, now)
                .unwrap();
        }
        for n in [1, 0, 2] {
            ledger.release(session(n), start + Duration::from_secs(10 + u64::from(n)));
        }
        assert_eq!((ledger.used(), ledger.held()), (90, 0));
        let evicted = ledger.reserve(session(9), key(9), 30, 1, start).unwrap();
        assert_eq!(evicted, [key(0)]);
        ledger.reserve(session(8), key(1), 30, 1, start).unwrap();
        assert_eq!(
            ledger.used(),
            92,
            "weights that are there need not be loaded again"
        );
    }

    #[test]
    fn spare_weights_take_free_memory_only_and_make_room_for_whoever_needs_it() {
        let (mut ledger, now) = (Ledger::new(100), Instant::now());
        ledger.reserve(session(1), key(0), 40, 10, now).unwrap();
        assert!(ledger.keep_spare(key(1), 50, now));
        assert!(!ledger.keep_spare(key(2), 1, now), "nothing is free");
        assert!(ledger.keep_spare(key(1), 50, now), "it is there already");
        assert_eq!((ledger.used(), ledger.held()), (100, 50));
        let evicted = ledger.reserve(session(2), key(3), 40, 10, now).unwrap();
        assert_eq!(evicted, [key(1)]);
        ledger.release(session(2), now);
        assert!(!ledger.keep_spare(key(1), 50, now), "unused weights stay");
    }

    #[test]
    fn spare_weights_that_a_session_takes_over_need_no_more_memory() {
        let (mut ledger, now) = (Ledger::new(100), Instant::now());
        assert!(ledger.keep_spare(key(0), 90, now));
        let evicted = ledger.reserve(session(1), key(0), 90, 10, now).unwrap();
        assert_eq!((evicted, ledger.used(), ledger.held()), (vec![], 100, 100));
        assert!(!ledger.forget_unused(&key(0)), "it is in use");
    }

    #[test]
    fn what_is_of_use_takes_half_of_what_is_free_at_most_and_goes_with_its_session() {
        let (mut ledger, now) = (Ledger::new(100), Instant::now());
        assert!(!ledger.add_spare(session(1), 1), "it holds nothing");
        ledger.reserve(session(1), key(0), 40, 20, now).unwrap();
        assert!(!ledger.add_spare(session(1), 21));
        assert!(ledger.add_spare(session(1), 20));
        assert_eq!(ledger.held(), 80);
        ledger.release(session(1), now);
        assert_eq!(ledger.used(), 40);
    }

    #[test]
    fn weights_in_use_are_never_evicted() {
        let (mut ledger, now) = (Ledger::new(50), Instant::now());
        ledger.reserve(session(1), key(0), 30, 1, now).unwrap();
        assert!(ledger.reserve(session(2), key(1), 30, 1, now).is_err());
        assert!(!ledger.forget_unused(&key(0)));
    }

    #[test]
    fn a_session_that_reserves_again_gives_back_what_it_had() {
        let (mut ledger, now) = (Ledger::new(100), Instant::now());
        ledger.reserve(session(1), key(0), 40, 50, now).unwrap();
        ledger.reserve(session(1), key(0), 40, 60, now).unwrap();
        assert_eq!(ledger.used(), 100);
    }
}
