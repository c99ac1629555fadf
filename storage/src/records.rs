//! Small records by kind and key, for whoever must not forget something that is neither content nor a
//! session. What is in them is their writers' business; what was written is on the disk when a call
//! returns. Blocking.

use sled::Tree;

use crate::durable::Durable;
use crate::error::Result;

/// What a record is; the number is on the disk and never given to another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Evidence that a peer lied.
    Evidence,
    /// A peer that is left out.
    Quarantine,
}

impl RecordKind {
    fn prefix(self) -> u8 {
        match self {
            Self::Evidence => 1,
            Self::Quarantine => 2,
        }
    }

    fn key(self, key: &[u8]) -> Vec<u8> {
        [&[self.prefix()], key].concat()
    }
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Records {
    tree: Tree,
    durable: Durable,
}

impl Records {
    pub(crate) fn new(tree: Tree, durable: Durable) -> Self {
        Self { tree, durable }
    }

    /// Writes a record; one of the same key is replaced.
    pub fn put(&self, kind: RecordKind, key: &[u8], value: &[u8]) -> Result<()> {
        self.tree.insert(kind.key(key), value)?;
        self.durable.flush(&self.tree)
    }

    /// Removes a record; whether there was one.
    pub fn remove(&self, kind: RecordKind, key: &[u8]) -> Result<bool> {
        let removed = self.tree.remove(kind.key(key))?;
        self.durable.flush(&self.tree)?;
        Ok(removed.is_some())
    }

    /// One record.
    pub fn get(&self, kind: RecordKind, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.tree.get(kind.key(key))?;
        Ok(value.map(|value| value.to_vec()))
    }

    /// All records of a kind, in the order of their keys.
    pub fn all(&self, kind: RecordKind) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = Vec::new();
        for item in self.tree.scan_prefix([kind.prefix()]) {
            let (key, value) = item?;
            all.push((key.get(1..).unwrap_or_default().to_vec(), value.to_vec()));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DataDir, Store};

    #[test]
    fn records_outlast_the_process_and_kinds_are_apart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(&DataDir::open(dir.path()).unwrap()).unwrap();
        let store = open();
        let records = store.records();
        records.put(RecordKind::Evidence, b"a", b"old").unwrap();
        records.put(RecordKind::Evidence, b"a", b"one").unwrap();
        records.put(RecordKind::Quarantine, b"a", b"two").unwrap();
        drop((store, records));
        let records = open().records();
        let all = |kind| records.all(kind).unwrap();
        assert_eq!(
            all(RecordKind::Evidence),
            [(b"a".to_vec(), b"one".to_vec())]
        );
        assert!(records.remove(RecordKind::Evidence, b"a").unwrap());
        assert!(!records.remove(RecordKind::Evidence, b"a").unwrap());
        assert!(all(RecordKind::Evidence).is_empty());
        let other = records.get(RecordKind::Quarantine, b"a").unwrap();
        assert_eq!(other, Some(b"two".to_vec()));
    }
}
