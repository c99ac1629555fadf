//! Whether a session should move: to a route without the peers that want to leave, or to one that is
//! faster by more than the move costs. Only routes count to which it can move while it runs: whoever
//! stays keeps the layers that it has.

use accel_inference::LayerRange;
use accel_p2p::PeerId;

use super::{Class, PeerFacts, Plan, PlanRequest, Route, by_class, plan, split, stay};

/// A route must be faster by this part of the present one: predictions are not exact.
const FASTER_BY: u64 = 4;
/// Nanoseconds that a byte takes to be loaded from disk, and to be fetched: 1 GB/s, 100 MB/s.
const LOAD_NS: u64 = 1;
const FETCH_NS: u64 = 10;

/// Why a session should move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// A peer of its route wants to leave.
    Draining,
    /// Another route is faster.
    Faster,
}

impl Why {
    /// As metrics and records call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Faster => "faster",
        }
    }
}

/// The route to move to, for a session that is `held` and has so many tokens to come. Peers of its
/// route that are not among `request.peers` want to leave.
pub(crate) fn better(request: &PlanRequest<'_>, to_come: u64) -> Option<(Plan, Why)> {
    let stays = |peer: PeerId| request.peers.iter().any(|known| known.peer == peer);
    if request.held.iter().any(|(peer, _)| !stays(*peer)) {
        let found = mended(request).or_else(|| plan(request).ok());
        let can_move = found.filter(|found| is_movable(request.held, found));
        return can_move.map(|found| (found, Why::Draining));
    }
    let present = present_ns(request)?;
    let candidates = plan(request).ok().into_iter().chain(swapped(request));
    let worth_it = candidates.filter(|found| {
        let gain = present.saturating_sub(found.token_ns);
        let saved = gain.saturating_mul(to_come);
        gain >= present / FASTER_BY
            && saved > readying_ns(request, found)
            && is_movable(request.held, found)
    });
    let best = worth_it.min_by_key(|found| found.token_ns)?;
    Some((best, Why::Faster))
}

/// Whether everyone who stays keeps its layers, and somebody comes.
fn is_movable(held: &[(PeerId, LayerRange)], found: &Plan) -> bool {
    let is_same = |peer, layers| held.contains(&(peer, layers));
    let is_held = |peer| held.iter().any(|(known, _)| *known == peer);
    let mut stages = found.stages.iter();
    let comes = stages.any(|stage| !is_held(stage.peer));
    let mut stages = found.stages.iter();
    comes && stages.all(|stage| is_same(stage.peer, stage.layers) || !is_held(stage.peer))
}

/// The class in which the session computes, and its route as indices there.
fn class_of(request: &PlanRequest<'_>) -> Option<(Class, Route)> {
    by_class(request).into_iter().find_map(|class| {
        let held = request.held.iter();
        let route: Option<Route> = held
            .map(|(peer, layers)| {
                let mut peers = class.peers.iter();
                let index = peers.position(|known| known.peer == *peer)?;
                Some((index, *layers))
            })
            .collect();
        route.map(|route| (class, route))
    })
}

/// Predicted time per token on the present route.
fn present_ns(request: &PlanRequest<'_>) -> Option<u64> {
    let (class, route) = class_of(request)?;
    Some(split::route_ns(&class.costs, &class.peers, &route))
}

/// The present route with the best others in place of those that want to leave.
fn mended(request: &PlanRequest<'_>) -> Option<Plan> {
    let classes = by_class(request).into_iter();
    let mended = classes.filter_map(|class| {
        let route = stay::mend(&class.costs, &class.peers, request.held)?;
        Some(described(&class, &route))
    });
    mended.min_by_key(|found| found.token_ns)
}

/// The present route with one of its peers replaced by the best of the others.
fn swapped(request: &PlanRequest<'_>) -> Vec<Plan> {
    let Some((class, route)) = class_of(request) else {
        return Vec::new();
    };
    let taken: Vec<PeerId> = request.held.iter().map(|(peer, _)| *peer).collect();
    let swap = |at: usize| {
        let (_, layers) = *route.get(at)?;
        let other = stay::stand_in(&class.costs, &class.peers, &taken, layers)?;
        let mut route = route.clone();
        *route.get_mut(at)? = (other, layers);
        Some(described(&class, &route))
    };
    (0..route.len()).filter_map(swap).collect()
}

fn described(class: &Class, route: &Route) -> Plan {
    split::describe(&class.costs, &class.peers, route)
}

/// Predicted time until the newcomers have their layers, all of them one after the other.
fn readying_ns(request: &PlanRequest<'_>, found: &Plan) -> u64 {
    let newcomers = found.stages.iter().filter(|stage| {
        let is_held = |held: &(PeerId, LayerRange)| held.0 == stage.peer;
        !request.held.iter().any(is_held)
    });
    let each = newcomers.map(|stage| {
        let present = request.peers.iter().find(|peer| peer.peer == stage.peer);
        let present = present.map_or(0, |peer: &PeerFacts| peer.present_bytes);
        let lacks = match present >= request.model_bytes {
            true => 0,
            false => stage.weights_bytes,
        };
        let load = stage.weights_bytes.saturating_mul(LOAD_NS);
        load.saturating_add(lacks.saturating_mul(FETCH_NS))
    });
    each.fold(0, u64::saturating_add)
}
