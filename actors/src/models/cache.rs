//! A few values by CID; the one unused for longest makes room.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cid::Cid;

/// See the module.
pub(super) struct Cache<T> {
    limit: usize,
    /// Used last at the back.
    entries: Mutex<VecDeque<(Cid, T)>>,
}

impl<T: Clone> Cache<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            entries: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Cid, T)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, cid: &Cid) -> Option<T> {
        let mut entries = self.lock();
        let index = entries.iter().position(|(known, _)| known == cid)?;
        let entry = entries.remove(index)?;
        let value = entry.1.clone();
        entries.push_back(entry);
        Some(value)
    }

    pub(super) fn put(&self, cid: Cid, value: T) {
        let mut entries = self.lock();
        entries.retain(|(known, _)| *known != cid);
        if entries.len() >= self.limit {
            entries.pop_front();
        }
        entries.push_back((cid, value));
    }

    pub(super) fn remove(&self, cid: &Cid) {
        self.lock().retain(|(known, _)| known != cid);
    }
}
