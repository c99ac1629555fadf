//! Finding a session at the peers, for a client that comes to a node that does not have it, or not
//! all of it. What peers say is checked for its form here and for its content where the session is
//! gone on with; of what several say, the longest answer of the newest coordinator counts.

use std::time::Duration;

use accel_p2p::{Record, ReplicaReply, ReplicaRequest, SessionId, wire::limit};
use accel_storage::{Journal, JournalEntry, StorageError, Writer};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::{ReplicaLink, Replicas, strange};
use crate::error::Failure;

/// How long it is asked around.
const ASK: Duration = Duration::from_secs(3);
/// Peers that are asked at once.
const ASKED: usize = 32;
/// Pages of one session, at most: those of the longest answer with room to spare.
const PAGES: usize = 1 << 14;

// Boxed, because an error as large as these would make every result large.
type Stored<T> = Result<T, Box<StorageError>>;

/// What a peer has of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) claim: u64,
    pub(crate) opening: Vec<u8>,
    pub(crate) records: Vec<Bytes>,
    pub(crate) outcome: Option<Bytes>,
}

/// What the peers have of a session; none when none of them says anything within a short time.
pub(crate) async fn gather(replicas: &dyn Replicas, session: SessionId) -> Option<Copy> {
    let peers = replicas.connected().into_iter().take(ASKED);
    let mut asked: FuturesUnordered<_> = peers
        .map(|peer| async move {
            let mut link = replicas.open(peer).await?;
            read(link.as_mut(), session).await
        })
        .collect();
    let mut copies = Vec::new();
    let gathering = async {
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(copy) => copies.extend(copy),
                Err(failure) => tracing::debug!(%session, %failure, "a peer did not answer"),
            }
        }
    };
    if tokio::time::timeout(ASK, gathering).await.is_err() {
        tracing::debug!(%session, "not every peer answered in time");
    }
    merge(copies)
}

/// Reads a session page by page.
async fn read(link: &mut dyn ReplicaLink, session: SessionId) -> Result<Option<Copy>, Failure> {
    let mut copy = Copy {
        claim: 0,
        opening: Vec::new(),
        records: Vec::new(),
        outcome: None,
    };
    for _ in 0..PAGES {
        let request = ReplicaRequest::Fetch {
            session,
            opening_from: copy.opening.len() as u64,
            from: copy.records.len() as u64,
        };
        let ReplicaReply::Page {
            claim,
            bytes,
            part,
            total,
            records,
            outcome,
        } = link.ask(&request).await?
        else {
            return Ok(None);
        };
        let is_empty = part.is_empty() && records.is_empty();
        copy.claim = claim;
        copy.opening.extend(part);
        copy.records.extend(records.into_iter().map(content));
        copy.outcome = outcome.map(content);
        if copy.opening.len() as u64 > limit::REPLICA_OPENING {
            return Err(strange());
        }
        let is_whole = copy.opening.len() as u64 == bytes && copy.records.len() as u64 == total;
        if is_whole || is_empty {
            return is_whole.then_some(Some(copy)).ok_or_else(strange);
        }
    }
    Err(strange())
}

fn content(record: Record) -> Bytes {
    Bytes::from(record.bytes)
}

/// One of several copies of one session. Whoever has fewer records lacks some that others have, or
/// the outcome is not that of the whole.
fn merge(copies: Vec<Copy>) -> Option<Copy> {
    let claim = copies.iter().map(|copy| copy.claim).max()?;
    let newest = |copy: &&Copy| copy.claim == claim;
    let newest = copies.iter().filter(newest);
    let best = newest.max_by_key(|copy| (copy.records.len(), copy.outcome.is_some()))?;
    let same = copies.iter().filter(|copy| copy.opening == best.opening);
    let longest = same.max_by_key(|copy| copy.records.len())?;
    let is_whole = longest.records.len() == best.records.len();
    Some(Copy {
        claim,
        opening: best.opening.clone(),
        records: longest.records.clone(),
        outcome: best.outcome.clone().filter(|_| is_whole),
    })
}

/// Takes into the journal what it lacks of a session; the claim of whoever goes on with it follows.
pub(crate) async fn adopt(
    journal: &Journal,
    session: SessionId,
    local: Option<&JournalEntry>,
    copy: Copy,
) -> Stored<()> {
    let key = session.bytes();
    let writer = match local.filter(|local| local.claim >= copy.claim) {
        Some(local) => Writer {
            claim: local.claim,
            is_keeper: local.is_kept,
        },
        None => {
            journal.keep(key, copy.claim, &copy.opening).await?;
            Writer {
                claim: copy.claim,
                is_keeper: true,
            }
        }
    };
    let have = local.map_or(0, |local| local.records.len());
    if let Some(lacking) = copy
        .records
        .get(have..)
        .filter(|lacking| !lacking.is_empty())
    {
        let first = have as u64;
        journal
            .append_as(key, writer, first, lacking.to_vec())
            .await?;
    }
    if let Some(outcome) = copy.outcome {
        journal.close_as(key, writer, &outcome).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(claim: u64, records: usize, outcome: bool) -> Copy {
        let record = |index: usize| Bytes::from(index.to_string());
        Copy {
            claim,
            opening: b"opening".to_vec(),
            records: (0..records).map(record).collect(),
            outcome: outcome.then(|| Bytes::from_static(b"done: stop")),
        }
    }

    #[test]
    fn of_several_copies_the_newest_claim_and_the_longest_answer_count() {
        let told = |copies: &[Copy]| {
            let merged = merge(copies.to_vec())?;
            Some((merged.claim, merged.records.len(), merged.outcome.is_some()))
        };
        assert_eq!(told(&[]), None);
        let cases = [
            (vec![copy(0, 3, false), copy(0, 5, false)], (0, 5, false)),
            (vec![copy(2, 3, false), copy(0, 5, false)], (2, 5, false)),
            (vec![copy(0, 3, true), copy(0, 5, false)], (0, 5, false)),
            (vec![copy(0, 5, true), copy(0, 5, false)], (0, 5, true)),
            (vec![copy(0, 9, true), copy(7, 9, false)], (7, 9, false)),
        ];
        for (copies, expected) in cases {
            assert_eq!(told(&copies), Some(expected), "{copies:?}");
        }
        let stranger = Copy {
            opening: b"another".to_vec(),
            ..copy(0, 9, false)
        };
        assert_eq!(told(&[copy(1, 2, false), stranger]), Some((1, 2, false)));
    }
}
