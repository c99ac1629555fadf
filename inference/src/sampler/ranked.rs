//! Tokens from the most to the least likely, sorted only as far as someone looks.

use std::cmp::Ordering;

/// What is sorted first; most draws look no further.
const FIRST: usize = 128;

/// The tokens of a vocabulary by falling logit; of equals the lower id first.
pub(super) struct Ranked<'a> {
    logits: &'a [f32],
    /// Every token; empty until someone looks, for greedy draws seldom do.
    order: Vec<u32>,
    /// So many are in their final place.
    sorted: usize,
}

impl<'a> Ranked<'a> {
    /// Logits without NaN.
    pub(super) fn new(logits: &'a [f32]) -> Self {
        Self {
            logits,
            order: Vec::new(),
            sorted: 0,
        }
    }

    /// The token at a rank, with its logit.
    pub(super) fn get(&mut self, rank: usize) -> Option<(u32, f32)> {
        if rank >= self.sorted {
            self.sort_beyond(rank);
        }
        let token = *self.order.get(rank)?;
        Some((token, logit(self.logits, token)))
    }

    /// Sorts four times as far, at least beyond `rank`. The order is total: it does not depend on
    /// the steps in which it is found.
    fn sort_beyond(&mut self, rank: usize) {
        if self.order.is_empty() {
            self.order = (0u32..).take(self.logits.len()).collect();
        }
        let wanted = (rank + 1).max(self.sorted * 4).max(FIRST);
        let end = wanted.min(self.order.len());
        let logits = self.logits;
        let by_rank = |a: &u32, b: &u32| compare(logits, *a, *b);
        let Some(rest) = self.order.get_mut(self.sorted..) else {
            return;
        };
        let count = end.saturating_sub(self.sorted);
        if count > 0 && count < rest.len() {
            rest.select_nth_unstable_by(count - 1, by_rank);
        }
        if let Some(next) = rest.get_mut(..count) {
            next.sort_unstable_by(by_rank);
        }
        self.sorted = end;
    }
}

fn logit(logits: &[f32], token: u32) -> f32 {
    let logit = logits.get(token as usize).copied();
    logit.expect("tokens are indices of the logits")
}

fn compare(logits: &[f32], a: u32, b: u32) -> Ordering {
    let (of_a, of_b) = (logit(logits, a), logit(logits, b));
    let by_logit = of_b.partial_cmp(&of_a);
    by_logit.unwrap_or(Ordering::Equal).then(a.cmp(&b))
}
