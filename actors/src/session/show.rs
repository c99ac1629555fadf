//! How a session looks from outside.

use std::time::Duration;

use accel_p2p::PeerId;
use accel_p2p::wire::SessionId;

use super::actor::{SessionActor, SessionSpec};
use super::event::{RouteStage, StageReport};
use super::record::OpeningRecord;
use crate::error::Failure;
use crate::views::{Figure, ReplicaView, RouteView, SessionErrorView, SessionView};

impl SessionActor {
    /// Brings the view up to date.
    pub(super) fn show(&self) {
        if self.spec.is_over {
            return;
        }
        let millis = |span: Duration| Figure::measured(span.as_secs_f64() * 1000.0);
        let placed = self.placed.map(|placed| millis(placed - self.started));
        let first = self.first_token.zip(self.placed);
        let first = first.map(|((at, _), placed)| millis(at.saturating_duration_since(placed)));
        let tokens = self.machine.emitted();
        let more = |(_, count): &(_, u64)| tokens > *count;
        let rate = self.first_token.filter(more).map(|(first, count)| {
            Figure::measured((tokens - count) as f64 / first.elapsed().as_secs_f64().max(1e-9))
        });
        let route: Vec<RouteView> = self.machine.route().map(route_view).collect();
        let replicas = self.replica_views(self.machine.replicas());
        let (state, epoch) = (self.machine.state(), self.machine.epoch());
        self.deps.table.update(self.spec.id, |view| {
            if state != "ended" {
                state.clone_into(&mut view.state);
            }
            view.epoch = epoch;
            view.tokens = tokens;
            view.bytes_fetched = route.iter().map(|hop| hop.bytes_fetched).sum();
            view.route = route;
            view.replicas = replicas;
            view.recoveries = self.chronicle.count();
            view.recovery_log = self.chronicle.shown();
            view.moves = self.mover.shown();
            view.prepare_ms = placed;
            view.first_token_ms = first;
            view.tokens_per_s = rate;
        });
    }

    /// The other nodes that have the session's journal.
    pub(super) fn kept_by(&self) -> Vec<ReplicaView> {
        self.replica_views(self.machine.keepers())
    }

    fn replica_views(&self, peers: impl Iterator<Item = PeerId>) -> Vec<ReplicaView> {
        let view = |peer: PeerId| ReplicaView {
            peer_id: peer.to_string(),
            api: self.replicator.api(peer).map(|api| api.to_string()),
        };
        peers.map(view).collect()
    }
}

fn route_view((stage, report): (&RouteStage, StageReport)) -> RouteView {
    RouteView {
        peer_id: stage.peer.to_string(),
        first_layer: stage.layers.first,
        last_layer: stage.layers.end.saturating_sub(1),
        bytes_fetched: report.bytes_fetched,
        blocks_fetched: report.blocks_fetched,
    }
}

pub(crate) fn error_view(failure: &Failure) -> SessionErrorView {
    SessionErrorView {
        code: failure.code.clone(),
        message: failure.message.clone(),
        hint: failure.hint.clone(),
    }
}

pub(super) fn first_view(spec: &SessionSpec, tokens: u64) -> SessionView {
    view(spec.id, &spec.opening, "placing", tokens)
}

/// A session that nobody computes, with as many tokens as the journal has.
pub(crate) fn view(
    session: SessionId,
    opening: &OpeningRecord,
    state: &str,
    tokens: u64,
) -> SessionView {
    SessionView {
        id: session.to_string(),
        state: state.to_owned(),
        model: opening.name.clone(),
        cid: opening.model.clone(),
        epoch: 0,
        prompt_tokens: opening.prompt.len(),
        tokens,
        route: Vec::new(),
        fault_tolerance: opening.fault_tolerance.name(),
        replicas: Vec::new(),
        recoveries: 0,
        recovery_log: Vec::new(),
        moves: Vec::new(),
        bytes_fetched: 0,
        prepare_ms: None,
        first_token_ms: None,
        tokens_per_s: None,
        error: None,
    }
}
