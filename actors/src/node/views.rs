//! From what the node knows to what it shows.

use std::collections::BTreeMap;

use accel_inference::{KvFormat, LayerRange};
use accel_storage::ModelRecord;

use crate::directory::PeerRecord;
use crate::health::Diagnosis;
use crate::models::{Card, ModelRef};
use crate::planner::{Plan, PlannedStage};
use crate::views::{
    Figure, GpuView, ModelDetail, ModelView, OfferView, PeerView, PlanStageView, PlanView,
};

pub(super) fn peer(record: &PeerRecord, health: &Diagnosis, quarantined: bool) -> PeerView {
    let body = &record.body;
    let hardware = &body.hardware;
    let gpus = hardware.gpus.iter().map(|gpu| GpuView {
        name: gpu.name.clone(),
        backend: gpu.backend.clone(),
        kind: gpu.kind.clone(),
    });
    let models = body.models.iter().map(|offer| OfferView {
        cid: offer.cid.to_string(),
        name: offer.name.clone(),
        bytes: offer.bytes,
        present_bytes: offer.present_bytes,
        complete: offer.complete,
    });
    PeerView {
        peer_id: record.peer.to_string(),
        is_self: record.is_self,
        connected: record.connected,
        addrs: body.addrs.iter().map(ToString::to_string).collect(),
        api: body.api.map(|api| api.to_string()),
        version: body.version.clone(),
        cores: hardware.cores,
        isa: hardware.isa.clone(),
        memory_bytes: hardware.memory_bytes,
        memory_for_models: hardware.memory_for_models,
        reserved_bytes: body.load.reserved_bytes,
        toil_percent: body.load.toil_percent,
        gpus: gpus.collect(),
        measured_gb_s: body.measured_gb_s,
        numerics: body.numerics.clone(),
        max_layers: body.max_layers,
        draining: body.draining,
        sessions: body.load.sessions,
        models: models.collect(),
        health: health.score,
        breaker: health.breaker.name().to_owned(),
        ping_ms: health
            .ping
            .map(|ping| Figure::measured(ping.as_secs_f64() * 1000.0)),
        quarantined,
        seen_ms_ago: record.seen.elapsed().as_millis() as u64,
    }
}

fn millis(nanos: u64) -> Figure {
    Figure::predicted(nanos as f64 / 1e6)
}

pub(super) fn plan(model: &ModelRef, layers: u32, tokens: u32, plan: &Plan) -> PlanView {
    let stage = |stage: &PlannedStage| PlanStageView {
        peer_id: stage.peer.to_string(),
        is_self: stage.is_self,
        first_layer: stage.layers.first,
        last_layer: stage.layers.end.saturating_sub(1),
        weights_bytes: stage.weights_bytes,
        kv_bytes: stage.kv_bytes,
        gb_s: Figure::measured(f64::from(stage.gb_s)),
        token_ms: millis(stage.token_ns),
        why: stage.why.clone(),
    };
    PlanView {
        model: model.name.clone(),
        cid: model.cid.to_string(),
        layers,
        context: tokens,
        numerics: plan.numerics.clone(),
        stages: plan.stages.iter().map(stage).collect(),
        token_ms: millis(plan.token_ns),
        why: plan.why.clone(),
    }
}

pub(super) fn kept(record: ModelRecord, peers: usize) -> ModelView {
    ModelView {
        cid: record.cid.to_string(),
        complete: record.complete(),
        name: record.name,
        bytes: record.bytes,
        present_bytes: record.present_bytes,
        pinned: record.pinned,
        added_unix: Some(record.added_unix),
        peers,
    }
}

/// The models kept here, then those that only peers have, by name.
pub(super) fn models(records: Vec<ModelRecord>, peers: &[PeerRecord]) -> Vec<ModelView> {
    let mut offered: BTreeMap<String, ModelView> = BTreeMap::new();
    let others = peers.iter().filter(|peer| !peer.is_self && peer.connected);
    for offer in others.flat_map(|peer| &peer.body.models) {
        let view = offered
            .entry(offer.cid.to_string())
            .or_insert_with(|| ModelView {
                cid: offer.cid.to_string(),
                name: offer.name.clone(),
                bytes: offer.bytes,
                present_bytes: 0,
                complete: false,
                pinned: false,
                added_unix: None,
                peers: 0,
            });
        view.peers += 1;
    }
    let mut views: Vec<ModelView> = Vec::new();
    for record in records {
        let theirs = offered.remove(&record.cid.to_string());
        views.push(kept(record, theirs.map_or(0, |view| view.peers)));
    }
    let mut theirs: Vec<ModelView> = offered.into_values().collect();
    theirs.sort_by(|a, b| (&a.name, &a.cid).cmp(&(&b.name, &b.cid)));
    views.extend(theirs);
    views
}

pub(super) fn detail(card: &Card, summary: Option<ModelView>, kv: KvFormat) -> ModelDetail {
    let shape = &card.header.shape;
    let summary = summary.unwrap_or_else(|| ModelView {
        cid: card.model.cid.to_string(),
        name: card.model.name.clone(),
        bytes: card.model.bytes,
        present_bytes: 0,
        complete: false,
        pinned: false,
        added_unix: None,
        peers: 0,
    });
    let whole = LayerRange::whole(shape.layers);
    ModelDetail {
        summary,
        architecture: shape.architecture.clone(),
        quantisation: shape.quantisation.clone(),
        layers: shape.layers,
        hidden: shape.hidden,
        vocab: shape.vocab,
        context: shape.context,
        weights_bytes: shape.stage_bytes(&whole),
        kv_bytes_per_token: shape.kv_bytes_per_token_layer(kv) * u64::from(shape.layers),
        chat_template: card.template.is_some(),
    }
}
