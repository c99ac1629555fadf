//! Whether a session should move: to a route without the peers that want to leave, or to one that is
//! faster by more than the move costs. Where whoever stays gets other layers, a move costs more: up to the last
//! such stage, all is computed again from the tokens.

use accel_inference::LayerRange;
use accel_p2p::PeerId;

use super::{Class, Plan, PlanRequest, PlannedStage, Route, best, by_class, split, stay};

/// A route must be faster by this part of the present one: predictions are not exact.
const FASTER_BY: u64 = 4;

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

/// The route to move to, for a session that is `held`. Peers of its route that are not among
/// `request.peers` want to leave. `cuts_anew` says whether whoever stays may get other layers.
pub(crate) fn better(request: &PlanRequest<'_>, cuts_anew: bool) -> Option<(Plan, Why)> {
    let stays = |peer: PeerId| request.peers.iter().any(|known| known.peer == peer);
    let form_of = |found: &Plan| match form(request.held, found) {
        Form::CutsAnew if !cuts_anew => Form::Same,
        form => form,
    };
    if request.held.iter().any(|(peer, _)| !stays(*peer)) {
        let found = stay::mended(request).or_else(|| best(request).ok());
        let can_move = found.filter(|found| form_of(found) != Form::Same);
        return can_move.map(|found| (found, Why::Draining));
    }
    let present = present_ns(request)?;
    let candidates = best(request).ok().into_iter().chain(swapped(request));
    let worth_it = candidates.filter(|found| {
        let gain = present.saturating_sub(found.token_ns);
        let saved = gain.saturating_mul(request.progress.to_come);
        let costs = match form_of(found) {
            Form::Same => return false,
            Form::Comes => stay::readying_ns(request, found),
            Form::CutsAnew => stay::anew_ns(request, found),
        };
        gain >= present / FASTER_BY && saved > costs
    });
    let fastest = worth_it.min_by_key(|found| found.token_ns)?;
    Some((fastest, Why::Faster))
}

/// What a route is to those who hold the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Everybody has the layers already, or it is not one to move to.
    Same,
    /// Somebody comes, and whoever stays keeps its layers.
    Comes,
    /// Somebody stays with other layers.
    CutsAnew,
}

fn form(held: &[(PeerId, LayerRange)], found: &Plan) -> Form {
    let is_held = |peer| held.iter().any(|(known, _)| *known == peer);
    let new = |stage: &&PlannedStage| !held.contains(&(stage.peer, stage.layers));
    let mut new = found.stages.iter().filter(new).peekable();
    if new.peek().is_none() {
        return Form::Same;
    }
    match new.any(|stage| is_held(stage.peer)) {
        true => Form::CutsAnew,
        false => Form::Comes,
    }
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

/// The present route with one of its peers replaced by the best of the others.
fn swapped(request: &PlanRequest<'_>) -> Vec<Plan> {
    let Some((class, route)) = class_of(request) else {
        return Vec::new();
    };
    let taken: Vec<PeerId> = request.held.iter().map(|(peer, _)| *peer).collect();
    let swap = |at: usize| {
        let (_, layers) = *route.get(at)?;
        let other = stay::stand_in(request, &class, &taken, layers)?;
        let mut route = route.clone();
        *route.get_mut(at)? = (other, layers);
        Some(stay::described(&class, &route))
    };
    (0..route.len()).filter_map(swap).collect()
}

#[cfg(test)]
mod tests;
