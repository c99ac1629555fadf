//! Records on disk, and reading sessions back.
//!
//! Key: session (16 bytes), kind (1 byte), and for a record its index (8 bytes, big-endian).
//! Value: version (1 byte), time (8 bytes, little-endian, milliseconds since 1970), checksum
//! (16 bytes: BLAKE3 over key, version, time and content), content. The key is in the checksum, so
//! that a record cannot pass for another.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sled::Tree;

use super::{Damage, JournalEntry, SessionKey, SessionSummary};
use crate::error::{JournalError, Result, StorageError};

const VERSION: u8 = 1;
const CHECKSUM: usize = 16;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Opening,
    Record(u64),
    Outcome,
    Claim,
    /// There when this node only keeps the session, for a coordinator elsewhere.
    Kept,
}

impl Kind {
    fn tag(self) -> u8 {
        match self {
            Kind::Opening => 0,
            Kind::Record(_) => 1,
            Kind::Outcome => 2,
            Kind::Claim => 3,
            Kind::Kept => 4,
        }
    }
}

/// A record read back.
struct Stored {
    unix_ms: u64,
    content: Bytes,
}

pub(super) fn key(session: &SessionKey, kind: Kind) -> Vec<u8> {
    let mut key = Vec::with_capacity(25);
    key.extend_from_slice(session);
    key.push(kind.tag());
    if let Kind::Record(index) = kind {
        key.extend_from_slice(&index.to_be_bytes());
    }
    key
}

/// The value for a key, stamped with the present time.
pub(super) fn encode(key: &[u8], content: &[u8]) -> Vec<u8> {
    let unix_ms = unix_ms();
    let mut value = Vec::with_capacity(1 + 8 + CHECKSUM + content.len());
    value.push(VERSION);
    value.extend_from_slice(&unix_ms.to_le_bytes());
    value.extend_from_slice(&checksum(key, unix_ms, content));
    value.extend_from_slice(content);
    value
}

fn decode(key: &[u8], value: &[u8]) -> Result<Stored, &'static str> {
    let (version, rest) = value.split_first().ok_or("empty")?;
    if *version != VERSION {
        return Err("written by another version");
    }
    let (unix_ms, rest) = rest.split_first_chunk::<8>().ok_or("cut short")?;
    let (sum, content) = rest.split_first_chunk::<CHECKSUM>().ok_or("cut short")?;
    let unix_ms = u64::from_le_bytes(*unix_ms);
    if *sum != checksum(key, unix_ms, content) {
        return Err("its checksum is wrong");
    }
    Ok(Stored {
        unix_ms,
        content: Bytes::copy_from_slice(content),
    })
}

/// The content of one value, if it is intact.
pub(super) fn content(key: &[u8], value: &[u8]) -> Option<Bytes> {
    decode(key, value).ok().map(|stored| stored.content)
}

/// Reads a session up to the first record that is missing or damaged.
pub(super) fn load(tree: &Tree, session: SessionKey) -> Result<Option<JournalEntry>> {
    let Some(opening) = load_opening(tree, &session)? else {
        return Ok(None);
    };
    let mut entry = JournalEntry {
        opening,
        records: Vec::new(),
        claim: 0,
        is_kept: is_kept(tree, &session)?,
        outcome: None,
        damage: None,
    };
    match load_claim(tree, &session)? {
        Some(claim) => entry.claim = claim,
        None => entry.damage = Some(Damage::Claim),
    }
    let mut prefix = session.to_vec();
    prefix.push(Kind::Record(0).tag());
    for item in tree.scan_prefix(&prefix) {
        let (stored_key, value) = item?;
        let next = entry.records.len() as u64;
        let expected = key(&session, Kind::Record(next));
        let intact = content(&expected, &value).filter(|_| stored_key == expected);
        let Some(record) = intact else {
            entry.damage.get_or_insert(Damage::Records { from: next });
            return Ok(Some(entry));
        };
        entry.records.push(record);
    }
    let outcome_key = key(&session, Kind::Outcome);
    if let Some(value) = tree.get(&outcome_key)? {
        entry.outcome = content(&outcome_key, &value);
        if entry.outcome.is_none() {
            entry.damage.get_or_insert(Damage::Outcome);
        }
    }
    Ok(Some(entry))
}

fn is_kept(tree: &Tree, session: &SessionKey) -> Result<bool> {
    Ok(tree.contains_key(key(session, Kind::Kept))?)
}

/// The newest claim; none when it is damaged.
fn load_claim(tree: &Tree, session: &SessionKey) -> Result<Option<u64>> {
    let key = key(session, Kind::Claim);
    let Some(value) = tree.get(&key)? else {
        return Ok(Some(0));
    };
    let content = content(&key, &value);
    let bytes = content.and_then(|content| content.first_chunk::<8>().copied());
    Ok(bytes.map(u64::from_le_bytes))
}

fn load_opening(tree: &Tree, session: &SessionKey) -> Result<Option<Bytes>> {
    let damaged = |why: &str| StorageError::Journal {
        session: *session,
        source: JournalError::Damaged(why.to_owned()),
    };
    let key = key(session, Kind::Opening);
    match tree.get(&key)? {
        Some(value) => {
            let stored = decode(&key, &value).map_err(damaged)?;
            Ok(Some(stored.content))
        }
        None if tree.scan_prefix(session).next().is_some() => Err(damaged("it is missing")),
        None => Ok(None),
    }
}

/// Lists sessions, jumping over their records.
pub(super) fn sessions(tree: &Tree) -> Result<Vec<SessionSummary>> {
    let mut sessions = Vec::new();
    let mut from = Some([0; 16]);
    while let Some(start) = from {
        let Some(item) = tree.range(start..).next() else {
            break;
        };
        let (stored_key, _) = item?;
        let Some(session) = stored_key.first_chunk::<16>() else {
            return Err(StorageError::Damaged {
                what: "a journal key",
                detail: format!("{stored_key:?}"),
            });
        };
        sessions.push(summarise(tree, session)?);
        from = u128::from_be_bytes(*session)
            .checked_add(1)
            .map(u128::to_be_bytes);
    }
    Ok(sessions)
}

/// One session of the list.
pub(super) fn summary(tree: &Tree, session: SessionKey) -> Result<Option<SessionSummary>> {
    match tree.scan_prefix(session).next() {
        Some(first) => {
            first?;
            summarise(tree, &session).map(Some)
        }
        None => Ok(None),
    }
}

fn summarise(tree: &Tree, session: &SessionKey) -> Result<SessionSummary> {
    let opened = stamp(tree, &key(session, Kind::Opening))?;
    let claimed = stamp(tree, &key(session, Kind::Claim))?;
    let written = opened.max(claimed).max(newest_record(tree, session)?);
    Ok(SessionSummary {
        key: *session,
        opened_unix_ms: opened.unwrap_or(0),
        touched_unix_ms: written.unwrap_or(0),
        closed_unix_ms: stamp(tree, &key(session, Kind::Outcome))?,
        is_kept: is_kept(tree, session)?,
    })
}

/// When the last record was written.
fn newest_record(tree: &Tree, session: &SessionKey) -> Result<Option<u64>> {
    let first = key(session, Kind::Record(0));
    let last = key(session, Kind::Record(u64::MAX));
    match tree.range(first..=last).next_back() {
        Some(item) => stamp(tree, &item?.0),
        None => Ok(None),
    }
}

fn stamp(tree: &Tree, key: &[u8]) -> Result<Option<u64>> {
    let Some(value) = tree.get(key)? else {
        return Ok(None);
    };
    Ok(decode(key, &value).ok().map(|stored| stored.unix_ms))
}

fn checksum(key: &[u8], unix_ms: u64, content: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key);
    hasher.update(&[VERSION]);
    hasher.update(&unix_ms.to_le_bytes());
    hasher.update(content);
    let mut sum = [0; CHECKSUM];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |elapsed| {
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    })
}
