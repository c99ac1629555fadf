//! How much memory the payloads of incoming frames may take, from before they are read until the
//! last owner of a payload drops it.
//!
//! Who sends more than its share is not read from, and QUIC's flow control stops it; nobody else
//! waits for it, until the shares that are in use fill the whole budget. Frames without a payload
//! need no room: they are small, and the queues bound their number. So are token ids, which the
//! frame copies out of its payload.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::wire::limit;

/// Payload bytes of one peer: the largest frame fits.
pub(super) const PER_PEER: usize = limit::TENSOR_FRAME;
/// Payload bytes of all peers.
pub(super) const OVERALL: usize = 256 * 1024 * 1024;

/// The memory for all payloads.
pub(super) struct Budget(Arc<Semaphore>);

/// What one peer may use of it.
pub(super) struct Share {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Room for one payload; given back when dropped.
pub(super) struct Room {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

struct Held {
    payload: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Budget {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(OVERALL)))
    }

    pub fn share(&self) -> Share {
        Share {
            own: Arc::new(Semaphore::new(PER_PEER)),
            all: self.0.clone(),
        }
    }

    /// Bytes in use or set aside.
    pub fn held(&self) -> usize {
        OVERALL.saturating_sub(self.0.available_permits())
    }
}

impl Share {
    /// Waits until there is room for `bytes`, which are at most those of the largest frame. The
    /// peer's own share comes first: only who is within it may wait for what all have.
    pub async fn take(&self, bytes: usize) -> Room {
        Room {
            _own: take(&self.own, bytes).await,
            _all: take(&self.all, bytes).await,
        }
    }

    pub fn is_unused(&self) -> bool {
        self.own.available_permits() == PER_PEER
    }
}

async fn take(from: &Arc<Semaphore>, bytes: usize) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes).expect("frames are smaller than 4 GiB");
    let taken = from.clone().acquire_many_owned(bytes).await;
    taken.expect("the semaphore is never closed")
}

impl Room {
    /// Takes up the room until the last clone of the result is dropped.
    pub fn fill(self, payload: Vec<u8>) -> Bytes {
        let _room = self;
        Bytes::from_owner(Held { payload, _room })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn take_now(share: &Share, bytes: usize) -> Option<Room> {
        share.take(bytes).now_or_never()
    }

    #[test]
    fn a_peer_gets_its_share_and_no_more_until_a_payload_is_dropped() {
        let budget = Budget::new();
        let share = budget.share();
        let payload = take_now(&share, 1000).unwrap().fill(vec![1; 1000]);
        let clone = payload.slice(10..20);
        assert!(take_now(&share, PER_PEER).is_none());
        drop(payload);
        assert!(take_now(&share, PER_PEER).is_none(), "a clone is left");
        drop(clone);
        assert!(share.is_unused());
        assert!(take_now(&share, PER_PEER).is_some(), "the largest frame");
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn all_peers_together_get_the_budget_and_no_more() {
        let budget = Budget::new();
        let shares: Vec<Share> = (0..OVERALL / PER_PEER).map(|_| budget.share()).collect();
        let mut rooms: Vec<_> = shares
            .iter()
            .map(|share| take_now(share, PER_PEER).unwrap())
            .collect();
        assert_eq!(budget.held(), OVERALL);
        let late = budget.share();
        assert!(take_now(&late, 1).is_none());
        assert!(late.is_unused(), "who gives up waiting holds nothing");
        rooms.pop();
        assert!(take_now(&late, PER_PEER).is_some());
    }
}
