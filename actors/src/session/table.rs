//! All sessions that this node coordinates: who takes their frames, and how they look from
//! outside. Outlives the actors, so that what is shown survives their restarts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use accel_p2p::PeerId;
use accel_p2p::wire::{SessionId, TensorFrame};
use actix::Addr;

use super::actor::{Frame, Happened, Heard, Lost, SessionActor, ShutDown, Suspend};
use super::event::Event;
use crate::error::Failure;
use crate::views::SessionView;

/// How long a session's mailbox may stay full before a frame for it is dropped.
const DELIVERY: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Inner {
    live: HashMap<SessionId, Addr<SessionActor>>,
    views: HashMap<SessionId, SessionView>,
    /// Oldest first.
    order: VecDeque<SessionId>,
    /// When sessions that are shown stopped to run here.
    left: HashMap<SessionId, Instant>,
    /// Sessions that somebody takes up or closes just now.
    held: HashSet<SessionId>,
}

/// Keeps everybody else from taking a session up; until it is dropped.
pub(crate) struct Hold {
    table: Arc<SessionTable>,
    session: SessionId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.table.lock().held.remove(&self.session);
    }
}

impl Inner {
    /// Sessions whose actors failed did not say goodbye.
    fn drop_dead(&mut self) {
        let Inner { live, views, .. } = self;
        live.retain(|session, actor| {
            let lives = actor.connected();
            if let Some(view) = views.get_mut(session).filter(|_| !lives) {
                "failed".clone_into(&mut view.state);
            }
            lives
        });
    }
}

/// See the module.
pub(crate) struct SessionTable {
    inner: Mutex<Inner>,
    /// How many ended sessions stay visible.
    kept: usize,
}

impl SessionTable {
    pub(crate) fn new(kept: usize) -> Self {
        Self {
            inner: Mutex::default(),
            kept,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session. The oldest that ended makes room when there are too many.
    pub(crate) fn enter(&self, session: SessionId, view: SessionView) {
        let mut inner = self.lock();
        inner.drop_dead();
        if inner.views.insert(session, view).is_some() {
            inner.order.retain(|known| *known != session);
        }
        inner.order.push_back(session);
        while inner.order.len() > self.kept + inner.live.len() + 1 {
            let live = &inner.live;
            let ended = inner
                .order
                .iter()
                .position(|session| !live.contains_key(session));
            let Some(oldest) = ended.and_then(|index| inner.order.remove(index)) else {
                return;
            };
            inner.views.remove(&oldest);
            inner.left.remove(&oldest);
        }
    }

    /// The right to take a session up or to close it, for one at a time.
    pub(crate) fn hold(self: &Arc<Self>, session: SessionId) -> Option<Hold> {
        let table = Arc::clone(self);
        let is_free = self.lock().held.insert(session);
        is_free.then_some(Hold { table, session })
    }

    /// Tells a session to stop here, so that somebody else can go on with it.
    pub(crate) fn suspend(&self, session: SessionId, failure: Failure) {
        if let Some(actor) = self.lock().live.get(&session)
            && actor.try_send(Suspend(failure)).is_err()
        {
            tracing::debug!(%session, "a session has too much to do to stop");
        }
    }

    /// A coordinator elsewhere goes on with a session.
    pub(crate) fn moved(&self, session: SessionId) {
        let mut inner = self.lock();
        match inner.live.get(&session) {
            Some(actor) if actor.try_send(Happened(Event::Deposed)).is_err() => {
                tracing::debug!(%session, "a session will see later that it was taken over");
            }
            Some(_) => {}
            None => {
                if let Some(view) = inner.views.get_mut(&session) {
                    "moved".clone_into(&mut view.state);
                }
            }
        }
    }

    /// For how long a session that ran here does so no more.
    pub(crate) fn idle(&self, session: SessionId) -> Option<Duration> {
        self.lock().left.get(&session).map(Instant::elapsed)
    }

    /// Frames for the session go to this actor from now on.
    pub(super) fn attach(&self, session: SessionId, actor: Addr<SessionActor>) {
        self.lock().live.insert(session, actor);
    }

    /// The session takes no more frames.
    pub(super) fn detach(&self, session: SessionId) {
        let mut inner = self.lock();
        inner.live.remove(&session);
        if inner.views.contains_key(&session) {
            inner.left.insert(session, Instant::now());
        }
    }

    /// Changes how a session looks.
    pub(crate) fn update(&self, session: SessionId, change: impl FnOnce(&mut SessionView)) {
        if let Some(view) = self.lock().views.get_mut(&session) {
            change(view);
        }
    }

    /// One session.
    pub(crate) fn view(&self, session: SessionId) -> Option<SessionView> {
        self.lock().views.get(&session).cloned()
    }

    /// Every session, newest first.
    pub(crate) fn views(&self) -> Vec<SessionView> {
        let inner = self.lock();
        let newest_first = inner.order.iter().rev();
        newest_first
            .filter_map(|session| inner.views.get(session).cloned())
            .collect()
    }

    /// How many sessions run.
    pub(crate) fn running(&self) -> usize {
        let mut inner = self.lock();
        inner.drop_dead();
        inner.live.len()
    }

    /// Whether this node coordinates the session.
    pub(crate) fn coordinates(&self, session: SessionId) -> bool {
        let mut inner = self.lock();
        inner.drop_dead();
        inner.live.contains_key(&session)
    }

    /// Gives a frame to its session; frames for sessions that are over are dropped.
    pub(crate) async fn deliver(&self, from: PeerId, frame: TensorFrame) {
        let session = frame.session();
        let actor = self.lock().live.get(&session).cloned();
        let Some(actor) = actor else {
            tracing::debug!(%session, peer = %from, "a frame for a session that is over");
            return;
        };
        let delivery = actor.send(Frame { from, frame });
        if !matches!(tokio::time::timeout(DELIVERY, delivery).await, Ok(Ok(()))) {
            tracing::debug!(%session, "a frame could not be delivered");
        }
    }

    /// Tells every session that the connection to a peer is gone.
    pub(crate) fn peer_lost(&self, peer: PeerId) {
        for (session, actor) in &self.lock().live {
            if actor.try_send(Lost(peer)).is_err() {
                tracing::debug!(%session, "a session has too much to do to hear of a lost peer");
            }
        }
    }

    /// Tells every session that a peer said something new about itself.
    pub(crate) fn peer_heard(&self, peer: PeerId) {
        for (session, actor) in &self.lock().live {
            if actor.try_send(Heard(peer)).is_err() {
                tracing::debug!(%session, "a session has too much to do to hear of a peer");
            }
        }
    }

    /// Has every session that may be gone on with hand itself over, because the node stops.
    pub(crate) fn hand_over(&self) {
        for (session, actor) in &self.lock().live {
            if actor.try_send(Happened(Event::HandOver)).is_err() {
                tracing::debug!(%session, "a session has too much to do to be handed over");
            }
        }
    }

    /// Suspends or cancels every session that still runs, because the node stops.
    pub(crate) fn shut_down(&self) {
        for actor in self.lock().live.values() {
            // A session whose mailbox is full ends with the arbiter.
            let _ = actor.try_send(ShutDown);
        }
    }
}
