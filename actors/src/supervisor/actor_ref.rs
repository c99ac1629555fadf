//! The address that always leads to the living instance of a supervised actor.

use std::sync::Arc;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::{Addr, Handler, MailboxError, Message};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Supervised;

/// Why a message got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The actor did not answer in time: its mailbox is full, it is slow, or it is being restarted.
    #[error("{actor} did not answer within {} ms; try again later", waited.as_millis())]
    Timeout {
        /// Which actor.
        actor: &'static str,
        /// How long it had.
        waited: Duration,
    },
    /// The actor ended while it had the message; whether it did the work is not known.
    #[error("{actor} failed while it handled the message and is being restarted; try again")]
    Crashed {
        /// Which actor.
        actor: &'static str,
    },
    /// The actor failed too often, or the node is stopping.
    #[error("{actor} is not running any more; restart the node")]
    GivenUp {
        /// Which actor.
        actor: &'static str,
    },
}

/// Where the living instance is.
pub(super) enum Slot<A: Supervised> {
    /// Between two instances.
    Restarting,
    /// Here.
    Live(Addr<A>),
    /// There will be no other.
    GivenUp,
}

/// An address that stays good when the actor behind it is replaced. Sends are bounded by the
/// mailbox and by time.
pub struct ActorRef<A: Supervised> {
    pub(super) name: &'static str,
    pub(super) slot: watch::Receiver<Slot<A>>,
    pub(super) nudge: Arc<Notify>,
}

impl<A: Supervised> Clone for ActorRef<A> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            slot: self.slot.clone(),
            nudge: Arc::clone(&self.nudge),
        }
    }
}

impl<A: Supervised> ActorRef<A> {
    /// Sends a message and waits for its result, at most `within`. While the actor is being
    /// restarted the message waits for the next instance.
    pub async fn ask<M>(&self, message: M, within: Duration) -> Result<M::Result, AskError>
    where
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let actor = self.name;
        let deadline = Instant::now() + within;
        let timeout = AskError::Timeout {
            actor,
            waited: within,
        };
        let mut slot = self.slot.clone();
        let addr = match tokio::time::timeout_at(deadline, self.living(&mut slot)).await {
            Ok(found) => found?,
            Err(_) => return Err(timeout),
        };
        match tokio::time::timeout_at(deadline, addr.send(message)).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(MailboxError::Timeout)) | Err(_) => Err(timeout),
            Ok(Err(MailboxError::Closed)) => {
                self.nudge.notify_one();
                // The failed instance leaves its place first, so that the caller's next message
                // goes to its successor.
                let _ = tokio::time::timeout_at(deadline, slot.changed()).await;
                Err(AskError::Crashed { actor })
            }
        }
    }

    /// Waits for an instance that lives.
    async fn living(&self, slot: &mut watch::Receiver<Slot<A>>) -> Result<Addr<A>, AskError> {
        let actor = self.name;
        loop {
            match &*slot.borrow_and_update() {
                Slot::Live(addr) if addr.connected() => return Ok(addr.clone()),
                Slot::Live(_) => self.nudge.notify_one(),
                Slot::Restarting => {}
                Slot::GivenUp => return Err(AskError::GivenUp { actor }),
            }
            if slot.changed().await.is_err() {
                return Err(AskError::GivenUp { actor });
            }
        }
    }
}
