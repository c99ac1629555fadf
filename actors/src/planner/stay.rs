//! Where a session goes that is placed anew. The others of its route could go on with the layers that
//! they have loaded, and somebody takes over just those of whoever was lost; or it takes the best route
//! that there is now, and more has to be loaded and computed again. Both are priced over the rest of the
//! answer, and the cheaper one is taken.

use accel_inference::LayerRange;
use accel_p2p::PeerId;

use super::{Class, Plan, PlanRequest, PlannedStage, Route, by_class, split};

/// Nanoseconds that a byte takes to be loaded from disk, and to be fetched: 1 GB/s, 100 MB/s.
const LOAD_NS: u64 = 1;
const FETCH_NS: u64 = 10;
/// A stage reads so many positions of a prompt while it takes one token, at least.
const READS: u64 = 4;
/// The best route must be cheaper by this part: predictions are not exact, and until it is ready nothing
/// comes. A session may still move to it later, without a gap.
const CHEAPER_BY: u64 = 4;

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Positions that stages were given.
    pub computed: u64,
    /// Tokens that are to come, at most.
    pub to_come: u64,
}

/// What each way would take until the end of the answer, in predicted nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighed {
    /// With what is loaded; none where nobody could fill the gaps.
    pub keep_ns: Option<u64>,
    /// Over the best route that there is.
    pub anew_ns: u64,
    /// Until the next token, over the one that was chosen.
    pub next_ns: u64,
}

impl Weighed {
    /// Whether what is loaded is kept.
    pub fn keeps(&self) -> bool {
        let bearable = self.anew_ns.saturating_add(self.anew_ns / CHEAPER_BY);
        self.keep_ns.is_some_and(|keep| keep <= bearable)
    }
}

/// The cheaper of the best route and of the one that is held, mended.
pub(super) fn choose(request: &PlanRequest<'_>, best: Plan) -> Plan {
    if request.held.is_empty() {
        return best;
    }
    // A route of which nothing is left is as new as any.
    let keeps_some = |route: &Plan| {
        let mut stages = route.stages.iter();
        stages.any(|stage| request.held.contains(&(stage.peer, stage.layers)))
    };
    let mended = mended(request).filter(keeps_some);
    let mut weighed = Weighed {
        keep_ns: mended.as_ref().map(|mended| price_ns(request, mended)),
        anew_ns: price_ns(request, &best),
        next_ns: 0,
    };
    let chosen = match mended {
        Some(mended) if weighed.keeps() => mended,
        _ => best,
    };
    weighed.next_ns = next_ns(request, &chosen);
    Plan {
        weighed: Some(weighed),
        ..chosen
    }
}

/// Predicted time over a route until the answer is done: whoever has not these layers now gets them,
/// computes what the session has so far, and then come the tokens.
fn price_ns(request: &PlanRequest<'_>, plan: &Plan) -> u64 {
    let tokens = plan.token_ns.saturating_mul(request.progress.to_come);
    rebuilt_ns(request, plan).saturating_add(tokens)
}

/// Predicted time over a route until the next token.
fn next_ns(request: &PlanRequest<'_>, plan: &Plan) -> u64 {
    rebuilt_ns(request, plan).saturating_add(plan.token_ns)
}

/// Predicted time until the newcomers have their layers and what the session has so far.
fn rebuilt_ns(request: &PlanRequest<'_>, plan: &Plan) -> u64 {
    let newcomers = newcomers(request, plan);
    let position_ns = newcomers.fold(0, |sum: u64, stage| {
        sum.saturating_add(stage.token_ns / READS)
    });
    let computed = request.progress.computed;
    readying_ns(request, plan).saturating_add(position_ns.saturating_mul(computed))
}

/// Those that have not these layers in the session now.
fn newcomers<'a>(
    request: &PlanRequest<'a>,
    plan: &'a Plan,
) -> impl Iterator<Item = &'a PlannedStage> + use<'a> {
    let held = request.held;
    let stages = plan.stages.iter();
    stages.filter(|stage| !held.contains(&(stage.peer, stage.layers)))
}

/// Predicted time until all stages have what the session has so far, from the tokens, on machines that compute
/// for it meanwhile.
pub(super) fn anew_ns(request: &PlanRequest<'_>, plan: &Plan) -> u64 {
    let position_ns = plan.token_ns.saturating_mul(2) / READS;
    let computed = request.progress.computed;
    readying_ns(request, plan).saturating_add(position_ns.saturating_mul(computed))
}

/// Predicted time until the newcomers have their layers, all of them one after the other.
pub(super) fn readying_ns(request: &PlanRequest<'_>, plan: &Plan) -> u64 {
    newcomers(request, plan).fold(0, |sum: u64, stage| {
        let range = (stage.peer, stage.layers);
        sum.saturating_add(loading_ns(request, range, stage.weights_bytes))
    })
}

/// Predicted time until a peer has the layers of a stage: nothing where it was asked for them before.
fn loading_ns(request: &PlanRequest<'_>, stage: (PeerId, LayerRange), weights_bytes: u64) -> u64 {
    if request.warm.contains(&stage) {
        return 0;
    }
    let peer = request.peers.iter().find(|peer| peer.peer == stage.0);
    let has_all = peer.is_some_and(|peer| peer.present_bytes >= request.model_bytes);
    let fetch = if has_all { 0 } else { FETCH_NS };
    weights_bytes.saturating_mul(LOAD_NS + fetch)
}

/// The route that is held with the best others in place of those that are not there.
pub(super) fn mended(request: &PlanRequest<'_>) -> Option<Plan> {
    let classes = by_class(request).into_iter();
    let mended = classes.filter_map(|class| {
        let route = mend(request, &class)?;
        Some(described(&class, &route))
    });
    mended.min_by_key(|found| found.token_ns)
}

/// A route as a plan.
pub(super) fn described(class: &Class, route: &Route) -> Plan {
    split::describe(&class.costs, &class.peers, route)
}

/// The held route with the best of the others in the gaps; none when a gap stays.
fn mend(request: &PlanRequest<'_>, class: &Class) -> Option<Route> {
    let Class { costs, peers } = class;
    let mut taken: Vec<PeerId> = request.held.iter().map(|(peer, _)| *peer).collect();
    let mut route = Route::new();
    for (holder, range) in request.held {
        let stays = peers.iter().position(|peer| peer.peer == *holder);
        let index = match stays {
            Some(index) => index,
            None => stand_in(request, class, &taken, *range)?,
        };
        let peer = peers.get(index)?;
        if !costs.fits(*range, peer) {
            return None;
        }
        taken.push(peer.peer);
        route.push((index, *range));
    }
    let is_whole = route.last().map(|(_, range)| range.end) == Some(costs.layers());
    is_whole.then_some(route)
}

/// Of those that have nothing of the route yet, the one with which the answer is done first.
pub(super) fn stand_in(
    request: &PlanRequest<'_>,
    class: &Class,
    taken: &[PeerId],
    range: LayerRange,
) -> Option<usize> {
    let Class { costs, peers } = class;
    let Progress { computed, to_come } = request.progress;
    let tokens = to_come.saturating_add(computed / READS);
    let free = peers.iter().enumerate().filter(|(_, peer)| {
        let is_free = !taken.contains(&peer.peer);
        is_free && costs.fits(range, peer)
    });
    let best = free.min_by_key(|(_, peer)| {
        let token_ns = costs.stage_ns(range, peer);
        let loading = loading_ns(request, (peer.peer, range), costs.weights(range));
        let price = loading.saturating_add(token_ns.saturating_mul(tokens));
        (price, token_ns, peer.peer)
    });
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests;
