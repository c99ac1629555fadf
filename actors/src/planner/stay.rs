//! Where a session goes that is placed anew. The others of its route could go on with the layers that
//! they have loaded, and somebody takes over just those of whoever was lost; or it takes the best route
//! that there is now, and more has to be loaded and computed again. Both are priced over the rest of the
//! answer, and the cheaper one is taken.

use accel_inference::LayerRange;
use accel_p2p::PeerId;

use super::cost::Costs;
use super::{Class, PeerFacts, Plan, PlanRequest, Route, by_class, split};

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
    let mended = mended(request);
    let weighed = Weighed {
        keep_ns: mended.as_ref().map(|mended| price_ns(request, mended)),
        anew_ns: price_ns(request, &best),
    };
    let chosen = match mended {
        Some(mended) if weighed.keeps() => mended,
        _ => best,
    };
    Plan {
        weighed: Some(weighed),
        ..chosen
    }
}

/// Predicted time over a route until the answer is done: whoever has not these layers now gets them,
/// computes what the session has so far, and then come the tokens.
fn price_ns(request: &PlanRequest<'_>, plan: &Plan) -> u64 {
    let Progress { computed, to_come } = request.progress;
    let newcomers = plan
        .stages
        .iter()
        .filter(|stage| !request.held.contains(&(stage.peer, stage.layers)));
    let rebuilt = newcomers.fold(0, |sum: u64, stage| {
        sum.saturating_add(stage.token_ns / READS)
    });
    readying_ns(request, plan)
        .saturating_add(rebuilt.saturating_mul(computed))
        .saturating_add(plan.token_ns.saturating_mul(to_come))
}

/// Predicted time until the newcomers have their layers, all of them one after the other.
pub(super) fn readying_ns(request: &PlanRequest<'_>, found: &Plan) -> u64 {
    let newcomers = found
        .stages
        .iter()
        .filter(|stage| !request.held.contains(&(stage.peer, stage.layers)));
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

/// The route that is held with the best others in place of those that are not there.
pub(super) fn mended(request: &PlanRequest<'_>) -> Option<Plan> {
    let classes = by_class(request).into_iter();
    let mended = classes.filter_map(|class| {
        let route = mend(&class.costs, &class.peers, request.held)?;
        Some(described(&class, &route))
    });
    mended.min_by_key(|found| found.token_ns)
}

/// A route as a plan.
pub(super) fn described(class: &Class, route: &Route) -> Plan {
    split::describe(&class.costs, &class.peers, route)
}

/// The held route with the best of the others in the gaps; none when a gap stays.
fn mend(costs: &Costs, peers: &[PeerFacts], held: &[(PeerId, LayerRange)]) -> Option<Route> {
    let mut taken: Vec<PeerId> = held.iter().map(|(peer, _)| *peer).collect();
    let mut route = Route::new();
    for (holder, range) in held {
        let stays = peers.iter().position(|peer| peer.peer == *holder);
        let index = match stays {
            Some(index) => index,
            None => stand_in(costs, peers, &taken, *range)?,
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

/// The fastest of those that have nothing of the route yet.
pub(super) fn stand_in(
    costs: &Costs,
    peers: &[PeerFacts],
    taken: &[PeerId],
    range: LayerRange,
) -> Option<usize> {
    let free = peers.iter().enumerate().filter(|(_, peer)| {
        let is_free = !taken.contains(&peer.peer);
        is_free && costs.fits(range, peer)
    });
    let best = free.min_by_key(|(_, peer)| (costs.stage_ns(range, peer), peer.peer));
    best.map(|(index, _)| index)
}
