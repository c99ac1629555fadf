//! Sampled audits: of some sessions that are computed once, all is computed again by other peers, once
//! they have ended. The last claims of the stages cover every step before them, so one more token
//! shows whether any of them was wrong. Nobody waits for it, and it changes no answer.

use std::sync::Arc;

use accel_inference::LayerRange;
use accel_p2p::wire::SessionId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Bench, Inner};
use crate::session::event::{Event, RouteStage};
use crate::session::jury::{Lane, Ruling, Statement};

/// Audits that run at once; a session that ends meanwhile is not audited.
const AT_ONCE: usize = 1;

/// Which sessions are audited.
pub(crate) struct Audits {
    /// Of a hundred sessions.
    share: u32,
    places: Arc<Semaphore>,
}

impl Audits {
    pub(crate) fn new(share: u32) -> Self {
        Self {
            share,
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Whether a session is audited: by its id, which is random.
    pub(crate) fn has(&self, session: SessionId) -> bool {
        let [.., a, b, c, d] = session.bytes();
        u32::from_le_bytes([a, b, c, d]) % 100 < self.share
    }
}

/// How far an audit is.
#[derive(Default)]
pub(super) struct Audit {
    /// What the stages said last, and which layers each of them had then.
    last: Option<(Statement, Vec<LayerRange>)>,
    /// Whether there was any token.
    is_begun: bool,
    place: Option<OwnedSemaphorePermit>,
}

impl Inner {
    /// A token of a session that is audited: it is not withheld.
    pub(super) fn note(
        &mut self,
        statement: Option<Statement>,
        route: &[RouteStage],
        event: &Event,
    ) {
        if let Event::Token {
            position, drawn, ..
        } = event
            && *position == self.tokens.len() as u64
        {
            self.tokens.push(drawn.token);
            self.given.extend_tokens(&[drawn.token]);
        }
        let cuts = route.iter().map(|stage| stage.layers).collect();
        self.audit.is_begun = true;
        // Of stages that say nothing there is nothing to be compared.
        self.audit.last = statement.map(|statement| (statement, cuts));
    }
}

impl Bench {
    /// The session has ended: what its stages said last is compared with what others compute.
    pub(super) fn begin_audit(self: &Arc<Self>) {
        let mut inner = self.lock();
        let Some((last, cuts)) = inner.audit.last.take() else {
            if inner.audit.is_begun {
                self.deps.telemetry.audit().ended("unclaimed");
            }
            return;
        };
        let Ok(place) = Arc::clone(&self.deps.audits.places).try_acquire_owned() else {
            drop(inner);
            return self.deps.telemetry.audit().ended("too_many");
        };
        inner.audit.place = Some(place);
        inner.partial.clone_from(&last.peers);
        inner.cuts = cuts;
        inner.tokens.truncate(last.position as usize);
        inner.jury.said(Lane::Primary, last);
        drop(inner);
        self.launch(Lane::Third);
    }

    /// What came of it.
    pub(super) fn audited(&self, rulings: &[Ruling]) {
        let is_settled = |ruling: &Ruling| matches!(ruling, Ruling::Accept(_));
        let is_lie = |ruling: &Ruling| matches!(ruling, Ruling::Condemn { .. });
        let result = if rulings.iter().any(is_lie) {
            "lied"
        } else if rulings.iter().any(is_settled) {
            "agreed"
        } else if rulings.contains(&Ruling::Undecided) {
            "undecided"
        } else {
            return;
        };
        self.deps.telemetry.audit().ended(result);
        self.lock().audit.place = None;
    }

    /// Nobody could compute it.
    pub(super) fn not_audited(&self) {
        self.deps.telemetry.audit().ended("not_possible");
        self.lock().audit.place = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_as_many_sessions_are_audited_as_is_wished() {
        for (share, least, most) in [(0, 0, 0), (1, 2, 40), (50, 400, 600), (100, 1000, 1000)] {
            let audits = Audits::new(share);
            let audited = (0..1000)
                .filter(|_| audits.has(SessionId::random()))
                .count();
            assert!((least..=most).contains(&audited), "{share}: {audited}");
        }
    }
}
