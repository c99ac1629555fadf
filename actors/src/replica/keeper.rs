//! What a node does for coordinators elsewhere: it keeps their sessions in its own journal, and tells
//! what it has of a session to whoever asks. Each stream has a task, which takes one request at a
//! time; it ends with the stream, or with the first request that is refused.

use std::sync::Arc;
use std::time::Instant;

use accel_p2p::{IncomingReplica, PeerId, Record, ReplicaReply, ReplicaRequest, SessionId};
use accel_storage::{Journal, JournalEntry, JournalError, StorageError, Writer};
use bytes::Bytes;

use super::pages::{may_leave, page};
use super::quota::Quotas;
use super::tenure::{Tenure, Tenures};
use crate::error::SESSION_MOVED;
use crate::session::record::OpeningRecord;
use crate::session::table::SessionTable;

/// What a page or a record costs beyond its own bytes.
const OVERHEAD: usize = 64;
/// What reading a session costs.
const READ: usize = 4096;

/// See the module.
pub(crate) struct Keeper {
    journal: Journal,
    table: Arc<SessionTable>,
    tenures: Arc<Tenures>,
    quotas: Quotas,
}

/// Where a stream stands.
enum Standing {
    /// Nothing was asked.
    Fresh,
    /// The opening record is not complete.
    Opening {
        session: SessionId,
        claim: u64,
        bytes: u64,
        opening: Vec<u8>,
    },
    /// A session is kept.
    Keeping {
        session: SessionId,
        writer: Writer,
        _tenure: Tenure,
    },
    /// A session is read.
    Reading {
        session: SessionId,
        entry: JournalEntry,
    },
}

/// Why a request is refused: its code, and what is said about it.
struct Refusal(&'static str, String);

impl Keeper {
    pub(crate) fn new(
        journal: Journal,
        table: Arc<SessionTable>,
        tenures: Arc<Tenures>,
    ) -> Arc<Self> {
        Arc::new(Self {
            journal,
            table,
            tenures,
            quotas: Quotas::default(),
        })
    }

    /// Serves a stream to its end.
    pub(crate) async fn serve(self: Arc<Self>, mut incoming: IncomingReplica) {
        let peer = incoming.peer;
        let mut standing = Standing::Fresh;
        while let Some(call) = incoming.calls.recv().await {
            let cost = cost(&call.request);
            let reply = match self.quotas.charge(peer, cost, Instant::now()) {
                true => self.take(&mut standing, call.request).await,
                false => Err(Refusal("quota", "the peer has had too much kept".into())),
            };
            let reply = reply.unwrap_or_else(|refusal| refuse(peer, &refusal));
            // The caller may be gone: then the next request does not come.
            let _ = call.answer.send(reply);
        }
    }

    async fn take(
        &self,
        standing: &mut Standing,
        request: ReplicaRequest,
    ) -> Result<ReplicaReply, Refusal> {
        match (request, &mut *standing) {
            (
                ReplicaRequest::Open {
                    session,
                    claim,
                    bytes,
                    part,
                },
                Standing::Fresh,
            ) => {
                *standing = Standing::Opening {
                    session,
                    claim,
                    bytes,
                    opening: part,
                };
                self.open(standing).await
            }
            (ReplicaRequest::Opening { part }, Standing::Opening { opening, .. }) => {
                opening.extend(part);
                self.open(standing).await
            }
            (
                ReplicaRequest::Append { first, records },
                Standing::Keeping {
                    session, writer, ..
                },
            ) => self.append(*session, *writer, first, records).await,
            (
                ReplicaRequest::Close { outcome },
                Standing::Keeping {
                    session, writer, ..
                },
            ) => self.close(*session, *writer, &outcome).await,
            (
                ReplicaRequest::Fetch {
                    session,
                    opening_from,
                    from,
                },
                Standing::Fresh | Standing::Reading { .. },
            ) => self.fetch(standing, session, opening_from, from).await,
            _ => Err(bad("the request is out of place")),
        }
    }

    /// Begins to keep a session, once its opening record is complete.
    async fn open(&self, standing: &mut Standing) -> Result<ReplicaReply, Refusal> {
        let Standing::Opening {
            session,
            claim,
            bytes,
            opening,
        } = standing
        else {
            return Err(bad("there is nothing to open"));
        };
        if (opening.len() as u64) < *bytes {
            return Ok(ReplicaReply::More);
        }
        let record = OpeningRecord::read(opening);
        let is_fit = record.is_ok_and(|record| record.is_resumable());
        if !is_fit || opening.len() as u64 > *bytes {
            return Err(bad("the opening record is not one that may be kept"));
        }
        let (session, claim) = (*session, *claim);
        // From now on it is not cleaned up.
        let tenure = self.tenures.begin(session);
        let kept = self.journal.keep(session.bytes(), claim, opening).await;
        kept.map_err(|error| not_kept(&error))?;
        self.table.moved(session);
        *standing = Standing::Keeping {
            session,
            writer: Writer {
                claim,
                is_keeper: true,
            },
            _tenure: tenure,
        };
        Ok(ReplicaReply::Durable { records: 0 })
    }

    async fn append(
        &self,
        session: SessionId,
        writer: Writer,
        first: u64,
        records: Vec<Record>,
    ) -> Result<ReplicaReply, Refusal> {
        let end = first + records.len() as u64;
        let bytes = records.into_iter().map(|record| Bytes::from(record.bytes));
        let written = self
            .journal
            .append_as(session.bytes(), writer, first, bytes.collect());
        written.await.map_err(|error| not_kept(&error))?;
        Ok(ReplicaReply::Durable { records: end })
    }

    async fn close(
        &self,
        session: SessionId,
        writer: Writer,
        outcome: &[u8],
    ) -> Result<ReplicaReply, Refusal> {
        let closed = self
            .journal
            .close_as(session.bytes(), writer, outcome)
            .await;
        closed.map_err(|error| not_kept(&error))?;
        Ok(ReplicaReply::Durable { records: 0 })
    }

    async fn fetch(
        &self,
        standing: &mut Standing,
        session: SessionId,
        opening_from: u64,
        from: u64,
    ) -> Result<ReplicaReply, Refusal> {
        let is_read =
            matches!(standing, Standing::Reading { session: read, .. } if *read == session);
        if !is_read || (opening_from, from) == (0, 0) {
            let Some(entry) = self.load(session).await? else {
                return Ok(ReplicaReply::Unknown);
            };
            *standing = Standing::Reading { session, entry };
        }
        match standing {
            Standing::Reading { entry, .. } => Ok(page(entry, opening_from, from)),
            _ => Ok(ReplicaReply::Unknown),
        }
    }

    async fn load(&self, session: SessionId) -> Result<Option<JournalEntry>, Refusal> {
        let journal = self.journal.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let read = journal.load(session.bytes());
            read.map_err(|error| error.to_string())
        });
        let read = reading.await.map_err(|error| error.to_string());
        let entry = read.flatten().map_err(|why| Refusal("journal", why))?;
        Ok(entry.filter(may_leave))
    }
}

/// What a request counts for.
fn cost(request: &ReplicaRequest) -> usize {
    match request {
        ReplicaRequest::Open { part, .. } | ReplicaRequest::Opening { part } => part.len() + READ,
        ReplicaRequest::Append { records, .. } => {
            let sizes = records.iter().map(|record| record.bytes.len() + OVERHEAD);
            sizes.sum()
        }
        ReplicaRequest::Close { outcome } => outcome.len() + OVERHEAD,
        ReplicaRequest::Fetch { .. } => READ,
    }
}

fn bad(why: &str) -> Refusal {
    Refusal("bad_request", why.to_owned())
}

/// A newer coordinator was here, or the journal does not take it.
fn not_kept(error: &StorageError) -> Refusal {
    let code = match error {
        StorageError::Journal {
            source: JournalError::Claimed { .. } | JournalError::Closed,
            ..
        } => SESSION_MOVED,
        _ => "journal",
    };
    Refusal(code, error.to_string())
}

fn refuse(peer: PeerId, Refusal(code, message): &Refusal) -> ReplicaReply {
    tracing::debug!(%peer, code, message, "a session is not kept");
    let hint = match *code {
        SESSION_MOVED => "come back with Last-Event-ID, to this node or to another of the swarm",
        _ => "keep the session on another peer",
    };
    ReplicaReply::refused(code, message, hint)
}

#[cfg(test)]
mod tests;
