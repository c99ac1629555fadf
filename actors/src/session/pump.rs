//! The tasks around a session's actor: each takes one kind of work in order, so that the actor
//! itself never waits. Queues are longer than what the machine lets be under way.

use std::time::Duration;

use accel_p2p::wire::{PeerEndpoint, SessionId, TensorFrame};
use accel_storage::{Journal, JournalError, StorageError, Writer};
use actix::Addr;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::actor::{Happened, SessionActor};
use super::event::Event;
use super::link::Link;
use crate::error::{ErrorKind, Failure};
use crate::request::GenEvent;

const QUEUE: usize = 64;

/// What is written to the journal.
pub(super) enum JournalItem {
    Open(Vec<u8>),
    Claim(u64),
    Token {
        index: u64,
        record: Vec<u8>,
    },
    Close(Vec<u8>),
    /// What was opened like this is kept for others from now on.
    Keep(Vec<u8>),
}

/// Tells the actor; one that has ended needs no news.
async fn tell(actor: &Addr<SessionActor>, event: Event) {
    let _ = actor.send(Happened(event)).await;
}

/// For a lane beside the first, which has the journal: everything is written at once.
pub(super) fn to_nowhere(actor: Addr<SessionActor>) -> mpsc::Sender<JournalItem> {
    let (queue, mut items) = mpsc::channel(QUEUE);
    actix::spawn(async move {
        while let Some(item) = items.recv().await {
            match item {
                JournalItem::Open(_) | JournalItem::Claim(_) => tell(&actor, Event::Opened).await,
                JournalItem::Token { index, .. } => tell(&actor, Event::Journaled { index }).await,
                JournalItem::Close(_) | JournalItem::Keep(_) => {}
            }
        }
    });
    queue
}

/// Writes to the journal, in order, and tells the actor what is durable.
pub(super) fn to_journal(
    journal: Journal,
    session: SessionId,
    actor: Addr<SessionActor>,
) -> mpsc::Sender<JournalItem> {
    let (queue, mut items) = mpsc::channel(QUEUE);
    actix::spawn(async move {
        let mut writer = Writer {
            claim: 0,
            is_keeper: false,
        };
        while let Some(item) = items.recv().await {
            if let JournalItem::Claim(claim) = &item {
                writer.claim = *claim;
            }
            match write(&journal, session, writer, item).await {
                Ok(Some(event)) => tell(&actor, event).await,
                Ok(None) => {}
                Err(error) => tell(&actor, refused(&error)).await,
            }
        }
    });
    queue
}

async fn write(
    journal: &Journal,
    session: SessionId,
    writer: Writer,
    item: JournalItem,
) -> Result<Option<Event>, StorageError> {
    let key = session.bytes();
    match item {
        JournalItem::Open(opening) => {
            journal.open(key, &opening).await?;
            Ok(Some(Event::Opened))
        }
        JournalItem::Claim(claim) => {
            journal.claim(key, claim).await?;
            Ok(Some(Event::Opened))
        }
        JournalItem::Token { index, record } => {
            let records = vec![Bytes::from(record)];
            journal.append_as(key, writer, index, records).await?;
            Ok(Some(Event::Journaled { index }))
        }
        JournalItem::Close(outcome) => {
            journal.close_as(key, writer, &outcome).await?;
            Ok(None)
        }
        JournalItem::Keep(opening) => {
            // A claim of nobody, between this coordinator's and the next one's.
            journal.keep(key, writer.claim + 1, &opening).await?;
            Ok(None)
        }
    }
}

/// A coordinator elsewhere may have gone on with the session meanwhile, and have it kept here.
fn refused(error: &StorageError) -> Event {
    match error {
        StorageError::Journal {
            source: JournalError::Claimed { .. },
            ..
        } => Event::Deposed,
        _ => Event::JournalFailed(not_written(error)),
    }
}

fn not_written(error: &StorageError) -> Failure {
    Failure::new(
        ErrorKind::Internal,
        "journal",
        format!("the answer cannot be journaled: {error}"),
        "check the data directory and the space on its disk",
    )
}

/// Gives the answer to the client and tells the actor what was taken, or that nobody is there.
/// When the actor fails, so that no outcome comes, the client is told so.
pub(super) fn to_client(
    events: mpsc::Sender<GenEvent>,
    actor: Addr<SessionActor>,
    patience: Duration,
) -> mpsc::Sender<GenEvent> {
    let (queue, mut items) = mpsc::channel::<GenEvent>(QUEUE);
    actix::spawn(async move {
        loop {
            let item = tokio::select! {
                item = items.recv() => item,
                () = events.closed() => return tell(&actor, Event::Cancel).await,
            };
            let item = item.unwrap_or_else(interrupted);
            let index = match &item {
                GenEvent::Token { index, .. } => Some(*index),
                GenEvent::Done { .. } | GenEvent::Failed { .. } => None,
            };
            if events.send_timeout(item, patience).await.is_err() {
                return tell(&actor, Event::Cancel).await;
            }
            match index {
                Some(index) => tell(&actor, Event::Emitted { index }).await,
                None => return,
            }
        }
    });
    queue
}

fn interrupted() -> GenEvent {
    let Failure {
        kind,
        code,
        message,
        hint,
    } = Failure::internal("the session failed");
    GenEvent::Failed {
        kind,
        code,
        message,
        hint,
        replicas: Vec::new(),
    }
}

/// Sends steps to a stage of one epoch, in order.
pub(super) fn to_stage(
    link: Link,
    endpoint: PeerEndpoint,
    epoch: u64,
    actor: Addr<SessionActor>,
) -> StageWay {
    let (queue, mut frames) = mpsc::channel(QUEUE);
    let task = actix::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if let Err(failure) = link.step(&endpoint, frame).await {
                let peer = endpoint.peer;
                let unreachable = Event::Unreachable {
                    epoch,
                    peer,
                    failure,
                };
                return tell(&actor, unreachable).await;
            }
        }
    });
    StageWay {
        queue,
        task: task.abort_handle(),
    }
}

/// The way to a stage of an epoch. Once it is dropped nothing more goes there, also of
/// what waits.
pub(super) struct StageWay {
    queue: mpsc::Sender<TensorFrame>,
    task: AbortHandle,
}

impl StageWay {
    /// Sends a step behind those before it; false when that cannot be.
    pub(super) fn send(&self, frame: TensorFrame) -> bool {
        self.queue.try_send(frame).is_ok()
    }
}

impl Drop for StageWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
