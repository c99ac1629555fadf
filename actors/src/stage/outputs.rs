//! The outputs of a stage for one session, kept so that they can be sent again: a next stage that
//! is built anew gets its KV cache from them, and the stages before compute nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rows of a block: memory is taken as it is needed.
const BLOCK: usize = 64;

/// Rows from the first position on, without a gap.
#[derive(Debug)]
pub(crate) struct Outputs {
    row_bytes: usize,
    /// The most rows.
    limit: u64,
    rows: Mutex<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    blocks: Vec<Vec<u8>>,
    count: u64,
}

impl Outputs {
    pub(crate) fn new(row_bytes: usize, limit: u64) -> Self {
        Self {
            row_bytes: row_bytes.max(1),
            limit,
            rows: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many positions there are, from the first on.
    pub(crate) fn len(&self) -> u64 {
        self.lock().count
    }

    /// Takes rows in. Those that do not follow what is there end it: behind a gap nothing is of
    /// use, until the first position comes again.
    pub(crate) fn push(&self, position: u64, data: &[u8]) {
        let mut rows = self.lock();
        let more = (data.len() / self.row_bytes) as u64;
        if position != rows.count || position.saturating_add(more) > self.limit {
            *rows = Rows::default();
            return;
        }
        for row in data.chunks_exact(self.row_bytes) {
            rows.push(row);
        }
    }

    /// Forgets what is behind so many positions.
    pub(crate) fn truncate(&self, len: u64) {
        self.lock().truncate(len, self.row_bytes);
    }

    /// The rows of some positions, if all of them are there.
    pub(crate) fn read(&self, position: u64, count: u64) -> Option<Vec<u8>> {
        let rows = self.lock();
        let end = position.checked_add(count)?;
        if end > rows.count {
            return None;
        }
        let mut data = Vec::with_capacity(count as usize * self.row_bytes);
        for index in position..end {
            data.extend_from_slice(rows.row(index, self.row_bytes));
        }
        Some(data)
    }
}

impl Rows {
    fn push(&mut self, row: &[u8]) {
        let is_full = self.count.is_multiple_of(BLOCK as u64);
        if is_full {
            self.blocks.push(Vec::with_capacity(BLOCK * row.len()));
        }
        if let Some(block) = self.blocks.last_mut() {
            block.extend_from_slice(row);
            self.count += 1;
        }
    }

    fn row(&self, index: u64, row_bytes: usize) -> &[u8] {
        let (block, at) = (index as usize / BLOCK, index as usize % BLOCK * row_bytes);
        let block = self.blocks.get(block);
        let row = block.and_then(|block| block.get(at..at + row_bytes));
        row.expect("the index is below the count")
    }

    fn truncate(&mut self, len: u64, row_bytes: usize) {
        if len >= self.count {
            return;
        }
        self.count = len;
        self.blocks.truncate((len as usize).div_ceil(BLOCK));
        let rest = len as usize % BLOCK;
        if let Some(block) = self.blocks.last_mut().filter(|_| rest > 0) {
            block.truncate(rest * row_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(position: u64, version: u8) -> [u8; 3] {
        [position as u8, (position >> 8) as u8, version]
    }

    fn rows(from: u64, count: u64, version: u8) -> Vec<u8> {
        (from..from + count)
            .flat_map(|position| row(position, version))
            .collect()
    }

    proptest! {
        /// Against a plain vector: pushes that follow, truncations, and reads of any range.
        #[test]
        fn what_is_read_is_what_was_pushed_last(
            acts in proptest::collection::vec((any::<bool>(), 0..200u64), 1..30),
            from in 0..600u64, count in 0..600u64,
        ) {
            let (outputs, mut model) = (Outputs::new(3, 1000), Vec::new());
            for (version, (is_push, number)) in acts.into_iter().enumerate() {
                let have = model.len() as u64;
                if is_push && have + number <= 1000 {
                    outputs.push(have, &rows(have, number, version as u8));
                    model.extend((have..have + number).map(|at| row(at, version as u8)));
                } else {
                    outputs.truncate(number);
                    model.truncate(number as usize);
                }
            }
            prop_assert_eq!(outputs.len(), model.len() as u64);
            let wanted = model.get(from as usize..(from + count) as usize);
            prop_assert_eq!(outputs.read(from, count), wanted.map(<[_]>::concat));
        }
    }

    #[test]
    fn a_gap_or_too_many_rows_end_it_until_the_first_position_comes_again() {
        let outputs = Outputs::new(3, 10);
        for bad in [5, 3, u64::MAX] {
            outputs.push(0, &rows(0, 4, 0));
            assert_eq!(outputs.len(), 4);
            outputs.push(bad, &rows(0, 1, 0));
            assert_eq!(outputs.len(), 0, "{bad}");
            outputs.push(4, &rows(4, 1, 0));
            assert_eq!(outputs.len(), 0, "{bad}");
        }
        outputs.push(0, &rows(0, 11, 0));
        assert_eq!((outputs.len(), outputs.read(0, 1)), (0, None));
        assert_eq!(outputs.read(u64::MAX, 2), None);
    }
}
