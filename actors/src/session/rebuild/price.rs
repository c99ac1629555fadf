//! What it takes to bring positions through stages, from what they measured: each computes a chunk
//! while the one before computes the next, and so do the links between them. What nobody measured
//! is taken from the others of the route, and what none of them did from a constant.

use std::time::Duration;

use super::{Feed, Holding, Situation, Source};
use crate::session::machine::CHUNK;

/// Nanoseconds that a layer takes for a position, where no stage has measured any.
const LAYER_NS: u64 = 100_000;
/// Bytes per second of a link, where neither end has measured any: a gigabit.
const LINK_BYTES_S: u64 = 125_000_000;

/// What it takes to hear that stages were fed, before all go on together.
const TURN: Duration = Duration::from_millis(5);

/// Nanoseconds to take a byte of a KV cache out, check it and put it in again.
const COPIED_BYTE_NS: u64 = 1;

const SECOND_NS: u64 = 1_000_000_000;

impl Situation {
    /// All positions from `begin` on through all stages.
    pub(super) fn together_from(&self, begin: u64) -> Duration {
        self.through(0, self.last(), self.total.saturating_sub(begin))
    }

    /// First so many positions through some stages, then the rest through all.
    pub(super) fn fed(&self, first: usize, last: usize, feed: &Feed) -> Duration {
        let positions = feed.to - feed.from;
        let feeding = match feed.source {
            Source::Cache(donor) => self.copying(donor, first, positions),
            Source::Tokens | Source::Outputs(_) => self.through(first, last, positions),
        };
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

    /// Keys and values of so many positions from a donor to a stage: over the link, and in and out.
    fn copying(&self, donor: usize, stage: usize, positions: u64) -> Duration {
        let donors = self.donors.iter();
        let mut ends: Vec<Holding> = donors
            .filter(|known| known.number == donor)
            .map(|known| known.holding)
            .collect();
        ends.extend(self.stages.get(stage));
        let layers = ends.first().map_or(0, |end| u64::from(end.layers));
        let bytes = self.kv_bytes.saturating_mul(layers);
        let on_the_way = bytes.saturating_mul(SECOND_NS) / slower_of(&ends);
        let in_and_out = bytes.saturating_mul(COPIED_BYTE_NS);
        let each = on_the_way.saturating_add(in_and_out);
        Duration::from_nanos(each.saturating_mul(positions))
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
