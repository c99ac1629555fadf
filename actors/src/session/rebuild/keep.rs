//! `keep`: every stage has a KV cache, and all go on together from the shortest.

use super::{Offer, Situation, Way};

/// See the module.
pub(super) struct Keep;

impl Way for Keep {
    fn name(&self) -> &'static str {
        "keep"
    }

    fn offer(&self, situation: &Situation, length: u64) -> Option<Offer> {
        if length == 0 || situation.lacking(length).is_some() {
            return None;
        }
        Some(situation.together(length))
    }
}
