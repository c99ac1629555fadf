//! The journal of sessions: what was answered is on disk before it is said.
//!
//! A session is an opening record, records numbered from 0 without gaps, and an outcome. `open`,
//! `append` and `close` resolve once durable; one thread writes for all (`committer.rs`), so that one
//! flush serves everything that waited for it. A record, once durable, never changes: a repeat of
//! the same bytes is accepted, other bytes are refused.
//!
//! Whoever goes on with a session that was left open claims it first, under a number above every
//! one before. The claim is the only record that is ever replaced. A node also keeps sessions for
//! coordinators elsewhere ([`Journal::keep`]); who writes under an older claim is refused, and so is
//! who writes as what this node no longer is ([`Writer`]).
//!
//! Every record is versioned and carries a checksum over its key and content (`record.rs`). What a
//! crash or a bad disk damaged is cut off at the first bad record and reported; the next append
//! writes from there.

mod committer;
mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use self::committer::{Committer, Operation, Request};
use crate::data_dir::DataDir;
use crate::durable::Durable;
use crate::error::{JournalError, Result, StorageError, io_error};

/// Names a session.
pub type SessionKey = [u8; 16];

/// The largest opening record: a prompt of a million tokens and its parameters.
pub const OPENING_LIMIT: usize = 8 << 20;
/// The largest record or outcome.
pub const RECORD_LIMIT: usize = 1 << 20;

/// Requests that may wait for the thread; more wait in their callers.
const QUEUE: usize = 1024;

/// The journal of a store. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    // Both are taken when the last clone is dropped.
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
    tree: sled::Tree,
    // The directory stays held as long as anything may be written to it.
    _data: DataDir,
}

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    flushes: AtomicU64,
}

/// What the journal holds of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// The opening record.
    pub opening: Bytes,
    /// The records, numbered from 0 without gaps.
    pub records: Vec<Bytes>,
    /// The newest claim; 0 when nobody went on with it.
    pub claim: u64,
    /// Whether this node only keeps it, for a coordinator elsewhere.
    pub is_kept: bool,
    /// How it ended, if it did.
    pub outcome: Option<Bytes>,
    /// What could not be read, if anything.
    pub damage: Option<Damage>,
}

/// In whose name a session is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// The claim of the coordinator.
    pub claim: u64,
    /// Whether that is another node, for which this one keeps the session.
    pub is_keeper: bool,
}

/// What of a session could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// This record and all after it.
    Records {
        /// The first that is missing or fails its checksum.
        from: u64,
    },
    /// The outcome, so the session counts as not ended.
    Outcome,
    /// The newest claim, so nobody knows above which number to go on.
    Claim,
}

/// One session in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    /// Which.
    pub key: SessionKey,
    /// When it was opened, in milliseconds since 1970; 0 when that is damaged.
    pub opened_unix_ms: u64,
    /// When anything was last written of it before its outcome; 0 when that is damaged.
    pub touched_unix_ms: u64,
    /// When its outcome was written, if it was.
    pub closed_unix_ms: Option<u64>,
    /// Whether this node only keeps it, for a coordinator elsewhere.
    pub is_kept: bool,
}

/// How much the journal has written since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalStats {
    /// Openings, records and outcomes.
    pub writes: u64,
    /// Flushes to disk that made them durable.
    pub flushes: u64,
}

impl Journal {
    pub(crate) fn start(tree: sled::Tree, durable: Durable, data: DataDir) -> Result<Self> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let counters = Arc::new(Counters::default());
        let committer = Committer::new(tree.clone(), durable, counters.clone());
        let thread = std::thread::Builder::new()
            .name("accel-journal".to_owned())
            .spawn(move || committer.run(queue))
            .map_err(io_error("start the journal of", data.path()))?;
        let inner = Inner {
            requests: Some(requests),
            thread: Some(thread),
            counters,
            tree,
            _data: data,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Opens a session; resolves when durable.
    pub async fn open(&self, session: SessionKey, opening: &[u8]) -> Result<()> {
        check_size(session, opening, OPENING_LIMIT)?;
        let opening = Bytes::copy_from_slice(opening);
        self.request(session, Operation::Open(opening)).await?;
        Ok(())
    }

    /// Keeps a session for the coordinator of this claim, which is above every claim before, or
    /// the one for which it is kept already; resolves when durable. What ended under a claim before
    /// is not ended any more.
    pub async fn keep(&self, session: SessionKey, claim: u64, opening: &[u8]) -> Result<()> {
        check_size(session, opening, OPENING_LIMIT)?;
        let opening = Bytes::copy_from_slice(opening);
        self.request(session, Operation::Keep(claim, opening))
            .await?;
        Ok(())
    }

    /// Appends record `index`, which must follow the last one, whoever writes it; resolves when
    /// durable.
    pub async fn append(&self, session: SessionKey, index: u64, record: &[u8]) -> Result<()> {
        let record = Bytes::copy_from_slice(record);
        self.extend(session, None, index, vec![record]).await
    }

    /// Appends records from `first` on in the name of the session's writer; resolves when durable.
    pub async fn append_as(
        &self,
        session: SessionKey,
        writer: Writer,
        first: u64,
        records: Vec<Bytes>,
    ) -> Result<()> {
        self.extend(session, Some(writer), first, records).await
    }

    async fn extend(
        &self,
        session: SessionKey,
        writer: Option<Writer>,
        first: u64,
        records: Vec<Bytes>,
    ) -> Result<()> {
        for record in &records {
            check_size(session, record, RECORD_LIMIT)?;
        }
        self.request(session, Operation::Append(writer, first, records))
            .await?;
        Ok(())
    }

    /// Takes a session that was not ended over, under a number above every claim before; resolves
    /// when durable. From then on this node coordinates it.
    pub async fn claim(&self, session: SessionKey, claim: u64) -> Result<()> {
        self.request(session, Operation::Claim(claim)).await?;
        Ok(())
    }

    /// Ends a session, whoever writes it; resolves when durable.
    pub async fn close(&self, session: SessionKey, outcome: &[u8]) -> Result<()> {
        self.end(session, None, outcome).await
    }

    /// Ends a session in the name of its writer; resolves when durable.
    pub async fn close_as(
        &self,
        session: SessionKey,
        writer: Writer,
        outcome: &[u8],
    ) -> Result<()> {
        self.end(session, Some(writer), outcome).await
    }

    async fn end(&self, session: SessionKey, writer: Option<Writer>, outcome: &[u8]) -> Result<()> {
        check_size(session, outcome, RECORD_LIMIT)?;
        let outcome = Bytes::copy_from_slice(outcome);
        self.request(session, Operation::Close(writer, outcome))
            .await?;
        Ok(())
    }

    /// Forgets a session that this node keeps for a coordinator elsewhere; one of its own it does
    /// not. Resolves when that is durable.
    pub async fn forget(&self, session: SessionKey) -> Result<()> {
        self.request(session, Operation::Forget).await?;
        Ok(())
    }

    /// What is known of a session. Blocking, briefly.
    pub fn load(&self, session: SessionKey) -> Result<Option<JournalEntry>> {
        record::load(&self.inner.tree, session)
    }

    /// When things happened to a session. Blocking, briefly.
    pub fn summary(&self, session: SessionKey) -> Result<Option<SessionSummary>> {
        record::summary(&self.inner.tree, session)
    }

    /// Every session. Blocking, briefly.
    pub fn sessions(&self) -> Result<Vec<SessionSummary>> {
        record::sessions(&self.inner.tree)
    }

    /// Forgets the sessions closed longest ago, all closed ones but `keep`; returns how many.
    pub async fn prune(&self, keep: usize) -> Result<usize> {
        self.request([0; 16], Operation::Prune(keep)).await
    }

    /// How much was written.
    pub fn stats(&self) -> JournalStats {
        JournalStats {
            writes: self.inner.counters.writes.load(Ordering::Relaxed),
            flushes: self.inner.counters.flushes.load(Ordering::Relaxed),
        }
    }

    async fn request(&self, session: SessionKey, operation: Operation) -> Result<usize> {
        let stopped = || StorageError::Interrupted("the journal has stopped; restart the node");
        let (reply, answer) = oneshot::channel();
        let request = Request {
            session,
            operation,
            reply,
        };
        let requests = self.inner.requests.as_ref().ok_or_else(stopped)?;
        requests.send(request).await.map_err(|_| stopped())?;
        let answer = answer.await.map_err(|_| stopped())?;
        answer.map_err(|source| StorageError::Journal { session, source })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread writes what is queued and ends when there are no senders.
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's thread had panicked");
        }
    }
}

fn check_size(session: SessionKey, bytes: &[u8], limit: usize) -> Result<()> {
    if bytes.len() > limit {
        let bytes = bytes.len();
        let source = JournalError::TooLarge { bytes, limit };
        return Err(StorageError::Journal { session, source });
    }
    Ok(())
}
