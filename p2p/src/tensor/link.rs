//! The way to one peer: its connections, and the one stream that we write.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::PeerId;
use quinn::{Connection, ConnectionError, SendStream, WriteError};
use tokio::time::{sleep, timeout};

use super::budget::Share;
use super::{
    CONNECT_TIMEOUT, SEND_TIMEOUT, Shared, TensorError, WrongPeer, accept, endpoint, frame,
    greeting,
};
use crate::wire::{TensorFrame, limit};

/// Connections to one peer at a time: both may dial at once, and both may do so again.
const MAX_CONNECTIONS_PER_PEER: usize = 4;
/// Head start of each address over the next one.
const DIAL_STAGGER: Duration = Duration::from_millis(50);
/// QUIC wants a server name; identity comes from the certificate.
const SERVER_NAME: &str = "accel";

/// All that the plane knows of one peer.
pub(super) struct Link {
    peer: PeerId,
    connections: Mutex<Vec<Connection>>,
    /// Held over connecting and writing: one frame at a time.
    outgoing: tokio::sync::Mutex<Option<Outgoing>>,
    /// What payloads of the peer may take, over all its connections.
    share: Share,
    counters: Counters,
}

struct Outgoing {
    connection: Connection,
    stream: SendStream,
}

#[derive(Default)]
struct Counters {
    sent_bytes: AtomicU64,
    sent_frames: AtomicU64,
    received_bytes: AtomicU64,
    received_frames: AtomicU64,
}

/// What went to and came from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes of frames sent, with their headers.
    pub sent_bytes: u64,
    /// Frames sent.
    pub sent_frames: u64,
    /// Bytes of frames received, with their headers.
    pub received_bytes: u64,
    /// Frames received.
    pub received_frames: u64,
}

impl Link {
    pub fn new(peer: PeerId, share: Share) -> Self {
        Self {
            peer,
            connections: Mutex::default(),
            outgoing: tokio::sync::Mutex::default(),
            share,
            counters: Counters::default(),
        }
    }

    /// Takes in a connection, whoever dialled it.
    pub fn add(&self, connection: Connection) {
        let mut connections = self.lock_connections();
        connections.retain(is_open);
        if connections.len() >= MAX_CONNECTIONS_PER_PEER {
            let oldest = connections.remove(0);
            oldest.close(endpoint::SUPERSEDED, b"too many connections");
        }
        connections.push(connection);
    }

    pub fn peer(&self) -> PeerId {
        self.peer
    }

    pub fn share(&self) -> &Share {
        &self.share
    }

    /// Neither connected nor owner of payloads that count against its share.
    pub fn is_idle(&self) -> bool {
        !self.is_connected() && self.share.is_unused()
    }

    pub fn is_connected(&self) -> bool {
        self.newest().is_some()
    }

    fn newest(&self) -> Option<Connection> {
        self.lock_connections()
            .iter()
            .rev()
            .find(|connection| is_open(connection))
            .cloned()
    }

    pub fn close(&self, reason: &[u8]) {
        for connection in self.lock_connections().drain(..) {
            connection.close(endpoint::BYE, reason);
        }
    }

    /// Ends the stream and waits until the peer has all of it.
    pub async fn finish(&self) {
        let Some(mut outgoing) = self.outgoing.lock().await.take() else {
            return;
        };
        if outgoing.stream.finish().is_ok() {
            let _ = outgoing.stream.stopped().await;
        }
    }

    pub fn traffic(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            sent_bytes: read(&self.counters.sent_bytes),
            sent_frames: read(&self.counters.sent_frames),
            received_bytes: read(&self.counters.received_bytes),
            received_frames: read(&self.counters.received_frames),
        }
    }

    pub fn count_received(&self, bytes: usize) {
        self.counters
            .received_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.counters
            .received_frames
            .fetch_add(1, Ordering::Relaxed);
    }

    fn count_sent(&self, bytes: usize) {
        self.counters
            .sent_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.counters.sent_frames.fetch_add(1, Ordering::Relaxed);
    }

    fn lock_connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_open(connection: &Connection) -> bool {
    connection.close_reason().is_none()
}

/// Sends frames to one peer; clones share the connection and the order.
#[derive(Clone)]
pub struct TensorSender {
    shared: Arc<Shared>,
    link: Arc<Link>,
    addrs: Vec<SocketAddr>,
}

impl std::fmt::Debug for TensorSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let peer = self.link.peer;
        f.debug_struct("TensorSender")
            .field("peer", &peer)
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
        self.link.peer
    }

    /// Sends one frame, after all earlier ones; connects again if the connection broke. Waits
    /// while the peer does not read. `Ok` means that the frame is on its way, not that it arrived.
    pub async fn send(&self, frame: TensorFrame) -> Result<(), TensorError> {
        let parts = frame::encode(frame)?;
        let size = parts.iter().map(Bytes::len).sum();
        timeout(SEND_TIMEOUT, self.write(parts))
            .await
            .map_err(|_| TensorError::Stalled(self.link.peer))??;
        self.link.count_sent(size);
        Ok(())
    }

    /// Makes sure that a stream is there.
    pub(super) async fn connect(&self) -> Result<(), TensorError> {
        let mut slot = self.link.outgoing.lock().await;
        let open = self.take_or_open(slot.take()).await?;
        *slot = Some(open);
        Ok(())
    }

    async fn write(&self, mut parts: [Bytes; 2]) -> Result<(), TensorError> {
        let mut slot = self.link.outgoing.lock().await;
        // The stream is out of its slot while a frame is half written: when this future is dropped
        // there, the stream ends with it, and the next frame begins a new one. The peer reads the
        // streams of a connection one after the other.
        let mut open = self.take_or_open(slot.take()).await?;
        let written = open.stream.write_all_chunks(&mut parts).await;
        written.map_err(|error| self.write_error(&open.connection, error))?;
        *slot = Some(open);
        Ok(())
    }

    async fn take_or_open(&self, current: Option<Outgoing>) -> Result<Outgoing, TensorError> {
        match current {
            Some(outgoing) if is_open(&outgoing.connection) => Ok(outgoing),
            _ => self.open().await,
        }
    }

    async fn open(&self) -> Result<Outgoing, TensorError> {
        let peer = self.link.peer;
        if self.shared.closing.is_cancelled() {
            return Err(TensorError::ShutDown);
        }
        let connection = match self.link.newest() {
            Some(connection) => connection,
            None => self.dial().await?,
        };
        let stream = connection
            .open_uni()
            .await
            .map_err(|error| endpoint::loss(peer, &error))?;
        Ok(Outgoing { connection, stream })
    }

    /// Tries all addresses, each a little later than the one before; the first that works wins.
    async fn dial(&self) -> Result<Connection, TensorError> {
        let addrs = self.addrs.iter().take(limit::ADDRS).enumerate();
        let mut attempts: FuturesUnordered<_> = addrs
            .map(|(index, addr)| async move {
                sleep(DIAL_STAGGER * index as u32).await;
                (*addr, self.dial_one(*addr).await)
            })
            .collect();
        let mut reasons = Vec::new();
        while let Some((addr, result)) = attempts.next().await {
            match result {
                Ok(connection) => {
                    accept::adopt(&self.shared, self.link.clone(), connection.clone());
                    return Ok(connection);
                }
                Err(DialError::WrongPeer(found)) if self.addrs.len() == 1 => {
                    let expected = self.link.peer;
                    let wrong = WrongPeer {
                        expected,
                        found,
                        addr,
                    };
                    return Err(TensorError::WrongPeer(Box::new(wrong)));
                }
                // It is the right peer, and it will say the same at its other addresses.
                Err(DialError::Greeting(error)) => return Err(error),
                Err(error) => reasons.push(format!("{addr}: {error}")),
            }
        }
        if reasons.is_empty() {
            reasons.push("it has no tensor address".to_owned());
        }
        Err(TensorError::Unreachable {
            peer: self.link.peer,
            reasons: reasons.join("; "),
        })
    }

    async fn dial_one(&self, addr: SocketAddr) -> Result<Connection, DialError> {
        let meeting = timeout(CONNECT_TIMEOUT, self.meet(addr));
        meeting.await.map_err(|_| DialError::Timeout)?
    }

    async fn meet(&self, addr: SocketAddr) -> Result<Connection, DialError> {
        let client = self.shared.client.clone();
        let connection = self
            .shared
            .endpoint
            .connect_with(client, addr, SERVER_NAME)?
            .await?;
        let found = endpoint::peer_of(&connection).ok_or(DialError::NoIdentity)?;
        if found != self.link.peer {
            connection.close(endpoint::BYE, b"looking for somebody else");
            return Err(DialError::WrongPeer(found));
        }
        greeting::offer(&connection, found, self.shared.admission.as_ref()).await?;
        Ok(connection)
    }

    fn write_error(&self, connection: &Connection, error: WriteError) -> TensorError {
        let peer = self.link.peer;
        let broken = match &error {
            WriteError::ConnectionLost(broken) => Some(broken.clone()),
            _ => connection.close_reason(),
        };
        match broken {
            Some(broken) => endpoint::loss(peer, &broken),
            None => TensorError::Lost {
                peer,
                reason: error.to_string(),
            },
        }
    }
}

/// Why one address did not lead to the peer.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Address(#[from] quinn::ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("no answer in {CONNECT_TIMEOUT:?}")]
    Timeout,
    #[error("peer {0} is there instead")]
    WrongPeer(PeerId),
    #[error("it proves no peer id")]
    NoIdentity,
    #[error(transparent)]
    Greeting(#[from] TensorError),
}
