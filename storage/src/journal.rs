//! The journal of sessions.

use bytes::Bytes;

use crate::error::Result;

/// Names a session.
pub type SessionKey = [u8; 16];

/// Journal of sessions. Cheap to clone.
#[derive(Clone)]
pub struct Journal {}

/// What the journal holds of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// The opening record.
    pub opening: Bytes,
    /// The records, numbered from 0 without gaps.
    pub records: Vec<Bytes>,
    /// How it ended, if it did.
    pub outcome: Option<Bytes>,
    /// Set when records after the last one here were lost or damaged.
    pub damage: Option<String>,
}

/// One session in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    /// Which.
    pub key: SessionKey,
    /// When it was opened, in milliseconds since 1970.
    pub opened_unix_ms: u64,
    /// When its outcome was written, if it was.
    pub closed_unix_ms: Option<u64>,
}

impl Journal {
    /// Opens a session; resolves when durable.
    pub async fn open(&self, _session: SessionKey, _opening: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Appends a record; resolves when durable.
    pub async fn append(&self, _session: SessionKey, _index: u64, _record: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Ends a session; resolves when durable.
    pub async fn close(&self, _session: SessionKey, _outcome: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// What is known of a session.
    pub fn load(&self, _session: SessionKey) -> Result<Option<JournalEntry>> {
        unimplemented!()
    }

    /// Every session.
    pub fn sessions(&self) -> Result<Vec<SessionSummary>> {
        unimplemented!()
    }

    /// Forgets the oldest closed sessions, all but `keep`; returns how many.
    pub async fn prune(&self, _keep: usize) -> Result<usize> {
        unimplemented!()
    }
}
