//! Finds the numbers of entries by what they are.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::hash::{BuildHasher, Hash, RandomState};

/// The numbers of entries that lie elsewhere, by their keys, at five bytes for each place. Who asks
/// tells what the key of an entry is: always the same.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    entries: HashTable<u32>,
    hasher: RandomState,
}

impl Lookup {
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self {
            entries: HashTable::with_capacity(entries),
            hasher: RandomState::new(),
        }
    }

    /// The entry with this key.
    pub(super) fn get<K: Hash + Eq>(&self, key: K, key_of: impl Fn(u32) -> K) -> Option<u32> {
        let hash = self.hasher.hash_one(&key);
        let found = self.entries.find(hash, |entry| key_of(*entry) == key);
        found.copied()
    }

    /// Adds an entry. Of two with the same key it stays if it `replaces`.
    pub(super) fn insert<K: Hash + Eq>(
        &mut self,
        entry: u32,
        replaces: bool,
        key_of: impl Fn(u32) -> K,
    ) {
        let (hasher, key) = (&self.hasher, key_of(entry));
        let is_same = |other: &u32| key_of(*other) == key;
        let hash_of = |other: &u32| hasher.hash_one(key_of(*other));
        match self.entries.entry(hasher.hash_one(&key), is_same, hash_of) {
            Entry::Occupied(mut place) if replaces => *place.get_mut() = entry,
            Entry::Occupied(_) => {}
            Entry::Vacant(place) => {
                place.insert(entry);
            }
        }
    }

    /// All entries, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_with_one_key_the_later_stays_only_if_it_replaces() {
        let texts = ["a", "b", "a", "a"];
        let key_of = |entry: u32| texts.get(entry as usize).copied();
        let mut lookup = Lookup::with_capacity(0);
        for (entry, replaces) in [(0, false), (1, false), (2, true), (3, false)] {
            lookup.insert(entry, replaces, key_of);
        }
        let found = ["a", "b", "c"].map(|text| lookup.get(Some(text), key_of));
        assert_eq!(found, [Some(2), Some(1), None]);
        assert_eq!(lookup.iter().sum::<u32>(), 3);
    }
}
