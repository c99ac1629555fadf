//! The actor's part in a planned move: looking for a better route now and then, and telling how a
//! move went.

use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_p2p::PeerId;
use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};

use super::actor::SessionActor;
use super::event::Event;
use crate::placement::{Better, Wanted};
use crate::planner::Why;
use crate::views::{Figure, MoveView};

/// A session looks for a better route no more often than this.
const EVERY: Duration = Duration::from_secs(1);
/// Moves that are shown, the newest.
const SHOWN: usize = 32;

/// What a session remembers of its moves.
#[derive(Debug, Default)]
pub(super) struct Mover {
    looked: Option<Instant>,
    /// Whether it will look again, for what it heard too early.
    looks_again: bool,
    /// Why it moves, and since when somebody gets ready for it.
    under_way: Option<(&'static str, Instant)>,
    /// Whether a move to other layers of peers that stay came to nothing: there is no memory for it, or it takes
    /// too long.
    keeps_cuts: bool,
    /// Peers that it left because others were faster: idle, they would look fast again.
    left: Vec<PeerId>,
    shown: Vec<MoveView>,
}

impl Mover {
    pub(super) fn shown(&self) -> Vec<MoveView> {
        self.shown.clone()
    }

    /// Whether it is time to look; then it counts as looked.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self
            .looked
            .is_none_or(|last| now.duration_since(last) >= EVERY);
        if is_due {
            self.looked = Some(now);
        }
        is_due
    }
}

impl SessionActor {
    /// The swarm changed: there may be a better route, or a peer of this one may want to leave.
    pub(super) fn consider_moving(&mut self, context: &mut Context<Self>) {
        if !self.machine.may_move() {
            return;
        }
        if !self.mover.is_due(Instant::now()) {
            return self.consider_later(context);
        }
        let deps = Arc::clone(&self.deps);
        let (model, shape) = (self.spec.model.clone(), Arc::clone(&self.spec.shape));
        let (tokens, progress) = (self.spec.max_tokens, self.machine.progress());
        let held = self.held();
        let is_held = |peer: &PeerId| held.iter().any(|(known, _)| known == peer);
        let left = self.mover.left.iter().copied();
        let wanted = Wanted {
            numerics: Some(self.spec.opening.numerics.clone()),
            excluding: left.filter(|peer| !is_held(peer)).collect(),
            held,
            progress,
            warm: self.warm(),
        };
        let cuts_anew = !self.mover.keeps_cuts;
        let looking = async move {
            let placer = &deps.placer;
            let better = placer.better(&model, &shape, tokens, &wanted, cuts_anew);
            better.await
        };
        let done = looking.into_actor(self).map(|better, session, context| {
            if let Some(better) = better {
                session.offer(better, context);
            }
        });
        context.spawn(done);
    }

    fn consider_later(&mut self, context: &mut Context<Self>) {
        if std::mem::replace(&mut self.mover.looks_again, true) {
            return;
        }
        context.run_later(EVERY, |session, context| {
            session.mover.looks_again = false;
            session.consider_moving(context);
        });
    }

    fn offer(&mut self, better: Better, context: &mut Context<Self>) {
        let Better { placement, why } = better;
        if !self.machine.may_move() {
            return;
        }
        let route = placement.route.clone();
        self.get_to_know(placement);
        self.mover.under_way = Some((why, Instant::now()));
        tracing::info!(session = %self.spec.id, why, "another route is got ready");
        self.feed(Event::MoveOffered { route }, context);
        if !self.machine.gets_ready() {
            self.mover.under_way = None;
        }
    }

    /// `before` is the route until now.
    pub(super) fn switching(&mut self, before: Vec<PeerId>) {
        self.chronicle.switches();
        let Some((why, since)) = self.mover.under_way else {
            return;
        };
        if why == Why::Faster.name() {
            let stays = |peer: &PeerId| self.machine.route().any(|(stage, _)| stage.peer == *peer);
            let left = before.into_iter().filter(|peer| !stays(peer));
            self.mover.left.extend(left.collect::<Vec<_>>());
        }
        if self.mover.shown.len() >= SHOWN {
            self.mover.shown.remove(0);
        }
        self.mover.shown.push(MoveView {
            why,
            after_tokens: self.machine.tokens(),
            ready_ms: millis(since.elapsed()),
            gap_ms: None,
        });
    }

    /// The first token behind a move came.
    pub(super) fn moved(&mut self) {
        let Some((why, _)) = self.mover.under_way.take() else {
            return;
        };
        let gap = self.chronicle.since_progress(Instant::now());
        tracing::info!(session = %self.spec.id, why, ?gap, "the answer goes on elsewhere");
        self.deps.telemetry.recovery().moved(why, gap);
        if let Some(last) = self.mover.shown.last_mut() {
            last.gap_ms = Some(millis(gap));
        }
    }

    pub(super) fn move_dropped(&mut self, cut_anew: bool) {
        self.mover.keeps_cuts |= cut_anew;
        if let Some((why, _)) = self.mover.under_way.take() {
            tracing::info!(session = %self.spec.id, why, "a move came to nothing; the answer goes on as it was");
            self.deps.telemetry.recovery().move_dropped(why);
        }
    }
}

fn millis(span: Duration) -> Figure {
    Figure::measured(span.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_looks_for_a_better_route_at_once_and_then_now_and_then() {
        let (mut mover, now) = (Mover::default(), Instant::now());
        assert!(mover.is_due(now));
        assert!(!mover.is_due(now + EVERY / 2));
        assert!(mover.is_due(now + EVERY));
    }
}
