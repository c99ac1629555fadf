//! A client comes back for the rest of its answer. The journal has everything: the request, the
//! tokens, how the stream is to be written. A session that still runs for another client stops
//! first, because the journal has one writer: whoever knows a session's id and comes last gets it,
//! so that a client whose connection broke unnoticed need not wait until that is noticed.
//!
//! A session that this node does not have, or not as it is now, is asked of the peers: whoever wanted
//! `high`, or was with a node that stopped, may come back to any node of the swarm. A node that handed
//! a session over and is there again so serves what its peers made of it meanwhile.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use accel_inference::{ModelShape, StopMatcher};
use accel_p2p::wire::SessionId;
use accel_storage::{Damage, Journal, JournalEntry, SessionSummary};
use actix::Message;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::{Failure, GenerateError};
use crate::placement::Placement;
use crate::replica::Replicas;
use crate::replica::copy::{adopt, gather};
use crate::replica::tenure::Tenures;
use crate::request::Resumption;
use crate::router::{Begun, RouterDeps, begin, opening, tolerance};
use crate::session::machine::{Machine, Past, next_claim};
use crate::session::record::{Ended, OpeningRecord, RecordError, read_outcome, read_token};
use crate::session::table::{Hold, SessionTable};
use crate::session::text::AnswerText;

/// How long a session may take to stop for another client.
const STOP: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);
/// What the index of a client is called in errors.
const FIELD: &str = "Last-Event-ID";

/// Finds sessions for clients that come back.
pub(crate) struct Returns {
    pub(crate) journal: Journal,
    pub(crate) table: Arc<SessionTable>,
    /// The peers, to be asked for what is not here.
    pub(crate) replicas: Arc<dyn Replicas>,
    pub(crate) tenures: Arc<Tenures>,
    /// How long sessions are kept for their clients.
    pub(crate) window: Duration,
}

/// A session that may be gone on with.
pub(crate) struct Found {
    id: SessionId,
    record: OpeningRecord,
    entry: JournalEntry,
    /// How many tokens the client has.
    seen: u64,
    hold: Hold,
}

/// Go on with a session that was found, with its place among those that may run.
#[derive(Message)]
#[rtype(result = "Result<Resumption, GenerateError>")]
pub(crate) struct Resume {
    pub(crate) found: Found,
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Returns {
    /// Finds a session for a client that has its answer up to token `after`. When this returns, it
    /// does not run here, and nobody else takes it up.
    pub(crate) async fn find(
        &self,
        session: &str,
        after: Option<u64>,
    ) -> Result<Found, GenerateError> {
        let bad = |problem: &str| GenerateError::BadField {
            field: FIELD,
            problem: problem.to_owned(),
        };
        let id: SessionId = session.parse().map_err(|_| bad("names no session"))?;
        let seen = match after {
            None => 0,
            Some(index) => index
                .checked_add(1)
                .ok_or_else(|| bad("no index is so high"))?,
        };
        let busy = || GenerateError::SessionBusy {
            session: id.to_string(),
        };
        let hold = self.table.hold(id).ok_or_else(busy)?;
        self.fetch(id).await?;
        let (mut record, mut entry) = self.load(id, seen).await?;
        if self.table.coordinates(id) {
            if !self.stop(id).await {
                return Err(busy());
            }
            (record, entry) = self.load(id, seen).await?;
        }
        Ok(Found {
            id,
            record,
            entry,
            seen,
            hold,
        })
    }

    async fn load(
        &self,
        id: SessionId,
        seen: u64,
    ) -> Result<(OpeningRecord, JournalEntry), GenerateError> {
        let Some((entry, summary)) = self.read(id).await? else {
            return Err(self.not_found(id));
        };
        let record = OpeningRecord::read(&entry.opening);
        let record = record.map_err(|error| not_resumable(id, error.to_string()))?;
        self.check(id, &record, &entry, &summary)?;
        let tokens = entry.records.len() as u64;
        if seen > tokens {
            return Err(GenerateError::BadField {
                field: FIELD,
                problem: format!("the session has {tokens} tokens; there is no such index"),
            });
        }
        Ok((record, entry))
    }

    /// What the journal has of a session.
    async fn read(
        &self,
        id: SessionId,
    ) -> Result<Option<(JournalEntry, SessionSummary)>, GenerateError> {
        let journal = self.journal.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let entry = journal.load(id.bytes())?;
            Ok::<_, Box<accel_storage::StorageError>>((entry, journal.summary(id.bytes())?))
        });
        let read = reading
            .await
            .map_err(|error| GenerateError::Internal(error.to_string()))?;
        let (entry, summary) = read.map_err(|error| not_resumable(id, error.to_string()))?;
        Ok(entry.zip(summary))
    }

    /// Takes from the peers what this node lacks of a session that others may have.
    async fn fetch(&self, id: SessionId) -> Result<(), GenerateError> {
        if self.table.coordinates(id) {
            return Ok(());
        }
        let local = self.read(id).await?.map(|(entry, _)| entry);
        let others_may_have_it = local.as_ref().is_none_or(|entry| {
            let record = OpeningRecord::read(&entry.opening);
            !is_done(entry) && record.is_ok_and(|record| record.is_resumable())
        });
        if !others_may_have_it {
            return Ok(());
        }
        let Some(copy) = gather(self.replicas.as_ref(), id).await else {
            return Ok(());
        };
        // What failed here is over, unless somebody went on with it since.
        let is_over = |local: &JournalEntry| local.outcome.is_some() && copy.claim <= local.claim;
        if local.as_ref().is_some_and(is_over) {
            return Ok(());
        }
        let record = OpeningRecord::read(&copy.opening);
        if !record.is_ok_and(|record| record.is_resumable()) {
            return Ok(());
        }
        let adopted = adopt(&self.journal, id, local.as_ref(), copy).await;
        adopted.map_err(|error| not_resumable(id, error.to_string()))
    }

    fn check(
        &self,
        id: SessionId,
        record: &OpeningRecord,
        entry: &JournalEntry,
        summary: &SessionSummary,
    ) -> Result<(), GenerateError> {
        // What is over does not become younger because somebody reads it.
        let idle = self.table.idle(id).filter(|_| entry.outcome.is_none());
        let unwritten = self.tenures.quiet(id).unwrap_or(Duration::MAX);
        let quiet = age(summary).min(idle.unwrap_or(Duration::MAX));
        let runs = self.table.coordinates(id);
        if !runs && quiet.min(unwritten) > self.window {
            return Err(self.not_found(id));
        }
        if !record.is_resumable() {
            let reason = match record.form {
                Some(_) => format!(
                    "its fault_tolerance is `{}`, which does not survive this",
                    record.fault_tolerance
                ),
                None => "its answer was not asked for as a stream".to_owned(),
            };
            return Err(not_resumable(id, reason));
        }
        if entry.damage == Some(Damage::Claim) {
            let reason = "its journal is damaged".to_owned();
            return Err(not_resumable(id, reason));
        }
        Ok(())
    }

    fn not_found(&self, id: SessionId) -> GenerateError {
        GenerateError::SessionNotFound {
            session: id.to_string(),
            kept: self.window,
        }
    }

    /// Has a session that runs here stop; whether it did.
    async fn stop(&self, id: SessionId) -> bool {
        let message = "another client took the answer up";
        let hint = "come back with Last-Event-ID to have it here again";
        let failure = Failure::unavailable("session_taken_up", message, hint);
        self.table.suspend(id, failure);
        let stopped = async {
            while self.table.coordinates(id) {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(STOP, stopped).await.is_ok()
    }
}

/// Whether the answer is complete.
fn is_done(entry: &JournalEntry) -> bool {
    let outcome = entry.outcome.as_ref();
    let ended = outcome.and_then(|outcome| read_outcome(outcome).ok());
    matches!(ended, Some(Ended::Done(_)))
}

/// Since when nothing was written of a session.
pub(crate) fn age(summary: &SessionSummary) -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since.map_or(0, |since| since.as_millis() as u64);
    let written = summary
        .touched_unix_ms
        .max(summary.closed_unix_ms.unwrap_or(0));
    Duration::from_millis(now.saturating_sub(written))
}

fn not_resumable(id: SessionId, reason: String) -> GenerateError {
    GenerateError::NotResumable {
        session: id.to_string(),
        reason,
    }
}

/// Starts the session's actor where the journal ends.
pub(crate) async fn take_up(
    deps: &RouterDeps,
    message: Resume,
) -> Result<Resumption, GenerateError> {
    let Resume { found, permit } = message;
    let Found {
        id,
        record,
        entry,
        seen,
        hold,
    } = found;
    let card = deps.models.card(&record.model).await?;
    let cannot = |error: RecordError| not_resumable(id, error.to_string());
    let past = past(&record, &entry, seen, &card.header.shape).map_err(cannot)?;
    let stop =
        StopMatcher::new(&record.stop).map_err(|error| not_resumable(id, error.to_string()))?;
    let text = AnswerText::new(Arc::clone(&card.tokenizer), stop);
    let tolerance = tolerance(deps, id, &record);
    let machine = Machine::resumed(opening(&record, &card), past, Box::new(text), tolerance);
    let seen_chars = machine.seen_chars();
    let form = record.form.clone().unwrap_or_default();
    let begun = Begun {
        id,
        placement: Placement::none(&record.numerics),
        record,
        records: entry.records.iter().map(|record| record.to_vec()).collect(),
        is_over: entry.outcome.is_some(),
        permit,
    };
    let generation = begin(deps, card, begun, machine);
    // From here on the session runs, which keeps others away as well.
    drop(hold);
    Ok(Resumption {
        form,
        seen_chars,
        generation,
    })
}

/// Bits that nobody can foretell.
fn chance() -> u16 {
    let [a, b, ..] = SessionId::random().bytes();
    u16::from_le_bytes([a, b])
}

/// What the journal knows, checked against the model.
fn past(
    record: &OpeningRecord,
    entry: &JournalEntry,
    seen: u64,
    shape: &ModelShape,
) -> Result<Past, RecordError> {
    let (vocab, context) = (shape.vocab, u64::from(shape.context));
    if record.prompt.iter().any(|token| *token >= vocab) {
        return Err(RecordError::Malformed(
            "the prompt is outside the vocabulary",
        ));
    }
    if record.prompt.len() as u64 + record.max_new > context {
        return Err(RecordError::Malformed("it is longer than the context"));
    }
    if entry.records.len() as u64 > record.max_new {
        return Err(RecordError::Malformed("the answer is too long"));
    }
    let tokens = entry.records.iter().map(|bytes| read_token(bytes, vocab));
    let ended = entry.outcome.as_ref().map(|bytes| read_outcome(bytes));
    let claim = next_claim(entry.claim, chance());
    Ok(Past {
        tokens: tokens.collect::<Result<_, _>>()?,
        ended: ended.transpose()?,
        seen,
        claim: claim.ok_or(RecordError::Malformed("it was taken up too often"))?,
    })
}
