//! The loaded stages of this node. Sessions with the same layers of the same model share one;
//! those that nobody uses stay until their memory is needed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use accel_inference::SeqId;
use accel_p2p::wire::SessionId;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use super::engine::Engine;
use super::ledger::{Ledger, Shortage, StageKey};

/// A place for a stage that the first session to need it fills.
pub(super) type Cell = Arc<OnceCell<Arc<Engine>>>;

/// See the module. Outlives the stage server's actor, which clears it when it is restarted.
pub(crate) struct Shelf {
    inner: Mutex<Inner>,
    next_seq: AtomicU64,
    loading: Arc<Semaphore>,
    /// Whether sessions that have nothing here get nothing.
    draining: AtomicBool,
}

struct Inner {
    ledger: Ledger,
    cells: HashMap<StageKey, Cell>,
}

impl Shelf {
    /// A shelf for `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            inner: Mutex::new(Inner {
                ledger: Ledger::new(limit),
                cells: HashMap::new(),
            }),
            next_seq: AtomicU64::new(1),
            loading: Arc::new(Semaphore::new(1)),
            draining: AtomicBool::new(false),
        }
    }

    /// Says whether sessions that have nothing here are to get nothing.
    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether they get nothing.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Leave to load a stage. One is loaded at a time, because a loading that nobody waits for
    /// any more goes on to its end, with memory that the ledger does not know of.
    pub(super) async fn leave_to_load(&self) -> OwnedSemaphorePermit {
        let leave = Arc::clone(&self.loading).acquire_owned().await;
        leave.expect("the semaphore is never closed")
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name for a KV cache, never used twice.
    pub(super) fn next_seq(&self) -> SeqId {
        self.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    /// Reserves memory for a session and gives the place of its stage.
    pub(super) fn reserve(
        &self,
        session: SessionId,
        key: StageKey,
        weights: u64,
        kv: u64,
    ) -> Result<Cell, Shortage> {
        let mut inner = self.lock();
        Self::drop_dead(&mut inner, &key);
        let evicted = inner
            .ledger
            .reserve(session, key, weights, kv, Instant::now())?;
        for key in evicted {
            tracing::info!(model = %key.model, layers = %key.layers, "unloaded to make room");
            inner.cells.remove(&key);
        }
        Ok(Arc::clone(inner.cells.entry(key).or_default()))
    }

    /// Takes memory that is free for what a session can do without; whether there is enough.
    pub(super) fn reserve_spare(&self, session: SessionId, bytes: u64) -> bool {
        self.lock().ledger.add_spare(session, bytes)
    }

    /// The place of a stage that nobody needs yet, if there is memory that nobody uses: nothing
    /// is unloaded for it. It is as good as unused until a session reserves it.
    pub(super) fn spare(&self, key: StageKey, weights: u64) -> Option<Cell> {
        let mut inner = self.lock();
        Self::drop_dead(&mut inner, &key);
        if !inner.ledger.keep_spare(key, weights, Instant::now()) {
            return None;
        }
        Some(Arc::clone(inner.cells.entry(key).or_default()))
    }

    /// Whether a stage is loaded.
    pub(super) fn has(&self, key: &StageKey) -> bool {
        let inner = self.lock();
        inner.cells.get(key).is_some_and(|cell| cell.initialized())
    }

    /// Forgets a stage that could not be loaded, unless a session waits for it.
    pub(super) fn forget(&self, key: &StageKey) {
        let mut inner = self.lock();
        if inner.ledger.forget_unused(key) {
            inner.cells.remove(key);
        }
    }

    /// A stage whose thread died is loaded anew.
    fn drop_dead(inner: &mut Inner, key: &StageKey) {
        let cell = inner.cells.get(key);
        if cell
            .and_then(|cell| cell.get())
            .is_some_and(|engine| engine.is_dead())
        {
            inner.cells.remove(key);
        }
    }

    /// Gives back what a session holds. Its stage stays if it is loaded.
    pub(super) fn release(&self, session: SessionId, key: &StageKey) {
        let mut inner = self.lock();
        inner.ledger.release(session, Instant::now());
        let is_loaded = inner.cells.get(key).is_some_and(|cell| cell.initialized());
        if !is_loaded && inner.ledger.forget_unused(key) {
            inner.cells.remove(key);
        }
    }

    /// Unloads everything, for a stage server that knows of no session any more.
    pub(super) fn clear(&self) {
        let mut inner = self.lock();
        inner.ledger = inner.ledger.emptied();
        inner.cells.clear();
    }

    /// Memory that there is for models.
    pub(super) fn limit(&self) -> u64 {
        self.lock().ledger.limit()
    }

    /// Memory that is taken: in all, and by sessions.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.ledger.used(), inner.ledger.held())
    }

    /// How long the slowest of the stages takes for a token now, in percent of what it takes at best.
    pub(crate) fn toil(&self) -> u32 {
        let inner = self.lock();
        let engines = inner.cells.values().filter_map(|cell| cell.get());
        engines.map(|engine| engine.toil()).max().unwrap_or(100)
    }

    /// Sessions that hold memory.
    pub(crate) fn sessions(&self) -> usize {
        self.lock().ledger.sessions()
    }
}
