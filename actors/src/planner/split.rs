//! The choice of ranges when the model fits nowhere whole.
//!
//! A token passes all stages one after the other, so the time is the sum over the stages plus a
//! price per hop. For up to [`EXACT_PEERS`] peers every order and every cut is weighed, by dynamic
//! programming over (peers used, layers placed). A second pass keeps the number of stages and
//! evens out the load between peers of about the same speed. Larger swarms are narrowed to the
//! fastest and the roomiest peers; when those do not suffice, peers are filled one by one.

use std::cmp::Reverse;

use accel_inference::LayerRange;

use super::cost::{Costs, speed_key};
use super::{PeerFacts, Plan, PlannedStage, Route, human_bytes};

/// Up to this many peers every plan is weighed.
const EXACT_PEERS: usize = 6;
/// Weight of evenness against time: one part in this many.
const EVENNESS: u64 = 8;

/// The best route over peers of one class, as indices into `peers`.
pub(super) fn choose(costs: &Costs, peers: &[PeerFacts]) -> Option<Route> {
    if costs.layers() == 0 {
        return None;
    }
    let all: Vec<usize> = (0..peers.len()).collect();
    if peers.len() <= EXACT_PEERS {
        return exact(costs, peers, &all);
    }
    let mut by_room = all.clone();
    by_room.sort_by_key(|&index| Reverse(peers.get(index).map(|peer| room(costs, peer))));
    let narrowed = [&all, &by_room].map(|order| {
        let mut few: Vec<usize> = order.iter().copied().take(EXACT_PEERS).collect();
        few.sort_unstable();
        exact(costs, peers, &few)
    });
    let filled = [&all, &by_room].map(|order| fill(costs, peers, order));
    narrowed
        .into_iter()
        .chain(filled)
        .flatten()
        .min_by_key(|route| route_ns(costs, peers, route))
}

/// How many layers a peer could take, roughly: for the order of filling only.
fn room(costs: &Costs, peer: &PeerFacts) -> u64 {
    let average = costs.memory(costs.whole()) / u64::from(costs.layers().max(1));
    let layers = peer.memory_bytes / average.max(1);
    layers.min(u64::from(peer.max_layers.unwrap_or(u32::MAX)))
}

fn exact(costs: &Costs, peers: &[PeerFacts], candidates: &[usize]) -> Option<Route> {
    let quickest = search(costs, peers, candidates, None)?;
    let even = search(costs, peers, candidates, Some(quickest.len()));
    Some(even.unwrap_or(quickest))
}

/// The cheapest way to have placed some layers with some peers.
#[derive(Clone)]
struct Partial {
    price: u64,
    route: Route,
}

/// With `stages`, only routes of that many stages are weighed, and evenness has a price.
fn search(
    costs: &Costs,
    peers: &[PeerFacts],
    candidates: &[usize],
    stages: Option<usize>,
) -> Option<Route> {
    let layers = costs.layers();
    let most = stages.unwrap_or(candidates.len());
    let mut best: Vec<Vec<Option<Partial>>> =
        vec![vec![None; layers as usize + 1]; 1 << candidates.len()];
    *best.first_mut()?.first_mut()? = Some(Partial {
        price: 0,
        route: Vec::new(),
    });
    for mask in 0..best.len() {
        for first in 0..layers {
            let Some(partial) = at(&best, mask, first).cloned() else {
                continue;
            };
            if partial.route.len() >= most {
                continue;
            }
            for (bit, &index) in candidates.iter().enumerate() {
                let Some(peer) = peers.get(index).filter(|_| mask & (1 << bit) == 0) else {
                    continue;
                };
                for (range, price) in ways_on(costs, peer, first, stages.is_some()) {
                    let stage = (index, range);
                    keep(&mut best, mask | (1 << bit), &partial, stage, price);
                }
            }
        }
    }
    let complete = best.iter().filter_map(|row| row.last()?.as_ref());
    complete
        .filter(|partial| stages.is_none_or(|wanted| partial.route.len() == wanted))
        .min_by_key(|partial| partial.price)
        .map(|partial| partial.route.clone())
}

fn at(best: &[Vec<Option<Partial>>], mask: usize, layer: u32) -> Option<&Partial> {
    best.get(mask)?.get(layer as usize)?.as_ref()
}

/// Strictly cheaper replaces, so that equal prices keep the first found: always the same one.
fn keep(
    best: &mut [Vec<Option<Partial>>],
    mask: usize,
    before: &Partial,
    stage: (usize, LayerRange),
    price: u64,
) {
    let price = before.price.saturating_add(price);
    let row = best.get_mut(mask);
    let Some(slot) = row.and_then(|row| row.get_mut(stage.1.end as usize)) else {
        return;
    };
    if slot.as_ref().is_none_or(|known| price < known.price) {
        let mut route = before.route.clone();
        route.push(stage);
        *slot = Some(Partial { price, route });
    }
}

/// Every range from `first` on that `peer` can hold, with its price.
fn ways_on<'a>(
    costs: &'a Costs,
    peer: &'a PeerFacts,
    first: u32,
    even: bool,
) -> impl Iterator<Item = (LayerRange, u64)> + 'a {
    let ranges = (first + 1..=costs.layers()).map(move |end| LayerRange::new(first, end));
    let fitting = ranges.take_while(|range| costs.fits(*range, peer));
    fitting.map(move |range| {
        let hops = arrival_ns(costs, peer, range.first) + departure_ns(costs, peer, range.end);
        let balance = if even {
            unevenness(costs, peer, range)
        } else {
            0
        };
        (range, costs.stage_ns(range, peer) + hops + balance)
    })
}

/// The hop into a stage; the coordinator's own first stage needs none.
fn arrival_ns(costs: &Costs, peer: &PeerFacts, first: u32) -> u64 {
    match first == 0 && peer.is_self {
        true => 0,
        false => costs.hop_ns(),
    }
}

/// The hop of the token back to the coordinator.
fn departure_ns(costs: &Costs, peer: &PeerFacts, end: u32) -> u64 {
    match end == costs.layers() && !peer.is_self {
        true => costs.hop_ns(),
        false => 0,
    }
}

/// Grows with the square of a stage's share, so that equals share equally.
fn unevenness(costs: &Costs, peer: &PeerFacts, range: LayerRange) -> u64 {
    let part = u128::from(costs.stage_ns(range, peer));
    let whole = u128::from(costs.stage_ns(costs.whole(), peer)).max(1);
    u64::try_from(part * part / whole / u128::from(EVENNESS)).unwrap_or(u64::MAX)
}

/// Gives each peer in turn as many layers as it can hold.
fn fill(costs: &Costs, peers: &[PeerFacts], order: &[usize]) -> Option<Route> {
    let mut route = Route::new();
    let mut first = 0;
    for &index in order {
        let peer = peers.get(index)?;
        let fitting = (first + 1..=costs.layers())
            .take_while(|&end| costs.fits(LayerRange::new(first, end), peer));
        if let Some(end) = fitting.last() {
            route.push((index, LayerRange::new(first, end)));
            first = end;
        }
        if first == costs.layers() {
            return Some(route);
        }
    }
    None
}

/// Predicted time per token, hops included.
pub(super) fn route_ns(costs: &Costs, peers: &[PeerFacts], route: &Route) -> u64 {
    let stages = route.iter().filter_map(|(index, range)| {
        let peer = peers.get(*index)?;
        let hops = arrival_ns(costs, peer, range.first) + departure_ns(costs, peer, range.end);
        Some(costs.stage_ns(*range, peer) + hops)
    });
    stages.sum()
}

pub(super) fn describe(costs: &Costs, peers: &[PeerFacts], route: &Route) -> Plan {
    let stages: Vec<PlannedStage> = route
        .iter()
        .filter_map(|(index, range)| Some(describe_stage(costs, peers.get(*index)?, *range)))
        .collect();
    let numerics = peers.first().map(|peer| peer.numerics.clone());
    let whole = costs.whole();
    Plan {
        numerics: numerics.unwrap_or_default(),
        token_ns: route_ns(costs, peers, route),
        why: format!(
            "split over {} peers: no single one takes {} layers and {}",
            stages.len(),
            whole.len(),
            human_bytes(costs.memory(whole))
        ),
        stages,
        weighed: None,
    }
}

fn describe_stage(costs: &Costs, peer: &PeerFacts, range: LayerRange) -> PlannedStage {
    let used = human_bytes(costs.memory(range));
    let offered = human_bytes(peer.memory_bytes);
    let speed = speed_key(peer) as f64 / 1000.0;
    let mut why = format!("{used} of {offered}, {speed:.1} GB/s measured");
    if let Some(most) = peer.max_layers {
        why.push_str(&format!(", takes at most {most} layers"));
    }
    PlannedStage {
        peer: peer.peer,
        is_self: peer.is_self,
        layers: range,
        weights_bytes: costs.weights(range),
        kv_bytes: costs.kv(range),
        gb_s: peer.gb_s,
        token_ns: costs.stage_ns(range, peer),
        why,
    }
}
