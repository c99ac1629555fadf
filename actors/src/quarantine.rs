//! Peers that lied: they compute nothing more for this node, until a person lifts it. What proves it
//! is kept, too. Both are on the disk.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use accel_p2p::{PeerId, unix_ms};
use accel_storage::{RecordKind, Records, StorageError};
use serde::{Deserialize, Serialize};

use crate::evidence::Evidence;

/// Pieces of evidence that are kept; the oldest make room.
const MOST_EVIDENCE: usize = 128;

// Boxed, because an error as large as this would make every result large.
type Stored<T> = Result<T, Box<StorageError>>;

/// Why a peer is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sentence {
    /// The evidence.
    pub(crate) evidence: String,
    pub(crate) since_unix_ms: u64,
}

/// See the module.
pub(crate) struct Quarantine {
    records: Records,
    peers: RwLock<HashMap<PeerId, Sentence>>,
}

impl Quarantine {
    /// As it was when the node was stopped. Blocking.
    pub(crate) fn open(records: Records) -> Stored<Self> {
        let mut peers = HashMap::new();
        for (key, value) in records.all(RecordKind::Quarantine)? {
            let peer = PeerId::from_bytes(&key);
            let sentence = serde_json::from_slice(&value);
            match (peer, sentence) {
                (Ok(peer), Ok(sentence)) => {
                    peers.insert(peer, sentence);
                }
                _ => tracing::warn!("a record of a quarantined peer cannot be read"),
            }
        }
        Ok(Self {
            records,
            peers: RwLock::new(peers),
        })
    }

    /// Whether the peer is left out.
    pub(crate) fn holds(&self, peer: PeerId) -> bool {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.contains_key(&peer)
    }

    /// How many are left out.
    pub(crate) fn count(&self) -> usize {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.len()
    }

    /// Why the peer is left out, if it is.
    pub(crate) fn sentence(&self, peer: PeerId) -> Option<Sentence> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(&peer).cloned()
    }

    /// The peer lied: from now on it is left out. It is written down in the background.
    pub(crate) fn condemn(self: &Arc<Self>, peer: PeerId, evidence: Evidence) {
        let id = evidence.id();
        tracing::warn!(%peer, evidence = id, "a peer lied: it gets no more work (`accel evidence`)");
        let sentence = Sentence {
            evidence: id,
            since_unix_ms: unix_ms(),
        };
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.insert(peer, sentence.clone());
        drop(peers);
        let quarantine = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = quarantine.write_down(peer, &sentence, &evidence) {
                tracing::error!(%error, "evidence cannot be written down; it holds until the node stops");
            }
        });
    }

    fn write_down(&self, peer: PeerId, sentence: &Sentence, evidence: &Evidence) -> Stored<()> {
        let records = &self.records;
        let known = records.all(RecordKind::Evidence)?;
        let mut known: Vec<(u64, Vec<u8>)> = known
            .into_iter()
            .map(|(key, value)| (Evidence::read(&value).map_or(0, |e| e.found_unix_ms), key))
            .collect();
        known.sort();
        let over = (known.len() + 1).saturating_sub(MOST_EVIDENCE);
        for (_, key) in known.into_iter().take(over) {
            records.remove(RecordKind::Evidence, &key)?;
        }
        let (key, value) = (evidence.id(), evidence.to_bytes());
        records.put(RecordKind::Evidence, key.as_bytes(), &value)?;
        let value = serde_json::to_vec(sentence).unwrap_or_default();
        records.put(RecordKind::Quarantine, &peer.to_bytes(), &value)?;
        Ok(())
    }

    /// All evidence that is kept, the newest first. Blocking.
    pub(crate) fn evidence(&self) -> Stored<Vec<Evidence>> {
        let all = self.records.all(RecordKind::Evidence)?;
        let mut all: Vec<Evidence> = all
            .iter()
            .filter_map(|(_, value)| Evidence::read(value).ok())
            .collect();
        all.sort_by_key(|evidence| std::cmp::Reverse(evidence.found_unix_ms));
        Ok(all)
    }

    /// The peer is trusted again; whether it was not before. Its evidence stays. Blocking.
    pub(crate) fn lift(&self, peer: PeerId) -> Stored<bool> {
        self.records
            .remove(RecordKind::Quarantine, &peer.to_bytes())?;
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        Ok(peers.remove(&peer).is_some())
    }
}
