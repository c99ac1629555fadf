//! What one peer asks of us: a bounded queue, answered from the store in messages of bounded size.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cid::Cid;
use tokio::sync::{Notify, mpsc};

use super::content::prefix_of;
use super::message::{Block, Entry, Message, Presence, Want};
use super::{Exchange, limits};

/// Wants of one peer that may wait; more are dropped, and asked again by whoever needs them.
const MAX_QUEUED: usize = 4096;
/// Wants looked up at a time.
const BATCH: usize = 64;

/// The wants of one peer.
#[derive(Default)]
pub(super) struct Queue {
    entries: Mutex<VecDeque<Entry>>,
    filled: Notify,
}

impl Queue {
    fn entries(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a wantlist: cancellations take effect, and what is wanted already is not queued
    /// twice.
    pub(super) fn update(&self, wants: Vec<Entry>, replaces_all: bool) {
        let mut entries = self.entries();
        if replaces_all {
            entries.clear();
        }
        for want in wants {
            if want.cancel {
                entries.retain(|entry| entry.cid != want.cid);
                continue;
            }
            let is_queued = |entry: &Entry| entry.cid == want.cid && entry.want == want.want;
            if entries.len() < MAX_QUEUED && !entries.iter().any(is_queued) {
                entries.push_back(want);
            }
        }
        drop(entries);
        self.filled.notify_one();
    }

    /// The oldest wants; waits for one.
    async fn take(&self) -> Vec<Entry> {
        loop {
            let batch: Vec<Entry> = {
                let mut entries = self.entries();
                let count = entries.len().min(BATCH);
                entries.drain(..count).collect()
            };
            if !batch.is_empty() {
                return batch;
            }
            self.filled.notified().await;
        }
    }

    fn put_back(&self, rest: Vec<Entry>) {
        let mut entries = self.entries();
        for entry in rest.into_iter().rev() {
            entries.push_front(entry);
        }
    }
}

/// Answers one peer until its writer is gone.
pub(super) async fn run(
    exchange: Arc<Exchange>,
    queue: Arc<Queue>,
    responses: mpsc::Sender<Bytes>,
) {
    loop {
        let batch = queue.take().await;
        let reader = Arc::clone(&exchange);
        let answering = tokio::task::spawn_blocking(move || answer(&reader, batch));
        let Ok(answered) = answering.await else {
            tracing::error!("the block store panicked; its answers are lost");
            continue;
        };
        queue.put_back(answered.rest);
        let Some(message) = answered.message else {
            continue;
        };
        if responses.send(message).await.is_err() {
            return;
        }
    }
}

struct Answered {
    message: Option<Bytes>,
    rest: Vec<Entry>,
}

/// Looks up wants until the response is large enough.
fn answer(exchange: &Exchange, batch: Vec<Entry>) -> Answered {
    let mut message = Message::default();
    let mut size = 0;
    let mut entries = batch.into_iter();
    for entry in entries.by_ref() {
        size += answer_one(exchange, &entry, &mut message);
        if size >= limits::RESPONSE {
            break;
        }
    }
    let is_empty = message.blocks.is_empty() && message.presences.is_empty();
    Answered {
        message: (!is_empty).then(|| message.encode().into()),
        rest: entries.collect(),
    }
}

/// Adds the answer to one want and returns by how many bytes of blocks the response grew.
fn answer_one(exchange: &Exchange, entry: &Entry, message: &mut Message) -> usize {
    let found = match entry.want {
        Want::Have => exchange.store.has(&entry.cid).map(Found::presence),
        Want::Block => exchange.store.get(&entry.cid).map(Found::block),
    };
    let found = found.unwrap_or_else(|error| {
        tracing::warn!(cid = %entry.cid, %error, "a block cannot be read and is not served");
        Found::Nothing
    });
    match found {
        Found::Block(data) if data.len() <= limits::BLOCK => {
            let size = data.len();
            exchange.counters.sent(size);
            message.blocks.push(block(&entry.cid, data));
            size
        }
        Found::Presence => {
            message.presences.push((entry.cid, Presence::Have));
            0
        }
        Found::Block(_) | Found::Nothing => {
            if entry.send_dont_have {
                message.presences.push((entry.cid, Presence::DontHave));
            }
            0
        }
    }
}

fn block(cid: &Cid, data: Bytes) -> Block {
    let prefix = prefix_of(cid);
    Block { prefix, data }
}

enum Found {
    Block(Bytes),
    Presence,
    Nothing,
}

impl Found {
    fn presence(is_here: bool) -> Self {
        if is_here {
            Self::Presence
        } else {
            Self::Nothing
        }
    }

    fn block(data: Option<Bytes>) -> Self {
        data.map_or(Self::Nothing, Self::Block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitswap::content::raw_cid;

    fn want(data: &[u8]) -> Entry {
        Entry::want(raw_cid(data), Want::Block)
    }

    #[tokio::test]
    async fn wants_are_answered_in_order_and_once_and_not_after_a_cancellation() {
        let queue = Queue::default();
        queue.update(vec![want(b"a"), want(b"b"), want(b"a"), want(b"c")], false);
        queue.update(vec![Entry::cancel(raw_cid(b"b"))], false);
        assert_eq!(queue.take().await, [want(b"a"), want(b"c")]);
    }

    #[tokio::test]
    async fn a_full_wantlist_replaces_what_was_wanted_before() {
        let queue = Queue::default();
        queue.update(vec![want(b"a")], false);
        queue.update(vec![want(b"b")], true);
        assert_eq!(queue.take().await, [want(b"b")]);
    }

    #[tokio::test]
    async fn what_did_not_fit_in_a_response_comes_first_in_the_next() {
        let queue = Queue::default();
        queue.update(vec![want(b"c")], false);
        queue.put_back(vec![want(b"a"), want(b"b")]);
        assert_eq!(queue.take().await, [want(b"a"), want(b"b"), want(b"c")]);
    }

    #[test]
    fn a_queue_does_not_grow_without_bound() {
        let queue = Queue::default();
        for round in 0..3u32 {
            let wants = (0..MAX_QUEUED as u32)
                .map(|n| want(&[round.to_le_bytes(), n.to_le_bytes()].concat()));
            queue.update(wants.collect(), false);
        }
        assert_eq!(queue.entries().len(), MAX_QUEUED);
    }
}
