//! The one thread that writes the journal: it takes all requests that wait, checks each, writes
//! them in one atomic batch, flushes once, and only then answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use sled::{Batch, Tree};
use tokio::sync::{mpsc, oneshot};

use super::record::{self, Kind};
use super::{Counters, Damage, SessionKey, Writer};
use crate::durable::{Durable, RESERVE};
use crate::error::{JournalError, Result, StorageError};

/// Requests in one batch.
const GROUP: usize = 256;
/// Sessions whose position is remembered; others are read from the tree again.
const REMEMBERED: usize = 4096;

/// What is asked of the thread.
pub(super) enum Operation {
    Open(Bytes),
    Keep(u64, Bytes),
    Append(Option<Writer>, u64, Vec<Bytes>),
    Claim(u64),
    Close(Option<Writer>, Bytes),
    Forget,
    Prune(usize),
}

/// A request and where its answer goes: how many sessions were removed, 0 but for `Prune`.
pub(super) struct Request {
    pub session: SessionKey,
    pub operation: Operation,
    pub reply: oneshot::Sender<Result<usize, JournalError>>,
}

#[derive(Debug, Clone, Copy)]
struct Position {
    next: u64,
    claim: u64,
    kept: bool,
    closed: bool,
}

impl Position {
    /// Refuses whoever does not write the session any more.
    fn check(&self, writer: Option<Writer>) -> Result<(), JournalError> {
        let newest = self.claim;
        let is_it = |writer: Writer| writer.claim == newest && writer.is_keeper == self.kept;
        match writer.is_none_or(is_it) {
            true => Ok(()),
            false => Err(JournalError::Claimed { newest }),
        }
    }
}

/// See the [module](self).
pub(super) struct Committer {
    tree: Tree,
    durable: Durable,
    counters: Arc<Counters>,
    positions: HashMap<SessionKey, Position>,
    // Changes of the present batch; `None` removes.
    staged: HashMap<Vec<u8>, Option<Vec<u8>>>,
    // What must be free on the disk.
    reserve: u64,
    // After a failed write nobody knows what is on the disk: a later sync may succeed without it.
    failed: Option<String>,
}

impl Committer {
    pub(super) fn new(tree: Tree, durable: Durable, counters: Arc<Counters>) -> Self {
        Self {
            tree,
            durable,
            counters,
            positions: HashMap::new(),
            staged: HashMap::new(),
            reserve: RESERVE,
            failed: None,
        }
    }

    /// Runs until every sender is gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut group = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            group.push(first);
            while is_open(&group)
                && let Ok(more) = queue.try_recv()
            {
                group.push(more);
            }
            self.commit(&mut group);
        }
    }

    fn commit(&mut self, group: &mut Vec<Request>) {
        if self.positions.len() > REMEMBERED {
            self.positions.clear();
        }
        let obstacle = self.obstacle();
        let mut answers = Vec::with_capacity(group.len());
        for request in group.drain(..) {
            let answer = match &obstacle {
                None => self.stage(&request.session, request.operation),
                Some(error) => Err(error.clone()),
            };
            answers.push((request.reply, answer));
        }
        if let Err(error) = self.write() {
            tracing::error!(%error, "the journal cannot be written");
            self.failed = Some(error.to_string());
        }
        for (reply, answer) in answers {
            let answer = match &self.failed {
                None => answer,
                Some(error) => Err(JournalError::NotWritten(error.clone())),
            };
            // Whoever asked may have gone; what was written stays written.
            let _ = reply.send(answer);
        }
    }

    /// Why nothing can be written now.
    fn obstacle(&self) -> Option<JournalError> {
        if let Some(error) = &self.failed {
            return Some(JournalError::NotWritten(error.clone()));
        }
        let full = self.durable.check_room(self.reserve).err()?;
        Some(JournalError::NoRoom(full.to_string()))
    }

    fn write(&mut self) -> Result<()> {
        if self.staged.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        let mut writes = 0;
        for (key, value) in self.staged.drain() {
            match value {
                Some(value) => {
                    batch.insert(key, value);
                    writes += 1;
                }
                None => batch.remove(key),
            }
        }
        let applied = self.tree.apply_batch(batch).map_err(StorageError::from);
        applied.and_then(|()| self.durable.flush(&self.tree))?;
        self.counters.writes.fetch_add(writes, Ordering::Relaxed);
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn stage(&mut self, session: &SessionKey, operation: Operation) -> Result<usize, JournalError> {
        match operation {
            Operation::Open(opening) => self.open(session, &opening)?,
            Operation::Keep(claim, opening) => self.keep(session, claim, &opening)?,
            Operation::Append(writer, first, records) => {
                self.append_all(session, writer, first, &records)?;
            }
            Operation::Claim(claim) => self.claim(session, claim)?,
            Operation::Close(writer, outcome) => self.close(session, writer, &outcome)?,
            Operation::Forget => self.forget(session)?,
            Operation::Prune(keep) => return self.prune(keep),
        }
        Ok(0)
    }

    fn open(&mut self, session: &SessionKey, opening: &[u8]) -> Result<(), JournalError> {
        if self.position(session)?.is_none() {
            self.put(session, Kind::Opening, opening);
            let position = Position {
                next: 0,
                claim: 0,
                kept: false,
                closed: false,
            };
            self.positions.insert(*session, position);
            return Ok(());
        }
        if self.holds(session, Kind::Opening, opening)? {
            return Ok(());
        }
        Err(JournalError::AlreadyOpen)
    }

    fn keep(
        &mut self,
        session: &SessionKey,
        claim: u64,
        opening: &[u8],
    ) -> Result<(), JournalError> {
        let before = self.position(session)?;
        self.open(session, opening)?;
        let position = self.position(session)?.ok_or(JournalError::Unknown)?;
        // The same coordinator may come again; its own node's session it cannot make a copy.
        let is_newer = before.is_none() || claim > position.claim;
        let is_the_keepers = position.kept && claim == position.claim;
        if !(is_newer || is_the_keepers) {
            let newest = position.claim;
            return Err(JournalError::Claimed { newest });
        }
        if position.closed {
            if !is_newer {
                return Err(JournalError::Closed);
            }
            // It ended for a coordinator before: the newer one goes on.
            self.staged
                .insert(record::key(session, Kind::Outcome), None);
        }
        self.put(session, Kind::Claim, &claim.to_le_bytes());
        self.put(session, Kind::Kept, &[]);
        let kept = Position {
            claim,
            kept: true,
            closed: false,
            ..position
        };
        self.positions.insert(*session, kept);
        Ok(())
    }

    fn append_all(
        &mut self,
        session: &SessionKey,
        writer: Option<Writer>,
        first: u64,
        records: &[Bytes],
    ) -> Result<(), JournalError> {
        let position = self.position(session)?.ok_or(JournalError::Unknown)?;
        position.check(writer)?;
        for (index, record) in (first..).zip(records) {
            self.append(session, index, record)?;
        }
        Ok(())
    }

    fn append(
        &mut self,
        session: &SessionKey,
        index: u64,
        content: &[u8],
    ) -> Result<(), JournalError> {
        let position = self.position(session)?.ok_or(JournalError::Unknown)?;
        if index < position.next {
            if self.holds(session, Kind::Record(index), content)? {
                return Ok(());
            }
            return Err(JournalError::Conflict { index });
        }
        if position.closed {
            return Err(JournalError::Closed);
        }
        if index > position.next {
            return Err(JournalError::Gap {
                expected: position.next,
                got: index,
            });
        }
        self.put(session, Kind::Record(index), content);
        let next = index + 1;
        self.positions
            .insert(*session, Position { next, ..position });
        Ok(())
    }

    fn claim(&mut self, session: &SessionKey, claim: u64) -> Result<(), JournalError> {
        let position = self.position(session)?.ok_or(JournalError::Unknown)?;
        if position.closed {
            return Err(JournalError::Closed);
        }
        if claim <= position.claim {
            let newest = position.claim;
            return Err(JournalError::Claimed { newest });
        }
        self.put(session, Kind::Claim, &claim.to_le_bytes());
        if position.kept {
            let marker = record::key(session, Kind::Kept);
            self.staged.insert(marker, None);
        }
        let claimed = Position {
            claim,
            kept: false,
            ..position
        };
        self.positions.insert(*session, claimed);
        Ok(())
    }

    fn close(
        &mut self,
        session: &SessionKey,
        writer: Option<Writer>,
        outcome: &[u8],
    ) -> Result<(), JournalError> {
        let position = self.position(session)?.ok_or(JournalError::Unknown)?;
        position.check(writer)?;
        if position.closed {
            if self.holds(session, Kind::Outcome, outcome)? {
                return Ok(());
            }
            return Err(JournalError::Closed);
        }
        self.put(session, Kind::Outcome, outcome);
        let closed = Position {
            closed: true,
            ..position
        };
        self.positions.insert(*session, closed);
        Ok(())
    }

    /// Looks at what earlier batches wrote; a session closed in this one is not pruned.
    fn prune(&mut self, keep: usize) -> Result<usize, JournalError> {
        let mut closed: Vec<_> = record::sessions(&self.tree)
            .map_err(unreadable)?
            .into_iter()
            .filter_map(|session| Some((session.closed_unix_ms?, session.key)))
            .collect();
        closed.sort_unstable();
        let surplus = closed.len().saturating_sub(keep);
        for (_, session) in closed.iter().take(surplus) {
            self.remove(session)?;
        }
        Ok(surplus)
    }

    fn forget(&mut self, session: &SessionKey) -> Result<(), JournalError> {
        match self.position(session)? {
            Some(position) if position.kept => self.remove(session),
            Some(Position { claim, .. }) => Err(JournalError::Claimed { newest: claim }),
            None => Ok(()),
        }
    }

    fn remove(&mut self, session: &SessionKey) -> Result<(), JournalError> {
        self.positions.remove(session);
        self.staged.retain(|key, _| !key.starts_with(session));
        for key in self.tree.scan_prefix(session).keys() {
            let key = key.map_err(|error| unreadable(error.into()))?;
            self.staged.insert(key.to_vec(), None);
        }
        Ok(())
    }

    /// Where a session stands; `None` when it was never opened.
    fn position(&mut self, session: &SessionKey) -> Result<Option<Position>, JournalError> {
        if let Some(position) = self.positions.get(session) {
            return Ok(Some(*position));
        }
        let Some(entry) = record::load(&self.tree, *session).map_err(unreadable)? else {
            return Ok(None);
        };
        let next = entry.records.len() as u64;
        if entry.damage == Some(Damage::Claim) {
            return Err(JournalError::Damaged("its claim is lost".to_owned()));
        }
        if let Some(Damage::Records { from }) = entry.damage {
            self.cut(session, from)?;
        }
        let position = Position {
            next,
            claim: entry.claim,
            kept: entry.is_kept,
            closed: entry.outcome.is_some(),
        };
        self.positions.insert(*session, position);
        Ok(Some(position))
    }

    /// Removes a damaged tail, so that what is written next is not followed by remains.
    fn cut(&mut self, session: &SessionKey, from: u64) -> Result<(), JournalError> {
        let first = record::key(session, Kind::Record(from));
        let last = record::key(session, Kind::Record(u64::MAX));
        for key in self.tree.range(first..=last).keys() {
            let key = key.map_err(|error| unreadable(error.into()))?;
            self.staged.insert(key.to_vec(), None);
        }
        Ok(())
    }

    /// Whether exactly this content is recorded already.
    fn holds(
        &self,
        session: &SessionKey,
        kind: Kind,
        content: &[u8],
    ) -> Result<bool, JournalError> {
        let key = record::key(session, kind);
        let recorded = match self.staged.get(&key) {
            Some(Some(value)) => record::content(&key, value),
            Some(None) => None,
            None => {
                let value = self.tree.get(&key);
                let value = value.map_err(|error| unreadable(error.into()))?;
                value.and_then(|value| record::content(&key, &value))
            }
        };
        Ok(recorded.is_some_and(|recorded| recorded == content))
    }

    fn put(&mut self, session: &SessionKey, kind: Kind, content: &[u8]) {
        let key = record::key(session, kind);
        let value = record::encode(&key, content);
        self.staged.insert(key, Some(value));
    }
}

/// Whether more may join the group. What removes comes last: it looks at what is in the tree, and
/// what follows must find that removed.
fn is_open(group: &[Request]) -> bool {
    let removes =
        |request: &Request| matches!(request.operation, Operation::Prune(_) | Operation::Forget);
    group.len() < GROUP && !group.last().is_some_and(removes)
}

fn unreadable(error: StorageError) -> JournalError {
    match error {
        StorageError::Journal { source, .. } => source,
        other => JournalError::NotWritten(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has a session opened, and gives the answer.
    fn open(committer: &mut Committer, session: SessionKey) -> Result<usize, JournalError> {
        let (reply, mut answer) = oneshot::channel();
        let request = Request {
            session,
            operation: Operation::Open(Bytes::from_static(b"opening")),
            reply,
        };
        committer.commit(&mut vec![request]);
        answer.try_recv().unwrap()
    }

    #[test]
    fn a_full_disk_is_an_error_until_there_is_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::open(dir.path()).unwrap();
        let durable = Durable::new(dir.path().to_owned()).unwrap();
        let tree = db.open_tree("journal").unwrap();
        let mut committer = Committer::new(tree, durable, Arc::default());
        assert_eq!(open(&mut committer, [1; 16]), Ok(0));
        committer.reserve = u64::MAX;
        let refused = open(&mut committer, [2; 16]);
        assert!(
            matches!(refused, Err(JournalError::NoRoom(_))),
            "{refused:?}"
        );
        committer.reserve = RESERVE;
        assert_eq!(open(&mut committer, [2; 16]), Ok(0));
    }
}
