//! How stages get back the KV caches that they lack, once the route of a new epoch is ready: ways,
//! each in a file of its own, of which the cheapest is taken. Pure: from what the stages reported
//! to a plan, and what every way would cost. A new way is a file here and a line in [`WAYS`].
//!
//! | File | Holds |
//! |---|---|
//! | `keep.rs` | nothing to rebuild: every stage goes on from what it has |
//! | `replay.rs` | a stage sends the outputs that it kept into those behind it |
//! | `copy.rs` | a peer that still has the KV cache of a stage gives it to it |
//! | `prefill.rs` | the tokens again, through all stages up to the last that lacks something |
//! | `price.rs` | what computing and sending cost, from measured numbers |

mod copy;
mod keep;
mod prefill;
mod price;
mod replay;

use std::time::Duration;

use super::event::StageReport;

/// What is known once all stages of a route are ready.
#[derive(Debug, Clone)]
pub(crate) struct Situation {
    pub(crate) stages: Vec<Holding>,
    /// Peers that can give their KV caches.
    pub(crate) donors: Vec<Donor>,
    /// Positions that all stages need before the next token.
    pub(crate) total: u64,
    /// Bytes of the hidden row of a position.
    pub(crate) row_bytes: u64,
    /// Bytes that a position takes in the KV cache of a layer; 0 where that is not known.
    pub(crate) kv_bytes: u64,
}

/// A peer that is not in the route and has the KV cache of layers that a stage of it has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Donor {
    /// Its number, behind the route.
    pub(crate) number: usize,
    /// The stage.
    pub(crate) stage: usize,
    pub(crate) holding: Holding,
}

/// A position takes no stage longer, whatever it says: a second.
const SLOWEST_NS: u64 = 1_000_000_000;

/// What one of them reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) layers: u32,
    /// Positions in its KV cache.
    pub(crate) cached: u64,
    /// Positions whose outputs it can send again.
    pub(crate) outputs: u64,
    /// Nanoseconds for a position of a prompt; 0 when that was not measured.
    pub(crate) prefill_ns: u64,
    /// Bytes per second that it takes in; 0 when that was not measured.
    pub(crate) bytes_s: u64,
}

impl Holding {
    /// A report, as far as it can be true: the last position is computed again in any case, since
    /// its token is what is missing.
    pub(crate) fn of(report: StageReport, layers: u32, total: u64) -> Self {
        let cached = report.cached.min(total.saturating_sub(1));
        Self {
            layers,
            cached,
            outputs: report.outputs.min(cached),
            prefill_ns: report.prefill_ns.min(SLOWEST_NS),
            bytes_s: report.plane_bytes_s,
        }
    }
}

/// How the stages get what they lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Positions that each stage goes on with; what it holds behind them is forgotten.
    pub(crate) lengths: Vec<u64>,
    /// What some stages are fed before all go on together.
    pub(crate) feed: Option<Feed>,
    /// Where all go on together.
    pub(crate) begin: u64,
}

/// Positions for some of the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Feed {
    pub(crate) source: Source,
    /// The last stage that is fed.
    pub(crate) until: usize,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Where rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The tokens, into the first stage.
    Tokens,
    /// The outputs that this stage kept, into the next.
    Outputs(usize),
    /// The KV cache of the donor of this number, into the stage that is fed.
    Cache(usize),
}

/// A plan and what it would take until the next token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) plan: Plan,
    pub(crate) price: Duration,
}

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) way: &'static str,
    pub(crate) plan: Plan,
    /// What each way would take that is possible.
    pub(crate) prices: Vec<(&'static str, Duration)>,
}

/// A way to rebuild.
pub(crate) trait Way: Sync {
    /// As metrics and records call it.
    fn name(&self) -> &'static str;
    /// How it brings all stages to `length` positions, from which they go on together; none where
    /// it cannot. Stages that hold more forget the rest.
    fn offer(&self, situation: &Situation, length: u64) -> Option<Offer>;
}

/// All ways; of equal prices the first wins.
const WAYS: [&dyn Way; 4] = [&keep::Keep, &replay::Replay, &copy::Copy, &prefill::Prefill];

/// The way of this name.
pub(crate) fn named(name: &str) -> Option<&'static dyn Way> {
    WAYS.into_iter().find(|way| way.name() == name)
}

/// Names the way that is taken where it is possible, instead of the cheapest: to measure them.
const ASKED_FOR: &str = "ACCEL_MEASURE_REBUILD";

/// The way that the environment asks for.
pub(crate) fn asked_for() -> Option<&'static dyn Way> {
    let name = std::env::var(ASKED_FOR).ok()?;
    let way = named(&name);
    if way.is_none() {
        tracing::warn!("{ASKED_FOR} names no way to rebuild: {name}");
    }
    way
}

/// The cheapest way, or the cheapest plan of the one that is asked for, where that is possible.
pub(crate) fn choose(situation: &Situation, only: Option<&'static dyn Way>) -> Choice {
    let mut offers: Vec<(&'static str, Offer)> = Vec::new();
    for way in WAYS {
        let lengths = situation.lengths().into_iter();
        let plans = lengths.filter_map(|length| way.offer(situation, length));
        if let Some(best) = plans.min_by_key(|offer| offer.price) {
            offers.push((way.name(), best));
        }
    }
    let prices = offers.iter().map(|(way, offer)| (*way, offer.price));
    let prices: Vec<_> = prices.collect();
    let is_wanted = |way: &str| only.is_some_and(|only| only.name() == way);
    let best = offers
        .into_iter()
        .min_by_key(|(way, offer)| (!is_wanted(way), offer.price));
    let (way, Offer { plan, .. }) = best.expect("tokens can always be computed again");
    Choice { way, plan, prices }
}

impl Situation {
    /// Lengths that are worth going on from: what some stage or donor has, and nothing. A donor may have
    /// been cut off a few positions before the others.
    fn lengths(&self) -> Vec<u64> {
        let donors = self.donors.iter().map(|donor| &donor.holding);
        let holdings = self.stages.iter().chain(donors);
        let mut lengths: Vec<u64> = holdings.map(|holding| holding.cached).collect();
        lengths.push(0);
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    /// The first and the last stage that have fewer positions.
    fn lacking(&self, length: u64) -> Option<(usize, usize)> {
        let lacks = |stage: &Holding| stage.cached < length;
        let first = self.stages.iter().position(lacks)?;
        let last = self.stages.iter().rposition(lacks)?;
        Some((first, last))
    }

    fn last(&self) -> usize {
        self.stages.len().saturating_sub(1)
    }

    /// The stages from `first` to `until` are fed, and the others keep theirs. What all that are fed
    /// have already is not fed again.
    fn feeding(&self, source: Source, first: usize, until: usize, length: u64) -> Offer {
        let fed = self.stages.get(first..=until).unwrap_or_default();
        let from = fed.iter().map(|stage| stage.cached).min().unwrap_or(0);
        let from = from.min(length);
        let is_fed = |stage: usize| (first..=until).contains(&stage);
        let stages = 0..self.stages.len();
        let lengths = stages.map(|stage| if is_fed(stage) { from } else { length });
        let feed = Feed {
            source,
            until,
            from,
            to: length,
        };
        Offer {
            plan: Plan {
                lengths: lengths.collect(),
                feed: Some(feed),
                begin: length,
            },
            price: self.fed(first, until, &feed),
        }
    }

    /// All stages go on together from the same position.
    fn together(&self, begin: u64) -> Offer {
        Offer {
            plan: Plan {
                lengths: vec![begin; self.stages.len()],
                feed: None,
                begin,
            },
            price: self.together_from(begin),
        }
    }
}

#[cfg(test)]
mod tests;
