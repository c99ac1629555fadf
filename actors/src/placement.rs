//! From a model to a route: asks the directory who is there, the planner who should compute what,
//! and keeps the addresses that go with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use accel_inference::{LayerRange, ModelShape};
use accel_p2p::PeerId;
use accel_p2p::wire::{PeerEndpoint, limit};
use cid::Cid;

use crate::directory::{Directory, PeerRecord, snapshot};
use crate::health::Health;
use crate::models::ModelRef;
use crate::planner::{
    PeerFacts, Plan, PlanError, PlanRequest, Progress, along, better, plan, stand_ins,
};
use crate::quarantine::Quarantine;
use crate::session::event::RouteStage;
use crate::supervisor::ActorRef;

/// Steps wander by this much, and long contexts cost something.
const USUAL_PERCENT: u32 = 150;
/// First routes that are tried until there is room for a second one beside it.
const LANE_ATTEMPTS: usize = 4;

/// Finds placements.
#[derive(Clone)]
pub(crate) struct Placer {
    pub(crate) directory: ActorRef<Directory>,
    pub(crate) health: Arc<Health>,
    pub(crate) quarantine: Arc<Quarantine>,
}

/// A plan with what is needed to carry it out.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub(crate) plan: Plan,
    pub(crate) route: Vec<RouteStage>,
    pub(crate) endpoints: HashMap<PeerId, PeerEndpoint>,
    /// Predicted nanoseconds per token.
    pub(crate) token_ns: u64,
    /// Who has blocks of the model, most first.
    providers: Vec<PeerId>,
}

impl Placement {
    /// None yet, for a session of this numerics class: the first plan replaces it.
    pub(crate) fn none(numerics: &str) -> Self {
        let plan = Plan {
            numerics: numerics.to_owned(),
            stages: Vec::new(),
            token_ns: 0,
            why: String::new(),
            weighed: None,
        };
        Self {
            plan,
            route: Vec::new(),
            endpoints: HashMap::new(),
            token_ns: 0,
            providers: Vec::new(),
        }
    }

    /// Where a peer can get blocks: everyone who has some, besides itself.
    pub(crate) fn providers_for(&self, peer: PeerId) -> Vec<PeerId> {
        others(&self.providers, peer)
    }
}

/// Where a running session should move.
pub(crate) struct Better {
    pub(crate) placement: Placement,
    /// As metrics and records call it.
    pub(crate) why: &'static str,
}

/// Where the first of two lanes goes; the second finds its own place beside it.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    pub(crate) first: Placement,
}

/// Which peers a placement may have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// None of these.
    pub(crate) excluding: Vec<PeerId>,
    /// Only those of this numerics class: what was begun in one is not gone on with in another.
    pub(crate) numerics: Option<String>,
    /// Who computes what now, where a session is placed anew.
    pub(crate) held: Vec<(PeerId, LayerRange)>,
    /// How far that session is.
    pub(crate) progress: Progress,
    /// Who was asked to have which layers of the model ready.
    pub(crate) warm: Vec<(PeerId, LayerRange)>,
}

impl Wanted {
    fn has(&self, record: &PeerRecord) -> bool {
        let class = self.numerics.as_ref();
        record.connected
            && !record.body.draining
            && !self.excluding.contains(&record.peer)
            && class.is_none_or(|class| *class == record.body.numerics)
    }
}

impl Placer {
    /// Places a model for `tokens` tokens on connected peers. Those that failed lately are left
    /// alone, unless it does not go without them.
    pub(crate) async fn place(
        &self,
        model: &ModelRef,
        shape: &ModelShape,
        tokens: u32,
        wanted: &Wanted,
    ) -> Result<Placement, PlanError> {
        let records = snapshot(&self.directory).await;
        let everyone: Vec<PeerFacts> = records
            .iter()
            .filter(|record| self.may_have(record, wanted))
            .map(|record| facts(record, &model.cid))
            .collect();
        let plan_with = |peers: &[PeerFacts]| {
            plan(&PlanRequest {
                shape,
                model_bytes: model.bytes,
                tokens,
                peers,
                held: &wanted.held,
                progress: wanted.progress,
                warm: &wanted.warm,
            })
        };
        let well = self.well(&everyone);
        let plan = match plan_with(&well) {
            Err(_) if well.len() < everyone.len() => plan_with(&everyone)?,
            planned => planned?,
        };
        Ok(placement(plan, &records, model))
    }

    /// Where a session should move, if anywhere.
    pub(crate) async fn better(
        &self,
        model: &ModelRef,
        shape: &ModelShape,
        tokens: u32,
        wanted: &Wanted,
        cuts_anew: bool,
    ) -> Option<Better> {
        let records = snapshot(&self.directory).await;
        let is_held = |peer| wanted.held.iter().any(|(held, _)| *held == peer);
        // Whoever is not there is lost, not leaving: that is for the recovery to see to.
        let is_there = |peer| records.iter().any(|record| record.peer == peer);
        if !wanted.held.iter().all(|(peer, _)| is_there(*peer)) {
            return None;
        }
        let now = Instant::now();
        let able = records.iter().filter(|record| {
            let is_well = record.is_self || self.health.admits(record.peer, now);
            self.may_have(record, wanted) && (is_held(record.peer) || is_well)
        });
        let peers: Vec<PeerFacts> = able.map(|record| facts(record, &model.cid)).collect();
        let request = PlanRequest {
            shape,
            model_bytes: model.bytes,
            tokens,
            peers: &peers,
            held: &wanted.held,
            progress: wanted.progress,
            warm: &wanted.warm,
        };
        let (plan, why) = better(&request, cuts_anew)?;
        Some(Better {
            placement: placement(plan, &records, model),
            why: why.name(),
        })
    }

    /// The same along given cuts: a route beside another one.
    pub(crate) async fn place_along(
        &self,
        model: &ModelRef,
        shape: &ModelShape,
        tokens: u32,
        wanted: &Wanted,
        cuts: &[LayerRange],
    ) -> Result<Placement, PlanError> {
        let records = snapshot(&self.directory).await;
        let able = records
            .iter()
            .filter(|record| self.may_have(record, wanted));
        let everyone: Vec<PeerFacts> = able.map(|record| facts(record, &model.cid)).collect();
        let plan_with = |peers: &[PeerFacts]| {
            let request = PlanRequest {
                shape,
                model_bytes: model.bytes,
                tokens,
                peers,
                held: &wanted.held,
                progress: wanted.progress,
                warm: &wanted.warm,
            };
            along(&request, cuts)
        };
        let plan = plan_with(&self.well(&everyone)).or_else(|| plan_with(&everyone));
        let plan = plan.ok_or(PlanError::TooFewPeers { stages: cuts.len() })?;
        Ok(placement(plan, &records, model))
    }

    /// Two routes with the same cuts and no peer in common. Where the best route leaves no room for
    /// a second one, the next best may.
    pub(crate) async fn place_lanes(
        &self,
        model: &ModelRef,
        shape: &ModelShape,
        tokens: u32,
        wanted: &Wanted,
    ) -> Result<Lanes, PlanError> {
        let mut left_out = Vec::new();
        let mut stages = None;
        for _ in 0..LANE_ATTEMPTS {
            let mut first = wanted.clone();
            first.excluding.extend(&left_out);
            let first = match (self.place(model, shape, tokens, &first).await, stages) {
                (Ok(first), _) => first,
                (Err(error), None) => return Err(error),
                (Err(_), Some(stages)) => return Err(PlanError::TooFewPeers { stages }),
            };
            let cuts: Vec<LayerRange> = first.route.iter().map(|stage| stage.layers).collect();
            let peers = first.route.iter().map(|stage| stage.peer);
            let mut second = wanted.clone();
            second.numerics = Some(first.plan.numerics.clone());
            second.excluding.extend(peers.clone());
            let second = self.place_along(model, shape, tokens, &second, &cuts).await;
            if second.is_ok() && cuts.len() <= limit::CLAIMS {
                return Ok(Lanes { first });
            }
            stages = stages.or(Some(cuts.len()));
            left_out.extend(peers);
        }
        Err(PlanError::TooFewPeers {
            stages: stages.unwrap_or(1),
        })
    }

    /// Whether a placement may have the peer: whoever lied has no part in any.
    fn may_have(&self, record: &PeerRecord, wanted: &Wanted) -> bool {
        wanted.has(record) && !self.quarantine.holds(record.peer)
    }

    /// Who would take over which layers, were a peer of the route that is held lost, and where
    /// they can get the blocks.
    pub(crate) async fn stand_ins(
        &self,
        model: &ModelRef,
        shape: &ModelShape,
        tokens: u32,
        wanted: &Wanted,
    ) -> Vec<(PeerId, LayerRange, Vec<PeerId>)> {
        let records = snapshot(&self.directory).await;
        let able = records
            .iter()
            .filter(|record| self.may_have(record, wanted));
        let able: Vec<PeerFacts> = able.map(|record| facts(record, &model.cid)).collect();
        let peers = self.well(&able);
        let stages = stand_ins(&PlanRequest {
            shape,
            model_bytes: model.bytes,
            tokens,
            peers: &peers,
            held: &wanted.held,
            progress: wanted.progress,
            warm: &wanted.warm,
        });
        let providers = providers(&records, &model.cid);
        let with_providers = |(peer, layers)| (peer, layers, others(&providers, peer));
        stages.into_iter().map(with_providers).collect()
    }

    /// Those that may be asked, by their circuit breakers.
    fn well(&self, peers: &[PeerFacts]) -> Vec<PeerFacts> {
        let now = Instant::now();
        let is_well = |peer: &&PeerFacts| peer.is_self || self.health.admits(peer.peer, now);
        peers.iter().filter(is_well).cloned().collect()
    }
}

fn placement(plan: Plan, records: &[PeerRecord], model: &ModelRef) -> Placement {
    Placement {
        route: route(&plan),
        endpoints: records.iter().map(endpoint).collect(),
        token_ns: plan.token_ns,
        providers: providers(records, &model.cid),
        plan,
    }
}

/// Up to as many as a message holds, without one.
fn others(providers: &[PeerId], peer: PeerId) -> Vec<PeerId> {
    let others = providers.iter().filter(|provider| **provider != peer);
    others.take(limit::PROVIDERS).copied().collect()
}

/// By how much a peer is slower now than what it measured when it started; small differences are noise.
fn toil(percent: u32) -> f32 {
    match percent {
        ..=USUAL_PERCENT => 1.0,
        _ => percent as f32 / 100.0,
    }
}

fn facts(record: &PeerRecord, model: &Cid) -> PeerFacts {
    let body = &record.body;
    PeerFacts {
        peer: record.peer,
        is_self: record.is_self,
        memory_bytes: body.hardware.memory_for_models,
        max_layers: body.max_layers,
        gb_s: body.measured_gb_s / toil(body.load.toil_percent),
        numerics: body.numerics.clone(),
        present_bytes: record.present_bytes(model),
    }
}

fn route(plan: &Plan) -> Vec<RouteStage> {
    let stage = |stage: &crate::planner::PlannedStage| RouteStage {
        peer: stage.peer,
        layers: stage.layers,
    };
    plan.stages.iter().map(stage).collect()
}

fn endpoint(record: &PeerRecord) -> (PeerId, PeerEndpoint) {
    let endpoint = PeerEndpoint {
        peer: record.peer,
        tensor_addrs: record.body.tensor_addrs.clone(),
    };
    (record.peer, endpoint)
}

/// Peers with blocks of the model, those with most first.
pub(crate) fn providers(records: &[PeerRecord], model: &Cid) -> Vec<PeerId> {
    let mut having: Vec<(u64, PeerId)> = records
        .iter()
        .filter(|record| record.connected)
        .map(|record| (record.present_bytes(model), record.peer))
        .filter(|(present, _)| *present > 0)
        .collect();
    having.sort_by_key(|(present, peer)| (std::cmp::Reverse(*present), *peer));
    having.into_iter().map(|(_, peer)| peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::advert_body;

    #[test]
    fn what_was_begun_in_one_numerics_class_is_not_placed_in_another() {
        let record = |numerics: &str, connected| PeerRecord {
            peer: PeerId::random(),
            is_self: false,
            connected,
            body: Arc::new(accel_p2p::AdvertBody {
                numerics: numerics.to_owned(),
                ..advert_body()
            }),
            seen: Instant::now(),
        };
        let (same, other, gone) = (
            record("a-1", true),
            record("b-1", true),
            record("a-1", false),
        );
        let anyone = Wanted::default();
        assert!(anyone.has(&same) && anyone.has(&other) && !anyone.has(&gone));
        let pinned = Wanted {
            numerics: Some("a-1".to_owned()),
            ..Wanted::default()
        };
        assert!(pinned.has(&same) && !pinned.has(&other));
        let excluding = vec![same.peer];
        let without = Wanted {
            excluding,
            ..pinned
        };
        assert!(!without.has(&same));
    }
}
