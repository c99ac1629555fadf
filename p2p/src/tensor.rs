//! The tensor plane: activations and tokens from peer to peer, apart from block traffic.
//!
//! Raw QUIC with the certificates of libp2p-tls, so that both ends know each other's peer id, and
//! with an ALPN of its own. Each end writes one long-lived unidirectional stream, on whichever
//! connection to the peer is there: it does not matter who dialled. Frames are
//! `size: u32, header size: u16, header, payload` (`frame.rs`).
//!
//! A silent peer is noticed after [`SILENCE`] and a look, a closed connection at once; both are told
//! by [`TensorPlane::losses`]. So is a peer that was started again, as soon as it shows: each end
//! says in its greeting when it was started, and [`TensorPlane::moved`] takes what the node hears of
//! that elsewhere. The next [`TensorSender::send`] connects again. Frames of one sender
//! arrive in order; those that were under way when a connection broke are lost, and it is for the
//! session's steps to ask again.
//!
//! - `thread.rs`: the thread on which all of it runs.
//! - `endpoint.rs`: QUIC settings and who the other end is.
//! - `greeting.rs`: both ends show that they are members, before any frame is taken.
//! - `frame.rs`: frames on a stream.
//! - `budget.rs`: how much memory incoming frames may take.
//! - `link.rs`: the connections to one peer, and in which of its lives it is.
//! - `dial.rs`: one attempt to connect, for all who need the peer.
//! - `sender.rs`: writing.
//! - `accept.rs`: incoming connections and reading.
//! - `pulse.rs`: whether the other end lives.
//! - `rate.rs`: how fast large frames come in.

mod accept;
mod budget;
mod dial;
mod endpoint;
mod frame;
mod greeting;
mod link;
mod pulse;
mod rate;
mod sender;
mod thread;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::membership::{Certificate, CertificateError};
use crate::wire::{TensorFrame, WireError};
use budget::Budget;
use link::Link;
pub use link::Traffic;
pub use pulse::SILENCE;
use rate::Rate;
pub use sender::TensorSender;
use thread::PlaneThread;

/// How often an idle connection shows that it lives.
pub const KEEP_ALIVE: Duration = Duration::from_millis(250);
/// After how much silence QUIC itself gives a connection up. Longer than [`SILENCE`], because it
/// goes by the clock, also while this node did not run.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long each address of a peer may take to answer, unless a node is told otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one frame may wait for a peer that lives but does not read.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a payload may take to arrive once there is room for it. Longer than a sender tries,
/// and what it had written may still be under way.
const PAYLOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Frames received and not yet taken, over all peers; then reading stops, and so do the senders.
/// Their payloads are bounded by the budget.
const FRAME_QUEUE: usize = 64;
/// Losses not yet taken by a listener.
const LOSS_QUEUE: usize = 64;
/// Handshakes at a time; more are refused.
const MAX_HANDSHAKES: usize = 64;
/// Connections at a time; more are refused.
const MAX_CONNECTIONS: usize = 512;
/// Peers whose counters are kept while they are not connected.
const MAX_IDLE_LINKS: usize = 1024;
/// How long a shutdown waits for what is under way.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// Decides who may take part; asked for every connection, on both ends.
pub trait Admission: Send + Sync + 'static {
    /// What this node shows to others.
    fn own_certificate(&self) -> Option<Certificate>;

    /// Whether `peer`, which proved its id and showed `certificate`, is a member of the swarm.
    fn admit(
        &self,
        peer: &PeerId,
        certificate: Option<&Certificate>,
    ) -> Result<(), CertificateError>;
}

/// What is wrong with the tensor plane, or with the way to a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The UDP address is not to be had.
    #[error("cannot listen on UDP {addr}: {reason}; choose another address or port 0")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        reason: String,
    },
    /// The plane's thread is not to be had.
    #[error("cannot start a thread for the tensor plane: {0}")]
    Thread(String),
    /// No certificate could be made from the node's key.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The peer may not take part.
    #[error("peer {peer} is not a member of this swarm: {reason}")]
    NotAMember {
        /// Who it is.
        peer: PeerId,
        /// What is wrong with what it showed.
        reason: String,
    },
    /// The peer thinks that we may not take part.
    #[error("peer {peer} refused the connection: {reason}")]
    Refused {
        /// Who refused.
        peer: PeerId,
        /// What it said.
        reason: String,
    },
    /// Somebody else answers at the peer's address.
    #[error("expected peer {} at {}, found {}", .0.expected, .0.addr, .0.found)]
    WrongPeer(Box<WrongPeer>),
    /// Nobody answers at any address of the peer.
    #[error("cannot reach peer {peer} ({reasons})")]
    Unreachable {
        /// Who was called.
        peer: PeerId,
        /// What happened at each address.
        reasons: String,
    },
    /// The connection broke.
    #[error("lost peer {peer}: {reason}")]
    Lost {
        /// Who is lost.
        peer: PeerId,
        /// How.
        reason: String,
    },
    /// The peer lives, but did not read for [`SEND_TIMEOUT`].
    #[error("peer {0} takes no frames; it may be overloaded")]
    Stalled(PeerId),
    /// The frame cannot be sent.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The plane was shut down.
    #[error("the tensor plane is shut down")]
    ShutDown,
}

/// Somebody else answers at a peer's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongPeer {
    /// Who was called.
    pub expected: PeerId,
    /// Who answered.
    pub found: PeerId,
    /// Where.
    pub addr: SocketAddr,
}

/// A peer is gone: its last connection closed without our doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLoss {
    /// Who is gone.
    pub peer: PeerId,
    /// How it went.
    pub error: TensorError,
}

/// What a tensor plane is started with.
#[derive(Debug, Clone)]
pub struct PlaneConfig {
    /// Where to listen (UDP, port 0 allowed).
    pub listen: SocketAddr,
    /// Which life of the node it is: greater than that of each earlier one, as a time is.
    pub started_unix_ms: u64,
    /// How long each address of a peer may take to answer; who waits gives up after half as long again.
    pub connect_timeout: Duration,
}

/// Handle to the node's tensor plane; clones share it. Without one, its thread ends.
#[derive(Clone)]
pub struct TensorPlane {
    shared: Arc<Shared>,
    _thread: Arc<PlaneThread>,
}

/// What all tasks of the plane share.
struct Shared {
    endpoint: quinn::Endpoint,
    client: quinn::ClientConfig,
    admission: Arc<dyn Admission>,
    /// Which life of this node it is.
    life: u64,
    connect_timeout: Duration,
    links: Mutex<HashMap<PeerId, Arc<Link>>>,
    frames: mpsc::Sender<(PeerId, TensorFrame)>,
    losses: broadcast::Sender<PeerLoss>,
    handshakes: Arc<Semaphore>,
    budget: Budget,
    rate: Rate,
    tasks: TaskTracker,
    closing: CancellationToken,
    thread: Handle,
}

impl TensorPlane {
    /// Listens as the peer that `keypair` belongs to. Incoming frames come out of the receiver.
    pub fn bind(
        keypair: &Keypair,
        config: &PlaneConfig,
        admission: Arc<dyn Admission>,
    ) -> Result<(Self, mpsc::Receiver<(PeerId, TensorFrame)>), TensorError> {
        let thread = PlaneThread::start();
        let thread = thread.map_err(|error| TensorError::Thread(error.to_string()))?;
        let (endpoint, client) = endpoint::bind(keypair, config.listen, &thread)?;
        let (frames, received) = mpsc::channel(FRAME_QUEUE);
        let shared = Arc::new(Shared {
            endpoint,
            client,
            admission,
            life: config.started_unix_ms,
            connect_timeout: config.connect_timeout,
            links: Mutex::default(),
            frames,
            losses: broadcast::Sender::new(LOSS_QUEUE),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            budget: Budget::new(),
            rate: Rate::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            thread: thread.handle().clone(),
        });
        shared.spawn(accept::run(shared.clone()));
        let plane = Self {
            shared,
            _thread: Arc::new(thread),
        };
        Ok((plane, received))
    }

    /// Where the plane listens. An unspecified IP stands for every address of the machine.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.shared.endpoint.local_addr().into_iter().collect()
    }

    /// A way to send frames to `peer`; connects if no connection is there yet. All who need the same
    /// peer wait for one attempt to connect, and share its failure.
    pub async fn sender(
        &self,
        peer: PeerId,
        addrs: &[SocketAddr],
    ) -> Result<TensorSender, TensorError> {
        let link = self.shared.link(peer);
        let sender = TensorSender::new(self.shared.clone(), link, addrs.to_vec());
        sender.connect().await?;
        Ok(sender)
    }

    /// `peer` itself says when it was started, and where it listens since; `addrs` are empty while
    /// that is not known. What is left of an earlier life of it is closed: that is the loss.
    pub fn moved(
        &self,
        peer: &PeerId,
        started_unix_ms: u64,
        addrs: &[SocketAddr],
    ) -> Option<PeerLoss> {
        let link = self.shared.lock_links().get(peer).cloned()?;
        let outlived = link.moved(started_unix_ms, addrs);
        outlived.then(|| endpoint::outlived(*peer))
    }

    /// Peers lost from now on. A listener that falls behind sees how many it missed.
    pub fn losses(&self) -> broadcast::Receiver<PeerLoss> {
        self.shared.losses.subscribe()
    }

    /// Closes all connections to `peer`; a later send connects again.
    pub fn disconnect(&self, peer: &PeerId) {
        let link = self.shared.lock_links().get(peer).cloned();
        if let Some(link) = link {
            link.close(b"disconnected");
        }
    }

    /// What went to and came from `peer` since the plane was bound.
    pub fn traffic(&self, peer: &PeerId) -> Traffic {
        self.shared
            .lock_links()
            .get(peer)
            .map(|link| link.traffic())
            .unwrap_or_default()
    }

    /// What went to and came from every peer.
    pub fn all_traffic(&self) -> Vec<(PeerId, Traffic)> {
        self.shared
            .lock_links()
            .iter()
            .map(|(peer, link)| (*peer, link.traffic()))
            .collect()
    }

    /// Bytes per second at which large frames came in lately; 0 while none came.
    pub fn received_bytes_s(&self) -> u64 {
        self.shared.rate.bytes_s()
    }

    /// Lets peers acknowledge what was sent, for a moment, and closes everything.
    pub async fn shutdown(&self) {
        let links: Vec<_> = self.shared.lock_links().values().cloned().collect();
        let finish = futures::future::join_all(links.iter().map(|link| link.finish()));
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, finish).await;
        self.shared.closing.cancel();
        self.shared.endpoint.close(endpoint::BYE, b"shut down");
        self.shared.tasks.close();
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, self.shared.tasks.wait()).await;
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, self.shared.endpoint.wait_idle()).await;
    }
}

impl fmt::Debug for TensorPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorPlane")
            .field("local_addrs", &self.local_addrs())
            .field("payload_bytes", &self.shared.budget.held())
            .finish()
    }
}

impl Shared {
    /// Starts a task on the plane's thread.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.thread);
    }

    fn lock_links(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link to `peer`; made on first use.
    fn link(&self, peer: PeerId) -> Arc<Link> {
        let mut links = self.lock_links();
        if links.len() > MAX_IDLE_LINKS && !links.contains_key(&peer) {
            links.retain(|_, link| !link.is_idle() || Arc::strong_count(link) > 1);
        }
        links
            .entry(peer)
            .or_insert_with(|| Arc::new(Link::new(peer, self.budget.share())))
            .clone()
    }
}

#[cfg(test)]
mod tests;
