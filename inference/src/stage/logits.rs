//! Logits that a stage lends out.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// Rows of logits, one after the other. A stage uses their memory again once they are dropped: a
/// large vocabulary takes a megabyte a row, and fresh memory at every token would cost more than
/// some layers.
#[derive(Clone)]
pub struct LogitRows {
    /// Those of all sequences of a batch.
    all: Arc<Vec<f32>>,
    own: Range<usize>,
}

impl LogitRows {
    /// The values `own` of `all`, within which they must lie.
    pub(crate) fn new(all: Arc<Vec<f32>>, own: Range<usize>) -> Self {
        assert!(own.end <= all.len(), "the rows lie within the batch's");
        Self { all, own }
    }
}

impl From<Vec<f32>> for LogitRows {
    fn from(values: Vec<f32>) -> Self {
        let own = 0..values.len();
        Self::new(Arc::new(values), own)
    }
}

impl Deref for LogitRows {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.all[self.own.clone()]
    }
}

impl PartialEq for LogitRows {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl std::fmt::Debug for LogitRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}
