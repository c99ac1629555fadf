//! A session as pages for whoever asks for it.

use accel_p2p::wire::limit;
use accel_p2p::{Record, ReplicaReply};
use accel_storage::{Damage, JournalEntry};
use bytes::Bytes;

use crate::session::record::OpeningRecord;

/// Whether others may have it: those who asked for `high` wanted it on other nodes, and what was handed
/// over or taken up has to be found. What never left its node is told to nobody.
pub(super) fn may_leave(entry: &JournalEntry) -> bool {
    let is_whole = entry.damage != Some(Damage::Claim);
    let record = OpeningRecord::read(&entry.opening);
    let has_moved = entry.is_kept || entry.claim > 0;
    let may_leave = |record: OpeningRecord| match has_moved {
        true => record.is_resumable(),
        false => record.is_replicated(),
    };
    is_whole && record.is_ok_and(may_leave)
}

/// The page that begins at this byte of the opening record and at this record.
pub(super) fn page(entry: &JournalEntry, opening_from: u64, from: u64) -> ReplicaReply {
    let opening = rest(&entry.opening, opening_from);
    let part = opening.get(..limit::REPLICA_PART).unwrap_or(opening);
    let records = rest(&entry.records, from).iter();
    let outcome = entry.outcome.as_ref();
    ReplicaReply::Page {
        claim: entry.claim,
        bytes: entry.opening.len() as u64,
        part: part.to_vec(),
        total: entry.records.len() as u64,
        records: records.take(limit::REPLICA_RECORDS).map(record).collect(),
        outcome: outcome
            .filter(|outcome| outcome.len() <= limit::REPLICA_RECORD)
            .map(record),
    }
}

fn rest<T>(all: &[T], from: u64) -> &[T] {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    all.get(from..).unwrap_or_default()
}

fn record(bytes: &Bytes) -> Record {
    let bytes = bytes.to_vec();
    Record { bytes }
}
