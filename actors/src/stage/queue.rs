//! What waits for a stage's compute thread. Placing, closing and queueing never wait for it; the
//! thread takes all that is due at once, lingers for sessions that are about to be back, and
//! sleeps when there is nothing.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use accel_inference::{SeqId, StageError};
use tokio::sync::oneshot;

use super::batch::Scheduler;
use super::engine::{ImportWork, StepWork};

/// Steps that may wait for a stage, over all sessions; and sequences that wait to be opened.
const LIMIT: usize = 256;
/// Why nothing is taken on.
pub(super) const DEAD: &str = "the stage's thread has died";

/// The beginning or the end of a sequence, or another plan for it.
pub(super) enum Order {
    Open {
        seq: SeqId,
        max_tokens: usize,
        reply: oneshot::Sender<Result<(), StageError>>,
    },
    Hold {
        seq: SeqId,
        reply: oneshot::Sender<Option<usize>>,
    },
    Cut {
        seq: SeqId,
        length: usize,
        max_tokens: usize,
    },
    Export {
        seq: SeqId,
        positions: Range<usize>,
        reply: oneshot::Sender<Result<Vec<u8>, StageError>>,
    },
    Import(ImportWork),
    Close(SeqId),
}

/// What the thread does next: the orders, then the batch.
pub(super) struct Turn {
    pub(super) orders: VecDeque<Order>,
    pub(super) batch: Vec<StepWork>,
}

/// See the module.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
}

struct Inner {
    /// As they came: a sequence is never closed before it is opened.
    orders: VecDeque<Order>,
    steps: Scheduler<StepWork>,
    ended: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        let inner = Inner {
            orders: VecDeque::new(),
            steps: Scheduler::new(LIMIT),
            ended: false,
        };
        Self {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is taken on any more.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    pub(super) fn open(
        &self,
        seq: SeqId,
        max_tokens: usize,
        reply: oneshot::Sender<Result<(), StageError>>,
    ) -> Result<(), &'static str> {
        self.order(Order::Open {
            seq,
            max_tokens,
            reply,
        })
    }

    /// Asks how long a sequence is, and drops what waits for it.
    pub(super) fn hold(
        &self,
        seq: SeqId,
        reply: oneshot::Sender<Option<usize>>,
    ) -> Result<(), &'static str> {
        self.lock().steps.forget(seq);
        self.order(Order::Hold { seq, reply })
    }

    /// Cuts a sequence off at a length, before all steps that come from now on.
    pub(super) fn cut(
        &self,
        seq: SeqId,
        length: usize,
        max_tokens: usize,
    ) -> Result<(), &'static str> {
        self.order(Order::Cut {
            seq,
            length,
            max_tokens,
        })
    }

    /// Asks for keys and values.
    pub(super) fn export(
        &self,
        seq: SeqId,
        positions: Range<usize>,
        reply: oneshot::Sender<Result<Vec<u8>, StageError>>,
    ) -> Result<(), &'static str> {
        self.order(Order::Export {
            seq,
            positions,
            reply,
        })
    }

    /// Appends keys and values, before all steps that come from now on.
    pub(super) fn import(&self, work: ImportWork) -> Result<(), &'static str> {
        self.order(Order::Import(work))
    }

    fn order(&self, order: Order) -> Result<(), &'static str> {
        let mut inner = self.lock();
        if inner.ended {
            return Err(DEAD);
        }
        if inner.orders.len() >= LIMIT {
            return Err("the stage has too many sessions waiting to begin");
        }
        inner.orders.push_back(order);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn step(&self, work: StepWork) -> Result<(), &'static str> {
        let mut inner = self.lock();
        if inner.ended {
            return Err(DEAD);
        }
        let (seq, rows) = (work.seq, work.rows());
        let queued = inner.steps.push(seq, rows, work);
        queued.map_err(|_| "the stage has too many steps waiting")?;
        self.wake.notify_one();
        Ok(())
    }

    /// Ends a sequence. What waits for it is dropped without a word: its session is over. There
    /// are never more closings than sequences that were opened, so they need no limit.
    pub(super) fn close(&self, seq: SeqId) {
        let mut inner = self.lock();
        if inner.ended {
            return;
        }
        inner.steps.forget(seq);
        inner.orders.push_back(Order::Close(seq));
        self.wake.notify_one();
    }

    /// Sleeps until something is due, then waits no longer than `patience` for those who had a
    /// token in the last turn and will be back; nothing once the queue has ended.
    pub(super) fn next(&self, patience: Duration) -> Option<Turn> {
        let idle =
            |inner: &mut Inner| !inner.ended && inner.orders.is_empty() && inner.steps.is_empty();
        let woken = self.wake.wait_while(self.lock(), idle);
        let inner = woken.unwrap_or_else(PoisonError::into_inner);
        let lingers = |inner: &mut Inner| !inner.ended && inner.steps.should_linger();
        let woken = self.wake.wait_timeout_while(inner, patience, lingers);
        let (mut inner, _) = woken.unwrap_or_else(PoisonError::into_inner);
        if inner.ended {
            return None;
        }
        let batch = inner.steps.batch();
        let returning = batch.iter().filter(|work| work.will_be_back());
        inner.steps.expect(returning.map(|work| work.seq));
        let orders = std::mem::take(&mut inner.orders);
        Some(Turn { orders, batch })
    }

    /// Takes on nothing any more and gives back the steps that wait. Whoever waits for a sequence
    /// to be opened is told by the end of the channel.
    pub(super) fn end(&self) -> Vec<StepWork> {
        let mut inner = self.lock();
        inner.ended = true;
        inner.orders.clear();
        self.wake.notify_one();
        inner.steps.drain()
    }
}
