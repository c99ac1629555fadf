//! The choice among peers that can hold the whole model.

use super::cost::Costs;
use super::{PeerFacts, Plan, PlannedStage, human_bytes};

/// Measured speeds wander by this share from run to run: predictions closer than that are equal,
/// and what decides is who has the blocks already and needs no hop.
const NEAR_TIE_PERCENT: u64 = 20;

/// The best peer of a class for the whole model.
pub(super) struct Choice {
    peer: PeerFacts,
    holds_blocks: bool,
    /// Lower is better: first those that need to fetch nothing, then this node.
    pub(super) near_tie_rank: u8,
    pub(super) token_ns: u64,
}

pub(super) fn choose(
    costs: &Costs,
    peers: &[PeerFacts],
    holds_blocks: &dyn Fn(&PeerFacts) -> bool,
) -> Option<Choice> {
    let fitting: Vec<&PeerFacts> = peers
        .iter()
        .filter(|peer| costs.layers() > 0 && costs.fits(costs.whole(), peer))
        .collect();
    let fastest = fitting.iter().map(|peer| single_ns(costs, peer)).min()?;
    let near = fastest.saturating_add(fastest / 100 * NEAR_TIE_PERCENT);
    fitting
        .into_iter()
        .map(|peer| Choice {
            peer: peer.clone(),
            holds_blocks: holds_blocks(peer),
            near_tie_rank: 2 * u8::from(!holds_blocks(peer)) + u8::from(!peer.is_self),
            token_ns: single_ns(costs, peer),
        })
        .filter(|choice| choice.token_ns <= near)
        .min_by_key(|choice| (choice.near_tie_rank, choice.token_ns, choice.peer.peer))
}

/// A remote peer costs two hops: there and back.
fn single_ns(costs: &Costs, peer: &PeerFacts) -> u64 {
    let hops = if peer.is_self { 0 } else { 2 };
    costs.stage_ns(costs.whole(), peer) + hops * costs.hop_ns()
}

pub(super) fn describe(costs: &Costs, peers: &[PeerFacts], choice: Choice) -> Plan {
    let Choice {
        peer,
        holds_blocks,
        token_ns,
        ..
    } = choice;
    let layers = costs.whole();
    let needed = human_bytes(costs.memory(layers));
    let offered = human_bytes(peer.memory_bytes);
    let mut why = format!("all layers fit: {needed} of {offered}");
    why.push_str(if holds_blocks {
        ", and every block is there already"
    } else {
        "; the blocks are fetched first"
    });
    let others = peers.len().saturating_sub(1);
    let stage = PlannedStage {
        peer: peer.peer,
        is_self: peer.is_self,
        layers,
        weights_bytes: costs.weights(layers),
        kv_bytes: costs.kv(layers),
        gb_s: peer.gb_s,
        token_ns: costs.stage_ns(layers, &peer),
        why,
    };
    Plan {
        numerics: peer.numerics,
        stages: vec![stage],
        token_ns,
        why: format!(
            "not split: it fits whole, and a split only adds hops; chosen among {} peers by predicted time",
            others + 1
        ),
        weighed: None,
    }
}
