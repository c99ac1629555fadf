//! Who is fetching which block: two fetches that need one block ask the network once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cid::Cid;
use tokio::sync::Notify;

/// How long to wait for another fetch's block before fetching it as well. Only a fetch that nobody
/// drives any more takes so long; the cost is one block fetched twice.
const PATIENCE: Duration = Duration::from_secs(30);

type Waiting = Mutex<HashMap<Vec<u8>, Arc<Notify>>>;

/// The blocks being fetched.
#[derive(Debug, Default, Clone)]
pub(super) struct Claims {
    waiting: Arc<Waiting>,
}

/// Held while a block is on its way, until it is durable. Dropping it lets the next one look.
#[derive(Debug)]
pub(super) struct Claim {
    key: Vec<u8>,
    waiting: Arc<Waiting>,
}

impl Claims {
    /// Waits until nobody else is fetching the block. `None` when patience ran out.
    pub(super) async fn claim(&self, cid: &Cid) -> Option<Claim> {
        tokio::time::timeout(PATIENCE, self.wait(cid.hash().to_bytes()))
            .await
            .ok()
    }

    async fn wait(&self, key: Vec<u8>) -> Claim {
        loop {
            let busy = match self.try_claim(&key) {
                Ok(claim) => return claim,
                Err(busy) => busy,
            };
            let mut released = std::pin::pin!(busy.notified());
            // Registers first: a release between the look and the wait must not be missed.
            released.as_mut().enable();
            if self.is_claimed_by(&key, &busy) {
                released.await;
            }
        }
    }

    fn try_claim(&self, key: &[u8]) -> Result<Claim, Arc<Notify>> {
        let mut waiting = locked(&self.waiting);
        if let Some(busy) = waiting.get(key) {
            return Err(busy.clone());
        }
        waiting.insert(key.to_vec(), Arc::new(Notify::new()));
        Ok(Claim {
            key: key.to_vec(),
            waiting: self.waiting.clone(),
        })
    }

    fn is_claimed_by(&self, key: &[u8], notify: &Arc<Notify>) -> bool {
        let waiting = locked(&self.waiting);
        waiting.get(key).is_some_and(|now| Arc::ptr_eq(now, notify))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(notify) = locked(&self.waiting).remove(&self.key) {
            notify.notify_waiters();
        }
    }
}

fn locked(waiting: &Waiting) -> MutexGuard<'_, HashMap<Vec<u8>, Arc<Notify>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
