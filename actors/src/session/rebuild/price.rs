//! What it takes to bring positions through stages, from what they measured: each computes a chunk
//! while the one before computes the next, and so do the links between them. What nobody measured
//! is taken from the others of the route, and what none of them did from a constant.

use std::time::Duration;

use super::{Feed, Holding, Situation};
use crate::session::machine::CHUNK;

/// Nanoseconds that a layer takes for a position, where no stage has measured any.
const LAYER_NS: u64 = 100_000;
/// Bytes per second of a link, where neither end has measured any: a gigabit.
const LINK_BYTES_S: u64 = 125_000_000;

/// What it takes to hear that stages were fed, before all go on together.
const TURN: Duration = Duration::from_millis(5);

const SECOND_NS: u64 = 1_000_000_000;

impl Situation {
    /// All positions from `begin` on through all stages.
    pub(super) fn together_from(&self, begin: u64) -> Duration {
        self.through(0, self.last(), self.total.saturating_sub(begin))
    }

    /// First so many positions through some stages, then the rest through all.
    pub(super) fn fed(&self, first: usize, last: usize, feed: &Feed) -> Duration {
        let feeding = self.through(first, last, feed.to - feed.from);
        let rest = self.together_from(feed.to);
        feeding.saturating_add(TURN).saturating_add(rest)
    }

    /// So many positions through the stages from `first` to `last`, into which they come over the
    /// link from the stage before, if there is one.
    fn through(&self, first: usize, last: usize, positions: u64) -> Duration {
        let chunk = positions.min(CHUNK as u64);
        let (mut sum, mut slowest) = (0u64, 0u64);
        for stage in first..=last {
            for part in [self.link_ns(stage), self.stage_ns(stage)] {
                sum = sum.saturating_add(part);
                slowest = slowest.max(part);
            }
        }
        let first_chunk = sum.saturating_mul(chunk);
        let others = slowest.saturating_mul(positions - chunk);
        Duration::from_nanos(first_chunk.saturating_add(others))
    }

    /// What a stage takes for a position.
    fn stage_ns(&self, stage: usize) -> u64 {
        let Some(stage) = self.stages.get(stage) else {
            return 0;
        };
        match stage.prefill_ns {
            0 => self.layer_ns().saturating_mul(u64::from(stage.layers)),
            measured => measured,
        }
    }

    /// What a layer takes for a position, as a mean over those that measured.
    fn layer_ns(&self) -> u64 {
        let measured = self.stages.iter().filter(|stage| stage.prefill_ns > 0);
        let (mut layers, mut nanos) = (0u64, 0u64);
        for stage in measured {
            layers += u64::from(stage.layers);
            nanos = nanos.saturating_add(stage.prefill_ns);
        }
        nanos.checked_div(layers).unwrap_or(LAYER_NS)
    }

    /// What a hidden row takes from the stage before to this one; tokens cost nothing.
    fn link_ns(&self, stage: usize) -> u64 {
        let ends = stage.checked_sub(1);
        let ends = ends.and_then(|before| self.stages.get(before..=stage));
        let Some(ends) = ends else {
            return 0;
        };
        self.row_bytes.saturating_mul(SECOND_NS) / slower_of(ends)
    }
}

/// What a link gives: as much as its slower end takes in.
fn slower_of(ends: &[Holding]) -> u64 {
    let measured = ends.iter().map(|end| end.bytes_s).filter(|rate| *rate > 0);
    measured.min().unwrap_or(LINK_BYTES_S)
}
