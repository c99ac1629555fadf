//! The planner: which peer computes which layers. A pure function of what is known about the
//! model and the peers; no clock, no IO, no randomness, and the order of the peers does not matter.
//!
//! Splitting is a cost: a model that fits whole on one peer is never split. Only when it fits
//! nowhere, contiguous ranges of layers go to several peers, so that the predicted time per token
//! (weights read at the measured speed, plus a price per hop) is the lowest. Stages of one plan
//! are always of one numerics class: results are comparable only within a class.
//!
//! | File | Holds |
//! |---|---|
//! | `cost.rs` | bytes and predicted times of ranges of layers |
//! | `single.rs` | the choice among peers that hold everything |
//! | `split.rs` | the choice of ranges |
//! | `along.rs` | the same cuts again, on other peers |
//! | `stay.rs` | whether what is loaded is kept when peers of a route are lost |
//! | `stand_ins.rs` | who would take over, were a peer lost |
//! | `better.rs` | whether a running session should move |
//! | `shortfall.rs` | why nothing fits, with numbers |

mod along;
mod better;
mod cost;
mod shortfall;
mod single;
mod split;
mod stand_ins;
mod stay;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use accel_inference::{KvFormat, LayerRange, ModelShape};
use accel_p2p::PeerId;

pub use shortfall::{PeerShortfall, PlanError};

pub(crate) use along::along;
pub(crate) use better::{Why, better};
use cost::Costs;
pub(crate) use stand_ins::stand_ins;
pub use stay::{Progress, Weighed};

/// What the planner knows about a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerFacts {
    /// Who it is.
    pub peer: PeerId,
    /// Whether it is the coordinator itself.
    pub is_self: bool,
    /// Memory that it gives to models.
    pub memory_bytes: u64,
    /// The most layers of one model that it takes.
    pub max_layers: Option<u32>,
    /// Measured speed of its engine, in GB/s of weights.
    pub gb_s: f32,
    /// Its numerics class.
    pub numerics: String,
    /// How much of the model it has on disk.
    pub present_bytes: u64,
}

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'a> {
    /// Sizes of the model.
    pub shape: &'a ModelShape,
    /// Size of the model's file: a peer with this much of it has to fetch nothing.
    pub model_bytes: u64,
    /// Tokens that the KV caches must hold.
    pub tokens: u32,
    /// Who could take part.
    pub peers: &'a [PeerFacts],
    /// Who computes what now, where a session is placed anew: what is loaded is kept if that is cheaper.
    pub held: &'a [(PeerId, LayerRange)],
    /// How far such a session is.
    pub progress: Progress,
    /// Who was asked to have which layers ready.
    pub warm: &'a [(PeerId, LayerRange)],
}

/// Who computes what.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The numerics class of every stage.
    pub numerics: String,
    /// The stages in the order of their layers.
    pub stages: Vec<PlannedStage>,
    /// Predicted nanoseconds per token, hops included.
    pub token_ns: u64,
    /// Why this plan and no other.
    pub why: String,
    /// What it was weighed against, where a session is placed anew.
    pub weighed: Option<Weighed>,
}

/// One stage of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedStage {
    /// Who computes it.
    pub peer: PeerId,
    /// Whether that is the coordinator.
    pub is_self: bool,
    /// Its layers.
    pub layers: LayerRange,
    /// Memory that the weights take.
    pub weights_bytes: u64,
    /// Memory that the KV cache takes.
    pub kv_bytes: u64,
    /// The measured speed that the prediction rests on.
    pub gb_s: f32,
    /// Predicted nanoseconds per token, without hops.
    pub token_ns: u64,
    /// Why this peer and these layers.
    pub why: String,
}

/// A route while it is being weighed: peers by index, with their layers.
type Route = Vec<(usize, LayerRange)>;

/// Finds the plan with the lowest predicted time per token, whole before split; for a session that is placed
/// anew, the one with which it is done first.
pub fn plan(request: &PlanRequest<'_>) -> Result<Plan, PlanError> {
    Ok(stay::choose(request, best(request)?))
}

/// The plan with the lowest predicted time per token, whatever is held now.
fn best(request: &PlanRequest<'_>) -> Result<Plan, PlanError> {
    let classes = by_class(request);
    let holders = |peer: &PeerFacts| peer.present_bytes >= request.model_bytes;

    let singles = classes.iter().filter_map(|class| {
        let choice = single::choose(&class.costs, &class.peers, &holders)?;
        Some((class, choice))
    });
    if let Some((class, best)) =
        singles.min_by_key(|(_, choice)| (choice.near_tie_rank, choice.token_ns))
    {
        return Ok(single::describe(&class.costs, request.peers, best));
    }
    let splits = classes.iter().filter_map(|class| {
        let route = split::choose(&class.costs, &class.peers)?;
        let token_ns = split::route_ns(&class.costs, &class.peers, &route);
        Some((token_ns, class, route))
    });
    match splits.min_by_key(|(token_ns, ..)| *token_ns) {
        Some((_, class, route)) => Ok(split::describe(&class.costs, &class.peers, &route)),
        None => Err(shortfall::explain(request, &classes)),
    }
}

/// The peers of one numerics class.
struct Class {
    /// What the model costs on them: the form of their KV caches is part of the class.
    costs: Costs,
    peers: Vec<PeerFacts>,
}

/// Peers by numerics class, each once, in an order that does not depend on the input's.
fn by_class(request: &PlanRequest<'_>) -> Vec<Class> {
    let mut seen = BTreeSet::new();
    let mut classes: BTreeMap<&str, Vec<PeerFacts>> = BTreeMap::new();
    for peer in request.peers {
        if seen.insert(peer.peer) {
            let class = classes.entry(&peer.numerics).or_default();
            class.push(peer.clone());
        }
    }
    let class = |(numerics, mut peers): (&str, Vec<PeerFacts>)| {
        peers.sort_by_key(|peer| (std::cmp::Reverse(cost::speed_key(peer)), peer.peer));
        // Of a class that this build does not know, the larger form is assumed.
        let kv = KvFormat::of_numerics(numerics).unwrap_or_default();
        Class {
            costs: Costs::new(request.shape, request.tokens, kv),
            peers,
        }
    };
    classes.into_iter().map(class).collect()
}

/// Bytes for people.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {name}"),
    }
}
