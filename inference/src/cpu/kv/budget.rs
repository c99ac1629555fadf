//! What the caches of a stage may take in memory, and what they take.

use crate::stage::StageError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory of all caches of a stage. Clones are the same budget.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    allowed: u64,
    /// Counted by one thread at a time, whoever steps the stage.
    held: Arc<AtomicU64>,
}

/// A part of a budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    bytes: u64,
    held: Arc<AtomicU64>,
}

impl Budget {
    /// A budget of so many bytes, or without a bound.
    pub(crate) fn new(allowed: Option<u64>) -> Self {
        Self {
            allowed: allowed.unwrap_or(u64::MAX),
            held: Arc::default(),
        }
    }

    /// Refuses `needed` more bytes when they would go beyond what is allowed.
    pub(super) fn check(&self, needed: u64) -> Result<(), StageError> {
        let held = self.held.load(Ordering::Relaxed);
        if needed == 0 || held.saturating_add(needed) <= self.allowed {
            return Ok(());
        }
        Err(StageError::KvLimit {
            needed,
            held,
            allowed: self.allowed,
        })
    }

    /// Takes bytes that were checked.
    pub(super) fn take(&self, bytes: u64) -> Share {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Share {
            bytes,
            held: Arc::clone(&self.held),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::new(Some(10));
        let share = budget.clone().take(6);
        assert!(budget.check(4).is_ok());
        let refused = budget.check(5);
        assert!(matches!(
            refused,
            Err(StageError::KvLimit {
                needed: 5,
                held: 6,
                allowed: 10
            })
        ));
        drop(share);
        assert!(budget.check(10).is_ok());
    }

    #[test]
    fn without_a_bound_nothing_is_refused() {
        let budget = Budget::new(None);
        let _share = budget.take(1 << 40);
        assert!(budget.check(u64::MAX).is_ok());
    }
}
