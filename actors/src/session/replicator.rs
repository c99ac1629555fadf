//! The actor's part in replication: a task for each peer that keeps the journal. It sends what the
//! peer lacks, in one request whatever has come together while the one before was under way, and
//! tells the actor what is durable there. The peers are chosen by the machine.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use accel_p2p::wire::{clip, limit};
use accel_p2p::{PeerId, Record, ReplicaReply, ReplicaRequest, SessionId};
use actix::{ActorFutureExt, Addr, AsyncContext, Context, WrapFuture};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::actor::{Happened, SessionActor};
use super::event::Event;
use crate::error::Failure;
use crate::replica::choose::candidates;
use crate::replica::{ReplicaLink, Replicas, strange};

/// How soon a request may follow the one before. Tokens that come faster share requests, and with
/// them flushes: a few cores have better things to do, and nobody reads that fast.
const PACE: Duration = Duration::from_millis(50);
/// How long a replica hears nothing; then it is told that the coordinator lives.
const PULSE: Duration = Duration::from_secs(5);

/// See the module. Dropped, it stops; what is kept stays kept.
pub(super) struct Replicator {
    replicas: Arc<dyn Replicas>,
    session: SessionId,
    opening: Arc<Vec<u8>>,
    log: Arc<Log>,
    tasks: HashMap<PeerId, Task>,
    /// Where the peers that were found have their APIs.
    apis: HashMap<PeerId, SocketAddr>,
}

/// Ends with its handle, unless it was let go.
struct Task(Option<AbortHandle>);

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// What replicas are to have, as it grows.
struct Log {
    entries: Mutex<Entries>,
    grown: watch::Sender<()>,
}

#[derive(Default)]
struct Entries {
    records: Vec<Record>,
    outcome: Option<Vec<u8>>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, change: impl FnOnce(&mut Entries)) {
        change(&mut self.lock());
        self.grown.send_replace(());
    }

    /// What follows after so many records; and the outcome, when nothing does.
    fn behind(&self, sent: usize) -> (Vec<Record>, Option<Vec<u8>>) {
        let entries = self.lock();
        let rest = entries.records.get(sent..).unwrap_or_default();
        let rest: Vec<Record> = rest.iter().take(limit::REPLICA_RECORDS).cloned().collect();
        let outcome = entries.outcome.clone().filter(|_| rest.is_empty());
        (rest, outcome)
    }
}

impl Replicator {
    /// For a session that has these records already.
    pub(super) fn new(
        replicas: Arc<dyn Replicas>,
        session: SessionId,
        opening: Vec<u8>,
        records: Vec<Vec<u8>>,
    ) -> Self {
        let record = |bytes| Record { bytes };
        let entries = Entries {
            records: records.into_iter().map(record).collect(),
            outcome: None,
        };
        let log = Log {
            entries: Mutex::new(entries),
            grown: watch::Sender::new(()),
        };
        Self {
            replicas,
            session,
            opening: Arc::new(opening),
            log: Arc::new(log),
            tasks: HashMap::new(),
            apis: HashMap::new(),
        }
    }

    /// A token is to be kept.
    pub(super) fn push(&self, bytes: Vec<u8>) {
        self.log
            .grow(|entries| entries.records.push(Record { bytes }));
    }

    /// The session ended like this: the replicas are told, also when nobody waits for that.
    pub(super) fn finish(&mut self, outcome: &[u8]) {
        let outcome = clip(&String::from_utf8_lossy(outcome), limit::REPLICA_RECORD);
        let outcome = Some(outcome.into_bytes());
        self.log.grow(|entries| entries.outcome = outcome);
        for task in self.tasks.values_mut() {
            task.0.take();
        }
        self.tasks.clear();
    }

    fn open(&mut self, peer: PeerId, claim: u64, actor: Addr<SessionActor>) {
        let copying = Copying {
            replicas: Arc::clone(&self.replicas),
            session: self.session,
            claim,
            opening: Arc::clone(&self.opening),
            log: Arc::clone(&self.log),
            peer,
            actor,
        };
        let task = actix::spawn(copying.run());
        self.tasks.insert(peer, Task(Some(task.abort_handle())));
    }

    /// Where a peer has its API.
    pub(super) fn api(&self, peer: PeerId) -> Option<SocketAddr> {
        self.apis.get(&peer).copied()
    }
}

impl SessionActor {
    pub(super) fn find_replicas(&mut self, excluding: Vec<PeerId>, context: &mut Context<Self>) {
        let (placer, session) = (self.deps.placer.clone(), self.spec.id);
        let stages: Vec<PeerId> = self.machine.route().map(|(stage, _)| stage.peer).collect();
        let finding = async move { candidates(&placer, session, &stages).await };
        let done = finding.into_actor(self).map(move |found, actor, context| {
            let apis = found.iter();
            let apis = apis.filter_map(|candidate| Some((candidate.peer, candidate.api?)));
            actor.replicator.apis = apis.collect();
            let peers = found.into_iter().map(|candidate| candidate.peer);
            let peers = peers.filter(|peer| !excluding.contains(peer)).collect();
            actor.feed(Event::ReplicasFound { peers }, context);
        });
        context.spawn(done);
    }

    pub(super) fn open_replica(&mut self, peer: PeerId, claim: u64, context: &mut Context<Self>) {
        self.replicator.open(peer, claim, context.address());
    }

    pub(super) fn drop_replica(&mut self, peer: PeerId) {
        self.replicator.tasks.remove(&peer);
        self.deps.telemetry.replica_lost();
    }
}

/// The task for one peer.
struct Copying {
    replicas: Arc<dyn Replicas>,
    session: SessionId,
    claim: u64,
    opening: Arc<Vec<u8>>,
    log: Arc<Log>,
    peer: PeerId,
    actor: Addr<SessionActor>,
}

impl Copying {
    async fn run(self) {
        let Err(failure) = self.copy().await else {
            return;
        };
        let (session, peer) = (self.session, self.peer);
        tracing::info!(%session, %peer, %failure, "a replica is lost");
        self.tell(Event::ReplicaLost { peer, failure }).await;
    }

    async fn tell(&self, event: Event) {
        // An actor that has ended needs no news.
        let _ = self.actor.send(Happened(event)).await;
    }

    async fn tell_durable(&self, tokens: usize) {
        let (peer, tokens) = (self.peer, tokens as u64);
        self.tell(Event::Replicated { peer, tokens }).await;
    }

    /// Copies until the session has ended and the replica knows.
    async fn copy(&self) -> Result<(), Failure> {
        let mut grown = self.log.grown.subscribe();
        let mut link = self.replicas.open(self.peer).await?;
        self.open(link.as_mut()).await?;
        self.tell_durable(0).await;
        // Also what the replica may have of an earlier coordinator: it compares.
        let mut sent = 0;
        loop {
            let (records, outcome) = self.log.behind(sent);
            if let Some(outcome) = outcome {
                durable(link.ask(&ReplicaRequest::Close { outcome }).await?)?;
                return Ok(());
            }
            if records.is_empty() && tokio::time::timeout(PULSE, grown.changed()).await.is_ok() {
                continue;
            }
            let (first, count) = (sent as u64, records.len());
            let next = Instant::now() + PACE;
            durable(link.ask(&ReplicaRequest::Append { first, records }).await?)?;
            sent += count;
            if count > 0 {
                self.tell_durable(sent).await;
            }
            let is_caught_up = count < limit::REPLICA_RECORDS;
            if count > 0 && is_caught_up {
                tokio::time::sleep_until(next).await;
            }
        }
    }

    async fn open(&self, link: &mut dyn ReplicaLink) -> Result<(), Failure> {
        let mut parts = self.opening.chunks(limit::REPLICA_PART);
        let mut request = ReplicaRequest::Open {
            session: self.session,
            claim: self.claim,
            bytes: self.opening.len() as u64,
            part: parts.next().unwrap_or_default().to_vec(),
        };
        loop {
            match (link.ask(&request).await?, parts.next()) {
                (ReplicaReply::More, Some(part)) => {
                    let part = part.to_vec();
                    request = ReplicaRequest::Opening { part };
                }
                (reply, None) => return durable(reply),
                (_, Some(_)) => return Err(strange()),
            }
        }
    }
}

fn durable(reply: ReplicaReply) -> Result<(), Failure> {
    match reply {
        ReplicaReply::Durable { .. } => Ok(()),
        _ => Err(strange()),
    }
}
