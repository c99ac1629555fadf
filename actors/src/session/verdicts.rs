//! What the events of a session say about the peers of its route, for their health.

use std::time::Instant;

use accel_p2p::PeerId;

use super::actor::SessionActor;
use super::event::Event;
use crate::error::{ErrorKind, Failure, SESSION_MOVED};

/// What the session remembers for that.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// The epoch and the time of the last token.
    last: Option<(u64, Instant)>,
}

impl SessionActor {
    /// Before the machine hears of it: the route is still the one that the event is about. Lost
    /// connections are noted where they are noticed, once for all sessions.
    pub(super) fn judge(&mut self, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Token { epoch, .. } if *epoch == self.machine.epoch() => self.approve(now),
            Event::StepFailed {
                epoch,
                culprit: Some(peer),
                failure,
            } => self.blame(*epoch, *peer, failure, now),
            Event::Unreachable {
                epoch,
                peer,
                failure,
            } => self.blame(*epoch, *peer, failure, now),
            Event::Distrusted {
                epoch,
                peers,
                failure,
                ..
            } => {
                for peer in peers {
                    self.blame(*epoch, *peer, failure, now);
                }
            }
            Event::Refused {
                epoch,
                stage,
                failure,
            } => {
                if let Some(stage) = self.stage(*epoch, *stage) {
                    self.blame(*epoch, stage.peer, failure, now);
                }
            }
            _ => {}
        }
    }

    /// A token came: every stage did its part.
    fn approve(&mut self, now: Instant) {
        let epoch = self.machine.epoch();
        let before = self.verdicts.last.replace((epoch, now));
        // The first token of an epoch had a prompt, or all tokens before it, to be computed.
        let since = before.filter(|(of, _)| *of == epoch);
        let predicted = self.spec.placement.token_ns as f64;
        let slowness = since
            .filter(|_| predicted > 0.0)
            .map(|(_, last)| now.duration_since(last).as_nanos() as f64 / predicted);
        for (stage, _) in self.machine.route() {
            let health = &self.deps.placer.health;
            health.succeeded(stage.peer, slowness, now);
        }
    }

    fn blame(&self, epoch: u64, peer: PeerId, failure: &Failure, now: Instant) {
        if epoch != self.machine.epoch() || !is_the_peers(failure) {
            return;
        }
        if self.deps.placer.health.failed(peer, now) {
            tracing::warn!(%peer, %failure, "failed again and again: left alone for a while");
            self.deps.telemetry.breaker_opened();
        }
    }
}

/// Whoever has no memory left, is asked for what cannot be done, or obeys another coordinator did
/// not fail.
fn is_the_peers(failure: &Failure) -> bool {
    let is_failure = matches!(failure.kind, ErrorKind::Unavailable | ErrorKind::Internal);
    is_failure && failure.code != SESSION_MOVED
}
