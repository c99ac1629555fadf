//! `copy`: a peer that is not in the route any more gives the KV cache of its layers to the stage
//! that has them now. Nobody computes; keys and values cross one link.

use super::{Offer, Situation, Source, Way};

/// See the module.
pub(super) struct Copy;

impl Way for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn offer(&self, situation: &Situation, length: u64) -> Option<Offer> {
        let (first, last) = situation.lacking(length)?;
        let mut donors = situation.donors.iter();
        // One stage can be helped; where more lack something, positions have to go through them.
        let gives = donors.find(|donor| {
            let has_it = donor.holding.cached >= length;
            has_it && donor.stage == first && first == last && situation.kv_bytes > 0
        });
        let source = Source::Cache(gives?.number);
        Some(situation.feeding(source, first, last, length))
    }
}
