//! What is kept of a route when peers of it are lost: the others go on with the layers that they
//! have loaded, and somebody takes over just those of the lost ones. It costs one load instead of
//! many, so it wins unless another route is much faster.

use accel_inference::LayerRange;
use accel_p2p::PeerId;

use super::cost::Costs;
use super::{PeerFacts, Route, split};

/// A route that keeps what is loaded may be slower than the best by this much.
const PATIENCE_PERCENT: u64 = 20;

/// `best`, or the route that is `held` now with others in place of those that are not among
/// `peers`, if that is not much slower.
pub(super) fn prefer(
    costs: &Costs,
    peers: &[PeerFacts],
    held: &[(PeerId, LayerRange)],
    best: Route,
) -> Route {
    let Some(mended) = mend(costs, peers, held) else {
        return best;
    };
    let fastest = split::route_ns(costs, peers, &best);
    let bearable = fastest.saturating_add(fastest / 100 * PATIENCE_PERCENT);
    match split::route_ns(costs, peers, &mended) <= bearable {
        true => mended,
        false => best,
    }
}

/// The held route with the best of the others in the gaps; none when a gap stays.
pub(super) fn mend(
    costs: &Costs,
    peers: &[PeerFacts],
    held: &[(PeerId, LayerRange)],
) -> Option<Route> {
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
