//! Who would have to compute what, were a peer of a route lost: each peer in turn, one at a time.

use accel_inference::LayerRange;
use accel_p2p::PeerId;

use super::{PeerFacts, PlanRequest, plan};

/// Stages that are foreseen for one route, at most.
const MOST: usize = 32;

/// The stages that the loss of one peer of the route that is `held` would bring, and that nobody
/// computes there now. The coordinator itself is not lost: its sessions would be, too.
pub(crate) fn stand_ins(request: &PlanRequest<'_>) -> Vec<(PeerId, LayerRange)> {
    let is_self = |peer: PeerId| request.peers.iter().any(|p| p.peer == peer && p.is_self);
    let mut stages: Vec<(PeerId, LayerRange)> = Vec::new();
    for (lost, _) in request.held.iter().filter(|(peer, _)| !is_self(*peer)) {
        for stage in without(request, *lost) {
            if !request.held.contains(&stage) && !stages.contains(&stage) {
                stages.push(stage);
            }
        }
    }
    stages.truncate(MOST);
    stages
}

/// The plan without a peer; nothing where there is none.
fn without(request: &PlanRequest<'_>, lost: PeerId) -> Vec<(PeerId, LayerRange)> {
    let others = request.peers.iter().filter(|peer| peer.peer != lost);
    let peers: Vec<PeerFacts> = others.cloned().collect();
    let request = PlanRequest {
        peers: &peers,
        ..*request
    };
    let stages = plan(&request).map(|plan| plan.stages).unwrap_or_default();
    let named = stages.into_iter().map(|stage| (stage.peer, stage.layers));
    named.collect()
}
