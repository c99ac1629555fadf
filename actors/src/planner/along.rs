//! A plan along given cuts: the same ranges of layers as another route, on other peers. Kuhn's
//! algorithm finds a peer for each range if that is possible at all; the fastest are tried first.

use accel_inference::LayerRange;

use super::{Class, PeerFacts, Plan, PlanRequest, Route, by_class, split};

/// The fastest class that has a peer for each range.
pub(crate) fn along(request: &PlanRequest<'_>, cuts: &[LayerRange]) -> Option<Plan> {
    let classes = by_class(request);
    let plans = classes.iter().filter_map(|class| {
        let route = assign(request, class, cuts)?;
        Some(split::describe(&class.costs, &class.peers, &route))
    });
    plans.min_by_key(|plan| plan.token_ns)
}

fn assign(request: &PlanRequest<'_>, class: &Class, cuts: &[LayerRange]) -> Option<Route> {
    let whole: u32 = cuts.iter().map(LayerRange::len).sum();
    if cuts.is_empty() || whole != class.costs.layers() {
        return None;
    }
    // Those that hold the range already are first, then the order of the class: by speed.
    let candidates = |range: &LayerRange| -> Vec<usize> {
        let fits = |index: &usize| {
            let peer = class.peers.get(*index);
            peer.is_some_and(|peer| class.costs.fits(*range, peer))
        };
        let mut able: Vec<usize> = (0..class.peers.len()).filter(fits).collect();
        able.sort_by_key(|index| !holds(request, class.peers.get(*index), *range));
        able
    };
    let mut matching = Matching {
        candidates: cuts.iter().map(candidates).collect(),
        taken: vec![None; class.peers.len()],
    };
    for range in 0..cuts.len() {
        if !matching.place(range, &mut vec![false; class.peers.len()]) {
            return None;
        }
    }
    Some(matching.route(cuts))
}

fn holds(request: &PlanRequest<'_>, peer: Option<&PeerFacts>, range: LayerRange) -> bool {
    peer.is_some_and(|peer| request.held.contains(&(peer.peer, range)))
}

struct Matching {
    /// Peers that could take each range, the best first.
    candidates: Vec<Vec<usize>>,
    /// The range that each peer has.
    taken: Vec<Option<usize>>,
}

impl Matching {
    /// Finds a peer for a range; one that has another range may make room if that finds another.
    fn place(&mut self, range: usize, seen: &mut Vec<bool>) -> bool {
        let candidates = self.candidates.get(range).cloned().unwrap_or_default();
        for peer in candidates {
            let is_seen = seen
                .get_mut(peer)
                .is_none_or(|seen| std::mem::replace(seen, true));
            if is_seen {
                continue;
            }
            let before = self.taken.get(peer).copied().flatten();
            if before.is_none_or(|other| self.place(other, seen)) {
                if let Some(slot) = self.taken.get_mut(peer) {
                    *slot = Some(range);
                }
                return true;
            }
        }
        false
    }

    fn route(&self, cuts: &[LayerRange]) -> Route {
        let taken = self.taken.iter().enumerate();
        let mut route: Route = taken
            .filter_map(|(peer, range)| Some((peer, *cuts.get((*range)?)?)))
            .collect();
        route.sort_by_key(|(_, range)| range.first);
        route
    }
}

#[cfg(test)]
mod tests {
    use accel_p2p::PeerId;

    use super::super::Progress;
    use super::*;
    use crate::planner::tests::{peer, shape};

    fn peer_with(n: u8, max_layers: Option<u32>, gb_s: f32) -> PeerFacts {
        PeerFacts {
            max_layers,
            ..peer(n, 100, gb_s)
        }
    }

    fn cuts(ends: &[u32]) -> Vec<LayerRange> {
        let firsts = std::iter::once(0).chain(ends.iter().copied());
        firsts
            .zip(ends)
            .map(|(first, end)| LayerRange::new(first, *end))
            .collect()
    }

    fn peers_of(plan: &Plan) -> Vec<(PeerId, LayerRange)> {
        let stages = plan.stages.iter();
        stages.map(|stage| (stage.peer, stage.layers)).collect()
    }

    #[test]
    fn each_range_goes_to_another_peer_that_can_hold_it_however_they_are_ordered() {
        let shape = shape(6);
        // The fastest could take any range; the second only the short one.
        let peers = [peer_with(1, None, 9.0), peer_with(2, Some(2), 5.0)];
        for held in [vec![], vec![(peers[0].peer, LayerRange::new(4, 6))]] {
            let request = PlanRequest {
                shape: &shape,
                model_bytes: 0,
                tokens: 8,
                peers: &peers,
                held: &held,
                progress: Progress::default(),
                warm: &[],
            };
            let plan = along(&request, &cuts(&[4, 6])).expect("there is one way");
            let wanted = [
                (peers[0].peer, LayerRange::new(0, 4)),
                (peers[1].peer, LayerRange::new(4, 6)),
            ];
            assert_eq!(peers_of(&plan), wanted);
            assert!(
                along(&request, &cuts(&[3, 6])).is_none(),
                "nobody for the other half"
            );
            assert!(
                along(&request, &cuts(&[2, 4, 6])).is_none(),
                "too few peers"
            );
            assert!(along(&request, &cuts(&[5])).is_none(), "layers are missing");
            assert!(along(&request, &[]).is_none());
        }
    }

    #[test]
    fn whoever_holds_a_range_keeps_it() {
        let shape = shape(6);
        let peers = [1, 2, 3].map(|n| peer_with(n, None, f32::from(n)));
        let held = [(peers[0].peer, LayerRange::new(3, 6))];
        let request = PlanRequest {
            shape: &shape,
            model_bytes: 0,
            tokens: 8,
            peers: &peers,
            held: &held,
            progress: Progress::default(),
            warm: &[],
        };
        let plan = along(&request, &cuts(&[3, 6])).expect("there are peers");
        assert_eq!(peers_of(&plan).last(), held.first());
    }

    #[test]
    fn classes_are_not_mixed() {
        let shape = shape(4);
        let mut peers = [1, 2].map(|n| peer_with(n, Some(2), 1.0));
        peers[1].numerics = "other-1".into();
        let request = PlanRequest {
            shape: &shape,
            model_bytes: 0,
            tokens: 8,
            peers: &peers,
            held: &[],
            progress: Progress::default(),
            warm: &[],
        };
        assert!(along(&request, &cuts(&[2, 4])).is_none());
    }
}
