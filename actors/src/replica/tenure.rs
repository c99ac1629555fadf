//! Which sessions are kept just now for coordinators that live: their streams are open. When the
//! last stream of a session has ended, the session waits for its client for as long as one of this
//! node's own would.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use accel_p2p::SessionId;

/// Sessions without a stream that are remembered; of more, the oldest are forgotten, and the
/// journal's own times count for them.
const REMEMBERED: usize = 4096;

#[derive(Debug, Clone, Copy)]
enum State {
    /// So many streams are open.
    Live(usize),
    Left(Instant),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Tenures(Mutex<HashMap<SessionId, State>>);

/// A stream of a coordinator; given up when dropped.
pub(super) struct Tenure {
    tenures: Arc<Tenures>,
    session: SessionId,
}

impl Tenures {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(self: &Arc<Self>, session: SessionId) -> Tenure {
        let mut states = self.lock();
        let live = match states.get(&session) {
            Some(State::Live(streams)) => *streams,
            Some(State::Left(_)) | None => 0,
        };
        states.insert(session, State::Live(live + 1));
        let tenures = Arc::clone(self);
        Tenure { tenures, session }
    }

    /// For how long nobody writes a session any more; none when that is not known.
    pub(crate) fn quiet(&self, session: SessionId) -> Option<Duration> {
        match self.lock().get(&session)? {
            State::Live(_) => Some(Duration::ZERO),
            State::Left(since) => Some(since.elapsed()),
        }
    }

    /// Sessions that are kept for coordinators that live.
    pub(crate) fn live(&self) -> usize {
        let states = self.lock();
        let is_live = |state: &&State| matches!(state, State::Live(_));
        states.values().filter(is_live).count()
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        let mut states = self.tenures.lock();
        let next = match states.get(&self.session) {
            Some(State::Live(streams)) if *streams > 1 => State::Live(streams - 1),
            _ => State::Left(Instant::now()),
        };
        states.insert(self.session, next);
        if states.len() > REMEMBERED {
            forget_oldest(&mut states);
        }
    }
}

fn forget_oldest(states: &mut HashMap<SessionId, State>) {
    let left = states.iter().filter_map(|(session, state)| match state {
        State::Live(_) => None,
        State::Left(since) => Some((*since, *session)),
    });
    if let Some((_, oldest)) = left.min_by_key(|(since, _)| *since) {
        states.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_kept_until_its_last_stream_has_ended() {
        let tenures = Arc::new(Tenures::default());
        let session = SessionId([1; 16]);
        assert_eq!(tenures.quiet(session), None);
        let (first, second) = (tenures.begin(session), tenures.begin(session));
        drop(first);
        assert_eq!(tenures.quiet(session), Some(Duration::ZERO));
        assert_eq!(tenures.live(), 1);
        drop(second);
        assert_eq!(tenures.live(), 0);
        assert!(tenures.quiet(session).is_some());
    }

    #[test]
    fn those_that_nobody_writes_are_not_remembered_without_end() {
        let tenures = Arc::new(Tenures::default());
        let kept = tenures.begin(SessionId([0xff; 16]));
        for number in 0..(REMEMBERED as u128 + 10) {
            drop(tenures.begin(SessionId(number.to_be_bytes())));
        }
        assert_eq!(tenures.lock().len(), REMEMBERED);
        assert_eq!(tenures.live(), 1);
        drop(kept);
    }
}
