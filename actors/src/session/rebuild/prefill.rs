//! `prefill`: the tokens again, through all stages up to the last that lacks something; those
//! behind it keep what they have. It needs nothing but the tokens, so it is always possible.

use super::{Offer, Situation, Source, Way};

/// See the module.
pub(super) struct Prefill;

impl Way for Prefill {
    fn name(&self) -> &'static str {
        "prefill"
    }

    fn offer(&self, situation: &Situation, length: u64) -> Option<Offer> {
        if length == 0 {
            return Some(situation.together(0));
        }
        let (_, last) = situation.lacking(length)?;
        if last == situation.last() {
            // All stages are fed: that is to go on together from less.
            return None;
        }
        Some(situation.feeding(Source::Tokens, 0, last, length))
    }
}
