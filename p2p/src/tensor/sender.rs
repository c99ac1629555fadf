//! Sending frames to one peer.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use libp2p::PeerId;
use quinn::{Connection, WriteError};
use tokio::sync::MutexGuard;
use tokio::time::timeout;

use super::link::{Link, Outgoing, Reach};
use super::{SEND_TIMEOUT, Shared, TensorError, dial, endpoint, frame};
use crate::wire::TensorFrame;

/// How often a peer may be connected and lost again before a frame is written.
const OPEN_ATTEMPTS: u32 = 3;

/// Sends frames to one peer; clones share the connection.
#[derive(Clone)]
pub struct TensorSender {
    shared: Arc<Shared>,
    link: Arc<Link>,
    addrs: Vec<SocketAddr>,
}

/// The place of the stream, and the stream that was taken out of it.
type Taken<'a> = (MutexGuard<'a, Option<Outgoing>>, Outgoing);

impl std::fmt::Debug for TensorSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorSender")
            .field("peer", &self.peer())
            .field("addrs", &self.addrs)
            .finish()
    }
}

impl TensorSender {
    pub(super) fn new(shared: Arc<Shared>, link: Arc<Link>, addrs: Vec<SocketAddr>) -> Self {
        Self {
            shared,
            link,
            addrs,
        }
    }

    /// Whom it sends to.
    pub fn peer(&self) -> PeerId {
        self.link.peer()
    }

    /// Sends one frame, after those whose sending is done; connects again if the connection broke.
    /// Waits while the peer does not read. `Ok` means that the frame is on its way, not that it
    /// arrived.
    pub async fn send(&self, frame: TensorFrame) -> Result<(), TensorError> {
        let parts = frame::encode(frame)?;
        let size = parts.iter().map(Bytes::len).sum();
        timeout(SEND_TIMEOUT, self.write(parts))
            .await
            .map_err(|_| TensorError::Stalled(self.peer()))??;
        self.link.count_sent(size);
        Ok(())
    }

    /// Makes sure that a connection is there.
    pub(super) async fn connect(&self) -> Result<(), TensorError> {
        if self.shared.closing.is_cancelled() {
            return Err(TensorError::ShutDown);
        }
        let mut outcome = match self.link.reach(&self.addrs) {
            Reach::Connected => return Ok(()),
            Reach::Wait(outcome) => outcome,
            Reach::Dial(sender, outcome) => {
                // In a task of its own, because whoever waits first may stop waiting first.
                let (shared, link) = (self.shared.clone(), self.link.clone());
                self.shared.spawn(dial::run(shared, link, sender));
                outcome
            }
        };
        // Others may bring further addresses, so that the dial lasts longer than for these.
        let limit = self.shared.connect_timeout.mul_f32(1.5);
        match timeout(limit, outcome.wait_for(Option::is_some)).await {
            Ok(Ok(result)) => result.clone().unwrap_or(Ok(())),
            Ok(Err(_)) => Err(TensorError::ShutDown),
            Err(_) => Err(TensorError::Unreachable {
                peer: self.peer(),
                reasons: format!("no answer in {limit:?}"),
            }),
        }
    }

    async fn write(&self, mut parts: [Bytes; 2]) -> Result<(), TensorError> {
        // The stream is out of its slot while a frame is half written: when this future is dropped
        // there, the stream ends with it, and the next frame begins a new one. The peer reads the
        // streams of a connection one after the other.
        let (mut slot, mut open) = self.take_or_open().await?;
        let written = open.stream.write_all_chunks(&mut parts).await;
        written.map_err(|error| self.write_error(&open.connection, error))?;
        *slot = Some(open);
        Ok(())
    }

    async fn take_or_open(&self) -> Result<Taken<'_>, TensorError> {
        for _ in 0..OPEN_ATTEMPTS {
            // Before the stream is locked, so that all who need the peer wait for one dial.
            self.connect().await?;
            let mut slot = self.link.outgoing.lock().await;
            if let Some(open) = slot.take().filter(Outgoing::is_open) {
                return Ok((slot, open));
            }
            if let Some(connection) = self.link.to_write() {
                let stream = connection.open_uni().await;
                let stream = stream.map_err(|error| endpoint::loss(self.peer(), &error))?;
                return Ok((slot, Outgoing { connection, stream }));
            }
        }
        Err(TensorError::Lost {
            peer: self.peer(),
            reason: "its connections close as soon as they are there".to_owned(),
        })
    }

    fn write_error(&self, connection: &Connection, error: WriteError) -> TensorError {
        let broken = match &error {
            WriteError::ConnectionLost(broken) => Some(broken.clone()),
            _ => connection.close_reason(),
        };
        match broken {
            Some(broken) => endpoint::loss(self.peer(), &broken),
            None => TensorError::Lost {
                peer: self.peer(),
                reason: error.to_string(),
            },
        }
    }
}
