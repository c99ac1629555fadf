//! `replay`: the stage in front of those that lack something sends the outputs again that it kept.
//! Only these compute; a position crosses one link as a hidden row.

use super::{Offer, Situation, Source, Way};

/// See the module.
pub(super) struct Replay;

impl Way for Replay {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn offer(&self, situation: &Situation, length: u64) -> Option<Offer> {
        let (first, last) = situation.lacking(length)?;
        // The nearest that can: those in between compute as well.
        let before = situation.stages.get(..first)?;
        let source = before.iter().rposition(|stage| stage.outputs >= length)?;
        Some(situation.feeding(Source::Outputs(source), source + 1, last, length))
    }
}
