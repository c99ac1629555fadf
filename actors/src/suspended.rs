//! Sessions that wait for their clients: the journal has them, nobody computes them. They hold
//! nothing but their records, and are closed when their clients stay away. What is kept for
//! coordinators elsewhere waits in the same way, once nobody writes it any more, and is then forgotten.

use std::sync::Arc;
use std::time::Duration;

use accel_p2p::wire::SessionId;
use accel_storage::{Journal, SessionKey, SessionSummary, StorageError};

use crate::error::Failure;
use crate::replica::tenure::Tenures;
use crate::resume::age;
use crate::session::record::{OpeningRecord, failed_record};
use crate::session::show::{error_view, view};
use crate::session::table::SessionTable;

/// How many may wait; of more, those are closed that wait longest.
const MOST: usize = 1000;
/// How often it is looked for those that wait too long, at most.
const LOOK: Duration = Duration::from_secs(10);

// Boxed, because an error as large as these would make every result large.
type Result<T> = std::result::Result<T, Box<StorageError>>;

/// See the module.
pub(crate) struct Suspended {
    pub(crate) journal: Journal,
    pub(crate) table: Arc<SessionTable>,
    /// Who else writes what this node keeps for others.
    pub(crate) tenures: Arc<Tenures>,
    pub(crate) window: Duration,
}

impl Suspended {
    /// What a crash or a stop cut off waits for its client from now on, if it may.
    pub(crate) async fn at_start(&self) -> Result<()> {
        for summary in self.open()? {
            if summary.is_kept {
                continue;
            }
            match self.waiting(summary.key) {
                Some((record, tokens)) => {
                    let id = SessionId::from(summary.key);
                    self.table.enter(id, view(id, &record, "suspended", tokens));
                }
                None => self.close(summary.key, &interrupted()).await?,
            }
        }
        self.close_late().await
    }

    /// Closes those whose clients stay away, for as long as the node runs.
    pub(crate) async fn keep_closing(self) {
        let every = (self.window / 4).clamp(Duration::from_millis(100), LOOK);
        loop {
            tokio::time::sleep(every).await;
            if let Err(error) = self.close_late().await {
                tracing::warn!(%error, "sessions that nobody wants stay in the journal");
            }
        }
    }

    /// Forgets what is kept for others, once nobody wants it.
    async fn forget_kept(&self) -> Result<()> {
        let mut kept = self.journal.sessions()?;
        kept.retain(|session| session.is_kept);
        kept.sort_by_key(|session| std::cmp::Reverse(session.touched_unix_ms));
        for (index, session) in kept.iter().enumerate() {
            let id = SessionId::from(session.key);
            let Some(_hold) = self.table.hold(id) else {
                continue;
            };
            let unwritten = self.tenures.quiet(id).unwrap_or(Duration::MAX);
            let is_written = unwritten.is_zero();
            if age(session).min(unwritten) > self.window || (index >= MOST && !is_written) {
                tracing::info!(session = %id, "nobody came for it; its copy is forgotten");
                self.journal.forget(session.key).await?;
            }
        }
        Ok(())
    }

    /// Sessions without an outcome.
    fn open(&self) -> Result<Vec<SessionSummary>> {
        let mut sessions = self.journal.sessions()?;
        sessions.retain(|session| session.closed_unix_ms.is_none());
        Ok(sessions)
    }

    /// A session for which a client may come back, and how many tokens it has.
    fn waiting(&self, key: SessionKey) -> Option<(OpeningRecord, u64)> {
        let entry = self.journal.load(key).ok()??;
        let record = OpeningRecord::read(&entry.opening).ok()?;
        let tokens = entry.records.len() as u64;
        record.is_resumable().then_some((record, tokens))
    }

    async fn close_late(&self) -> Result<()> {
        self.forget_kept().await?;
        let mut open = self.open()?;
        open.retain(|session| !session.is_kept);
        open.sort_by_key(|session| std::cmp::Reverse(session.touched_unix_ms));
        for (index, session) in open.iter().enumerate() {
            let id = SessionId::from(session.key);
            // Whoever is about to go on with it keeps it.
            let Some(_hold) = self.table.hold(id).filter(|_| !self.table.coordinates(id)) else {
                continue;
            };
            let quiet = age(session).min(self.table.idle(id).unwrap_or(Duration::MAX));
            if quiet > self.window || index >= MOST {
                tracing::info!(session = %id, "nobody came back for it; it is closed");
                self.close(session.key, &expired(self.window)).await?;
            }
        }
        Ok(())
    }

    async fn close(&self, key: SessionKey, failure: &Failure) -> Result<()> {
        let outcome = failed_record(failure);
        if let Err(error) = self.journal.close(key, outcome.as_bytes()).await {
            // What cannot be read cannot be closed either, and stands in nobody's way.
            tracing::warn!(%error, "a session stays open in the journal");
        }
        self.table.update(SessionId::from(key), |view| {
            "failed".clone_into(&mut view.state);
            view.error = Some(error_view(failure));
        });
        Ok(())
    }
}

fn interrupted() -> Failure {
    let message = "the node stopped, and the session does not survive that";
    let hint = "send the request again, as a stream with fault_tolerance `medium`";
    Failure::unavailable("interrupted", message, hint)
}

fn expired(window: Duration) -> Failure {
    let message = format!("no client came back within {} s", window.as_secs());
    let hint = "send the request again";
    Failure::unavailable("session_expired", message, hint)
}
