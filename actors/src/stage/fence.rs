//! Which steps a stage may apply. Pure.

/// What becomes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It follows what is there: compute it.
    Apply,
    /// It was applied before: answer from what is kept.
    Repeat,
    /// It belongs to an epoch that is over.
    Stale { newest: u64 },
    /// Its position does not follow.
    Gap { have: u64 },
    /// It would exceed what was reserved.
    TooLong { limit: u64 },
    /// It would make the steps of all other sessions wait for too long.
    TooLarge,
}

/// The most rows of one step: twice what our own coordinators send, so that they may send more
/// some day. Whoever shares the stage waits for as long as such a step takes.
pub(crate) const MOST_ROWS: u64 = 512;

/// How far a session has come on a stage, counting steps that are still being computed.
#[derive(Debug)]
pub(crate) struct Fence {
    epoch: u64,
    last_step: u64,
    length: u64,
    limit: u64,
}

impl Fence {
    /// A fence before a KV cache of so many positions.
    pub(crate) fn new(epoch: u64, length: u64, limit: u64) -> Self {
        Self {
            epoch,
            last_step: 0,
            length,
            limit,
        }
    }

    /// Positions that were let through, and those before.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn admit(&mut self, epoch: u64, step: u64, position: u64, rows: u64) -> Admission {
        if epoch != self.epoch {
            return Admission::Stale { newest: self.epoch };
        }
        if step <= self.last_step {
            return Admission::Repeat;
        }
        if position != self.length {
            return Admission::Gap { have: self.length };
        }
        if rows > MOST_ROWS {
            return Admission::TooLarge;
        }
        if position.saturating_add(rows) > self.limit {
            return Admission::TooLong { limit: self.limit };
        }
        self.last_step = step;
        self.length += rows;
        Admission::Apply
    }
}

#[cfg(test)]
mod tests {
    use super::Admission::*;
    use super::*;

    #[test]
    fn steps_apply_in_order_and_everything_else_is_told_why_not() {
        let mut fence = Fence::new(3, 0, 10);
        let too_many = MOST_ROWS + 1;
        let cases = [
            ((3, 1, 0, 4), Apply, "the first"),
            ((3, 1, 0, 4), Repeat, "again"),
            ((2, 2, 4, 1), Stale { newest: 3 }, "an older epoch"),
            (
                (4, 2, 4, 1),
                Stale { newest: 3 },
                "an epoch never committed here",
            ),
            ((3, 2, 5, 1), Gap { have: 4 }, "a row is missing"),
            ((3, 2, 3, 1), Gap { have: 4 }, "a row is there already"),
            (
                (3, 2, 4, too_many),
                TooLarge,
                "more than others can wait for",
            ),
            ((3, 2, 4, 7), TooLong { limit: 10 }, "more than reserved"),
            ((3, 2, 4, 6), Apply, "what follows"),
            ((3, 1, 0, 4), Repeat, "long ago"),
        ];
        for ((epoch, step, position, rows), wanted, what) in cases {
            assert_eq!(fence.admit(epoch, step, position, rows), wanted, "{what}");
        }
    }

    #[test]
    fn behind_a_cache_that_was_kept_steps_go_on_where_it_ends() {
        let mut fence = Fence::new(3, 6, 10);
        assert_eq!(fence.admit(3, 40, 0, 4), Gap { have: 6 });
        assert_eq!(fence.admit(3, 41, 6, 2), Apply);
        assert_eq!(fence.length(), 8);
    }
}
