//! The lanes themselves: where they compute, how those beside the first begin, and how all end.

use std::sync::Arc;

use accel_p2p::{PeerId, SessionId};
use actix::Addr;
use tokio::sync::mpsc;

use super::{Bench, Seat, tell};
use crate::error::Failure;
use crate::placement::{Lanes, Placement, Wanted};
use crate::planner::PlanError;
use crate::session::actor::{SessionActor, SessionSpec};
use crate::session::event::{Event, Outcome, RouteStage};
use crate::session::jury::Lane;
use crate::session::machine::{Machine, Opening, Past, Tolerance, next_claim};
use crate::session::recovery::strategy;
use crate::session::text::{Piece, TextPipe};
use crate::tolerance::FaultTolerance;

/// How often a place is looked for before others are too quick too often.
const ATTEMPTS: usize = 3;
/// Pieces of an answer for nobody that may be unread.
const UNREAD: usize = 8;

impl Bench {
    /// The lane runs from now on.
    pub(crate) fn enter(
        self: &Arc<Self>,
        session: SessionId,
        lane: Lane,
        actor: Addr<SessionActor>,
    ) {
        let mut inner = self.lock();
        inner.actors.insert(lane, Seat { session, actor });
        let is_ready = lane == Lane::Primary && !inner.cuts.is_empty() && !self.case.is_audited();
        drop(inner);
        if is_ready {
            self.launch(Lane::Shadow);
        }
    }

    /// Where the first lane computes, before it runs.
    pub(crate) fn begin_over(&self, route: &[RouteStage]) {
        self.take(Lane::Primary, route);
    }

    /// Finds a place for a lane: along the cuts of the others, on other peers.
    pub(crate) async fn place(
        self: &Arc<Self>,
        lane: Lane,
        tokens: u32,
        wanted: Wanted,
    ) -> Result<Placement, PlanError> {
        let placer = &self.deps.placer;
        let (model, shape) = (&self.case.model, &self.case.shape);
        let mut stages = 1;
        for _ in 0..ATTEMPTS {
            let cuts = self.lock().cuts.clone();
            stages = cuts.len().max(1);
            let mut wanted = wanted.clone();
            wanted.excluding.extend(self.taken_by_others(lane));
            let is_first = lane == Lane::Primary && self.case.is_audited();
            let placement = if is_first {
                placer.place(model, shape, tokens, &wanted).await?
            } else if cuts.is_empty() {
                let Lanes { first, .. } = placer.place_lanes(model, shape, tokens, &wanted).await?;
                first
            } else {
                placer
                    .place_along(model, shape, tokens, &wanted, &cuts)
                    .await?
            };
            // Another lane may have looked at the same time.
            if self.take(lane, &placement.route) {
                self.begin_beside(lane);
                return Ok(placement);
            }
        }
        Err(PlanError::TooFewPeers { stages })
    }

    /// Whom a lane may not have. A third opinion is of peers that have not spoken about the stage.
    fn taken_by_others(&self, lane: Lane) -> Vec<PeerId> {
        let inner = self.lock();
        match lane {
            Lane::Third => inner.partial.clone(),
            Lane::Primary | Lane::Shadow => {
                let others = inner.routes.iter().filter(|(of, _)| **of != lane);
                others
                    .flat_map(|(_, peers)| peers.iter().copied())
                    .collect()
            }
        }
    }

    /// Whether the lane gets these peers: the two lanes have none in common.
    fn take(&self, lane: Lane, route: &[RouteStage]) -> bool {
        let mut inner = self.lock();
        let peers: Vec<PeerId> = route.iter().map(|stage| stage.peer).collect();
        if lane == Lane::Third {
            return true;
        }
        let is_taken = |peer: &PeerId| {
            let mut others = inner.routes.iter().filter(|(of, _)| **of != lane);
            others.any(|(_, theirs)| theirs.contains(peer))
        };
        if peers.iter().any(is_taken) {
            return false;
        }
        if inner.cuts.is_empty() || self.case.is_audited() {
            inner.cuts = route.iter().map(|stage| stage.layers).collect();
        }
        inner.routes.insert(lane, peers);
        true
    }

    /// The first lane of a session that goes on has a place: now there are cuts for the other.
    fn begin_beside(self: &Arc<Self>, lane: Lane) {
        let is_alone = lane == Lane::Primary
            && !self.case.is_audited()
            && !self.lock().actors.contains_key(&Lane::Shadow);
        if is_alone {
            self.launch(Lane::Shadow);
        }
    }

    /// Begins a lane beside the first, with what there is so far. It finds its own place, and waits
    /// for peers as any session does that lost its own.
    pub(super) fn launch(self: &Arc<Self>, lane: Lane) {
        let inner = self.lock();
        if inner.is_over || inner.actors.contains_key(&lane) {
            return;
        }
        let tokens = inner.tokens.clone();
        drop(inner);
        let case = &self.case;
        let all = case.record.prompt.len() as u64 + case.record.max_new;
        let left = all.saturating_sub(tokens.len() as u64).max(1);
        let max_new = if lane == Lane::Third { 1 } else { left };
        let record = case.beside(tokens, max_new);
        let id = SessionId::random();
        let machine = machine(self, id, &record.prompt, max_new);
        let spec = SessionSpec {
            id,
            model: case.model.clone(),
            shape: Arc::clone(&case.shape),
            tokenizer: Arc::clone(&case.tokenizer),
            sampling: record.sampling,
            max_tokens: (record.prompt.len() as u64 + max_new) as u32,
            placement: Placement::none(&record.numerics),
            opening: record,
            records: Vec::new(),
            is_over: false,
            events: nobody(),
            _permit: None,
            bench: Some((Arc::clone(self), lane)),
        };
        SessionActor::launch(Arc::clone(&self.deps), spec, machine);
    }

    /// A third opinion is needed no more.
    pub(super) fn dismiss(&self) {
        let mut inner = self.lock();
        inner.held.remove(&Lane::Third);
        let third = inner.actors.remove(&Lane::Third);
        tell(third.as_ref(), Event::Cancel);
    }

    /// A lane has ended.
    pub(crate) fn closed(self: &Arc<Self>, session: SessionId, lane: Lane, outcome: &Outcome) {
        if lane == Lane::Primary && self.case.is_audited() {
            self.lock().actors.remove(&lane);
            return self.begin_audit();
        }
        if lane == Lane::Primary {
            return self.end();
        }
        let failure = match outcome {
            Outcome::Failed(failure) | Outcome::Suspended(failure) => failure.clone(),
            Outcome::Cancelled => Failure::internal("it was cancelled"),
            Outcome::Done { .. } | Outcome::HandedOver(_) | Outcome::Moved(_) => return,
        };
        let mut inner = self.lock();
        let is_it = |seat: &Seat| seat.session == session;
        if inner.is_over || !inner.actors.get(&lane).is_some_and(is_it) {
            return;
        }
        tracing::info!(%session, ?lane, %failure, "a lane of a witnessed session ended");
        inner.actors.remove(&lane);
        if lane == Lane::Third && inner.jury.third_is_gone().is_empty() {
            return;
        }
        drop(inner);
        if self.case.is_audited() {
            return self.not_audited();
        }
        self.give_up(alone(lane, &failure));
    }

    /// The session cannot go on as a witnessed one, and it is nothing else.
    pub(super) fn give_up(&self, failure: Failure) {
        let inner = self.lock();
        tell(inner.actors.get(&Lane::Primary), Event::GiveUp(failure));
    }

    fn end(&self) {
        let mut inner = self.lock();
        inner.is_over = true;
        for (lane, seat) in std::mem::take(&mut inner.actors) {
            if lane != Lane::Primary {
                tell(Some(&seat), Event::Cancel);
            }
        }
    }
}

fn machine(bench: &Bench, id: SessionId, prompt: &[u32], max_new: u64) -> Machine {
    let opening = Opening {
        prompt: prompt.to_vec(),
        max_new,
        ..bench.case.opening.clone()
    };
    let past = Past {
        tokens: Vec::new(),
        ended: None,
        seen: 0,
        claim: next_claim(0, 0).unwrap_or_default(),
    };
    let [salt, ..] = id.bytes();
    let tolerance = Tolerance {
        strategy: strategy(FaultTolerance::Critical),
        salt: u64::from(salt),
        peer_wait: bench.deps.limits.peer_wait,
        resumable: false,
        replicas: 0,
        rebuild: bench.deps.rebuild,
        witnessed: true,
    };
    Machine::resumed(opening, past, Box::new(Silent), tolerance)
}

/// Where the answer of a lane beside the first goes.
fn nobody() -> mpsc::Sender<crate::request::GenEvent> {
    let (sender, mut receiver) = mpsc::channel(UNREAD);
    actix::spawn(async move { while receiver.recv().await.is_some() {} });
    sender
}

/// A lane beside the first has no text, and ends with the first.
pub(crate) struct Silent;

impl TextPipe for Silent {
    fn push(&mut self, _: u32) -> Piece {
        Piece::default()
    }

    fn finish(&mut self) -> String {
        String::new()
    }

    fn is_end(&self, _: u32) -> bool {
        false
    }
}

fn alone(lane: Lane, failure: &Failure) -> Failure {
    let (code, what) = match lane {
        Lane::Third => (
            "no_third_opinion",
            "two routes gave different results for a token, and nobody else could compute it",
        ),
        Lane::Primary | Lane::Shadow => (
            "too_few_peers",
            "the session is not computed twice any more",
        ),
    };
    let message = format!("{what}: {}", failure.message);
    let hint = "start more nodes and send the request again, or come back with Last-Event-ID";
    Failure::unavailable(code, message, hint)
}
