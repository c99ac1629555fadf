//! The network: one handle, and the tasks behind it.
//!
//! | File | Is |
//! |---|---|
//! | `config.rs`, `error.rs`, `event.rs` | what goes in, what comes out |
//! | `start.rs` | listening, serving, joining |
//! | `connections.rs` | who is connected |
//! | `members.rs` | who belongs to the swarm |
//! | `streams.rs` | opening and accepting streams |
//! | `dial.rs` | reaching peers |
//! | `local.rs` | where this node is reached |
//! | `watch.rs` | connection and tensor events |
//! | `tasks.rs` | what ends together |

mod config;
mod connections;
mod dial;
mod error;
mod event;
mod local;
mod members;
mod start;
mod streams;
mod tasks;
mod watch;

pub use config::{DEFAULT_ADVERT_TTL, JoinTarget, NetworkConfig};
pub use error::NetworkError;
pub use event::NetworkEvent;

pub(crate) use connections::Connections;
pub(crate) use local::LocalAddrs;
pub(crate) use members::{GRACE, Members};
pub(crate) use streams::Streams;
pub(crate) use tasks::Tasks;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use libp2p::{Multiaddr, PeerId};
use rust_ipfs::Ipfs;
use tokio::sync::mpsc;

use crate::adverts::Adverts;
use crate::adverts::gossip::Topic;
use crate::bitswap::{Bitswap, BlockStore, ExchangeStats, FetchError};
use crate::clock::unix_ms;
use crate::control::{self, ControlCall, ControlError};
use crate::join;
use crate::membership::{Invite, InviteError, SwarmMembership};
use crate::replica::{self, ReplicaStream};
use crate::tensor::{TensorError, TensorPlane, TensorSender};
use crate::wire::{AdvertBody, ControlRequest, limit};
use dial::{Dialler, Found};

/// How long a goodbye may take to leave, and tasks to end.
const SHUTDOWN_STEP: Duration = Duration::from_millis(700);
/// Providers that are dialled for a block, at most, while none of them is connected.
const MAX_REACHED: usize = 2;
/// What a goodbye needs to get from the gossip queue onto the wire.
const GOODBYE_PAUSE: Duration = Duration::from_millis(100);

/// Handle to the node's network; clones share it. When the last one is dropped everything stops,
/// but only [`shutdown`](Network::shutdown) says goodbye.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    peer: PeerId,
    addrs: Arc<LocalAddrs>,
    ipfs: Ipfs,
    streams: Streams,
    connections: Arc<Connections>,
    members: Arc<Members>,
    adverts: Arc<Adverts>,
    topic: Topic,
    bitswap: Bitswap,
    dialler: Dialler,
    tensor: TensorPlane,
    found: Found,
    tasks: Tasks,
    events: mpsc::Sender<NetworkEvent>,
}

impl Network {
    /// Starts a network and joins its swarm. Returns once everything listens, at least one join
    /// target (if any) is connected, and this node is a member of its swarm. Bounded in time.
    pub async fn start(
        config: NetworkConfig,
        store: Arc<dyn BlockStore>,
    ) -> Result<(Self, mpsc::Receiver<NetworkEvent>), NetworkError> {
        start::start(config, store).await
    }

    /// Who this node is.
    pub fn peer_id(&self) -> PeerId {
        self.inner.peer
    }

    /// Where this node listens, with real ports and its `/p2p/` part.
    pub fn listen_addrs(&self) -> Vec<Multiaddr> {
        self.inner.addrs.listen()
    }

    /// Where the tensor plane listens.
    pub fn tensor_addrs(&self) -> Vec<SocketAddr> {
        self.inner.addrs.tensor()
    }

    /// The tensor plane itself, for its counters.
    pub fn tensor_plane(&self) -> &TensorPlane {
        &self.inner.tensor
    }

    /// The peers that are connected now.
    pub fn connected(&self) -> Vec<PeerId> {
        self.inner.connections.peers()
    }

    /// The peers that are connected now, with when they were started as far as they have said so.
    pub fn connected_lives(&self) -> Vec<(PeerId, Option<u64>)> {
        self.inner.connections.lives()
    }

    /// Whether a peer is connected now.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.inner.connections.is_connected(peer)
    }

    /// This node's standing in its swarm; holds the certificate that a join brought.
    pub fn membership(&self) -> SwarmMembership {
        self.inner.members.membership()
    }

    /// Connects to whoever listens at `addr` and says who it is.
    pub async fn connect(&self, addr: &Multiaddr) -> Result<PeerId, NetworkError> {
        self.inner.dialler.connect(addr).await
    }

    /// Makes an invite to this node's private swarm that leads to this node.
    pub fn create_invite(&self, ttl: Duration) -> Result<Invite, InviteError> {
        let addrs = self.listen_addrs();
        self.membership().create_invite(addrs, ttl, unix_ms())
    }

    /// Says what this node is, from now on. Addresses and the certificate are filled in.
    pub fn set_advert(&self, body: AdvertBody) {
        self.inner.adverts.set_body(body);
    }

    /// Fetches one block: from `providers`, the best first, or from whoever is connected if none
    /// are given. Each is given `per_provider` to answer; the hash is verified.
    pub async fn fetch_block(
        &self,
        cid: &Cid,
        providers: &[PeerId],
        per_provider: Duration,
    ) -> Result<Bytes, FetchError> {
        self.reach_any(providers).await;
        self.inner
            .bitswap
            .fetch(*cid, providers, per_provider)
            .await
    }

    /// What went over bitswap so far.
    pub fn exchange_stats(&self) -> ExchangeStats {
        self.inner.bitswap.stats()
    }

    /// Asks a member for something; returns once it has taken the request. Dials the peer if it
    /// is known from an advert and not connected.
    pub async fn control(
        &self,
        peer: PeerId,
        request: ControlRequest,
    ) -> Result<ControlCall, ControlError> {
        self.reach(peer).await?;
        let inner = &self.inner;
        control::call(&inner.streams, &inner.tasks, peer, &request).await
    }

    /// Opens a stream to a member about journals of sessions; returns once it has taken it. Dials
    /// the peer if it is known from an advert and not connected.
    pub async fn replica(&self, peer: PeerId) -> Result<ReplicaStream, ControlError> {
        self.reach(peer).await?;
        replica::open(&self.inner.streams, peer).await
    }

    /// A way to send tensor frames to a peer; its connection is shared and kept. Somebody says that
    /// the peer listens at `addrs`; where it says so itself is tried first.
    pub async fn tensor(
        &self,
        peer: PeerId,
        addrs: &[SocketAddr],
    ) -> Result<TensorSender, TensorError> {
        let mut all = self.inner.adverts.tensor_addrs_of(&peer);
        for addr in addrs.iter().take(limit::ADDRS) {
            if !all.contains(addr) {
                all.push(*addr);
            }
        }
        self.inner.tensor.sender(peer, &all).await
    }

    /// Connects to one of the peers, unless one is connected already.
    async fn reach_any(&self, peers: &[PeerId]) {
        if peers.iter().any(|peer| self.is_connected(peer)) {
            return;
        }
        for peer in peers.iter().take(MAX_REACHED) {
            match self.reach(*peer).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%peer, %error, "a provider cannot be reached"),
            }
        }
    }

    async fn reach(&self, peer: PeerId) -> Result<(), NetworkError> {
        if self.is_connected(&peer) {
            return Ok(());
        }
        let mut last = NetworkError::NotConnected(peer);
        for addr in self.inner.adverts.addrs_of(&peer) {
            match self.connect(&addr).await {
                Ok(found) if found == peer => return Ok(()),
                Ok(_) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Says goodbye and stops everything, within about two seconds.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        if inner.tasks.is_stopped() {
            return;
        }
        if let Some(goodbye) = inner.adverts.seal_goodbye() {
            let leaving = inner.topic.publish(goodbye);
            let _ = tokio::time::timeout(SHUTDOWN_STEP, leaving).await;
            tokio::time::sleep(GOODBYE_PAUSE).await;
        }
        inner.tasks.stop(SHUTDOWN_STEP).await;
        let _ = tokio::time::timeout(SHUTDOWN_STEP, inner.tensor.shutdown()).await;
        inner.ipfs.clone().exit_daemon().await;
    }

    /// Connects to all join targets; fails with the first reason if not one of them answers.
    async fn join_all(&self, targets: &[JoinTarget]) -> Result<(), NetworkError> {
        let joining = targets.iter().map(|target| self.join_one(target));
        let mut first_error = None;
        let mut joined = targets.is_empty();
        for outcome in futures::future::join_all(joining).await {
            match outcome {
                Ok(()) => joined = true,
                Err(error) => {
                    tracing::warn!(%error, "a join target failed");
                    first_error = first_error.or(Some(error));
                }
            }
        }
        match first_error {
            Some(error) if !joined => Err(error),
            _ => Ok(()),
        }
    }

    async fn join_one(&self, target: &JoinTarget) -> Result<(), NetworkError> {
        match target {
            JoinTarget::Addr(addr) => self.connect_to_stay(addr).await.map(|_| ()),
            JoinTarget::Invite(invite) => self.join_by_invite(invite).await,
        }
    }

    /// Connects, and keeps connecting whenever the connection is lost later.
    async fn connect_to_stay(&self, addr: &Multiaddr) -> Result<PeerId, NetworkError> {
        let peer = self.connect(addr).await?;
        let mut found = self
            .inner
            .found
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        found.insert(peer, connections::strip_peer(addr));
        Ok(peer)
    }

    /// Knocks at the invite's addresses, one after the other, until somebody lets this node in.
    async fn join_by_invite(&self, invite: &Invite) -> Result<(), NetworkError> {
        let inner = &self.inner;
        let is_member = inner.members.may_take_part().is_ok();
        if !is_member {
            invite.verify(unix_ms())?;
        }
        let mut last = None;
        for addr in &invite.addrs {
            let outcome = match self.connect_to_stay(addr).await {
                Ok(_) if is_member => return Ok(()),
                Ok(peer) => join::ask(&inner.streams, peer, invite).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok((certificate, addrs)) => {
                    inner.members.accept_certificate(certificate)?;
                    tracing::info!(members = addrs.len(), "this node joined the swarm");
                    return Ok(());
                }
                Err(error @ NetworkError::JoinRefused { .. }) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        let reason = "the invite holds no address".to_owned();
        Err(last.unwrap_or(NetworkError::Invite(InviteError::Malformed { reason })))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.tasks.is_stopped() {
            return;
        }
        self.tasks.cancel();
        let (ipfs, tensor) = (self.ipfs.clone(), self.tensor.clone());
        self.tasks.spawn_last(async move {
            tensor.shutdown().await;
            ipfs.exit_daemon().await;
        });
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("peer", &self.inner.peer)
            .finish_non_exhaustive()
    }
}
