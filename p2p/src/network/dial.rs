//! Dialling: one address on demand, and the peers that adverts tell of by itself.

mod known;

pub(crate) use known::{Found, dial_known};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use rust_ipfs::{DialOpts, Ipfs, PeerCondition};
use tokio::net::TcpStream;

use super::connections::{Connections, strip_peer};
use super::error::NetworkError;
use super::members::Members;

/// How long a connection may take, handshakes included. A wrong swarm key can look like silence.
const DIAL_TIMEOUT: Duration = Duration::from_secs(7);
/// How long the plain TCP probe may take that tells a wrong key from nobody there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Dials for this node.
#[derive(Clone)]
pub(crate) struct Dialler {
    ipfs: Ipfs,
    own_peer: PeerId,
    connections: Arc<Connections>,
    members: Arc<Members>,
}

impl Dialler {
    pub(crate) fn new(
        ipfs: Ipfs,
        own_peer: PeerId,
        connections: Arc<Connections>,
        members: Arc<Members>,
    ) -> Self {
        Self {
            ipfs,
            own_peer,
            connections,
            members,
        }
    }

    /// Connects to whoever listens at `addr`, or to the peer that it names.
    pub(crate) async fn connect(&self, addr: &Multiaddr) -> Result<PeerId, NetworkError> {
        let expected = peer_of(addr);
        if expected == Some(self.own_peer) {
            let reason = "it is this node's own address".into();
            return Err(bad_address(addr, reason));
        }
        if let Some(peer) = expected.filter(|peer| self.connections.is_connected(peer)) {
            return Ok(peer);
        }
        let targets = resolve(addr).await?;
        let mut last = None;
        for target in targets {
            match self.connect_one(&target, expected).await {
                Ok(peer) => return Ok(peer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| bad_address(addr, "its name has no address".into())))
    }

    async fn connect_one(
        &self,
        addr: &Multiaddr,
        expected: Option<PeerId>,
    ) -> Result<PeerId, NetworkError> {
        if let Some(peer) = self.connections.peer_at(addr) {
            return Ok(peer);
        }
        let transport = strip_peer(addr);
        let options = match expected {
            Some(peer) => DialOpts::peer_id(peer)
                .condition(PeerCondition::Disconnected)
                .addresses(vec![transport.clone()])
                .build(),
            None => DialOpts::unknown_peer_id()
                .address(transport.clone())
                .build(),
        };
        let failure = match tokio::time::timeout(DIAL_TIMEOUT, self.ipfs.connect(options)).await {
            Ok(Ok(_)) => "the connection closed again at once".to_owned(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer within {DIAL_TIMEOUT:?}"),
        };
        let connected = expected
            .filter(|peer| self.connections.is_connected(peer))
            .or_else(|| self.connections.peer_at(&transport));
        match connected {
            Some(peer) => Ok(peer),
            None => Err(self.explain(addr, failure).await),
        }
    }

    /// Says what is wrong when a dial failed.
    async fn explain(&self, addr: &Multiaddr, failure: String) -> NetworkError {
        let addr = addr.clone();
        if failure.contains("Unexpected peer ID") {
            let reason = failure.trim_start_matches("Dial error: ").to_owned();
            return NetworkError::WrongPeer { addr, reason };
        }
        if failure.contains("local peer id") {
            return bad_address(&addr, "it is this node's own address".into());
        }
        if !answers_tcp(&addr).await {
            return NetworkError::Unreachable {
                addr,
                reason: failure,
            };
        }
        let swarm = self.members.membership();
        if swarm.is_private() {
            let swarm = swarm.name().to_owned();
            return NetworkError::WrongSwarmKey { addr, swarm };
        }
        NetworkError::NotPublic { addr }
    }

    /// Connects to a known peer at any of its addresses; says whether it is connected then.
    async fn connect_known(&self, peer: PeerId, addrs: Vec<Multiaddr>) -> bool {
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addrs)
            .build();
        match tokio::time::timeout(DIAL_TIMEOUT, self.ipfs.connect(options)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "a peer cannot be dialled"),
            Err(_) => tracing::debug!(%peer, "a peer does not answer"),
        }
        self.connections.is_connected(&peer)
    }

    /// Whether the address is one that this swarm dials.
    fn is_dialable(&self, addr: &Multiaddr) -> bool {
        let is_private = self.members.is_private();
        let mut parts = addr.iter();
        let host_is_real = match parts.next() {
            Some(Protocol::Ip4(ip)) => !ip.is_unspecified(),
            Some(Protocol::Ip6(ip)) => !ip.is_unspecified(),
            _ => false,
        };
        let transport_is_open = match parts.next() {
            Some(Protocol::Tcp(port)) => port != 0,
            Some(Protocol::Udp(port)) => port != 0 && !is_private,
            _ => false,
        };
        host_is_real && transport_is_open
    }
}

/// The peer that an address names.
pub(crate) fn peer_of(addr: &Multiaddr) -> Option<PeerId> {
    match addr.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

fn bad_address(addr: &Multiaddr, reason: String) -> NetworkError {
    let addr = addr.clone();
    NetworkError::BadAddress { addr, reason }
}

/// Replaces a host name by its addresses: the swarm itself looks up no names.
async fn resolve(addr: &Multiaddr) -> Result<Vec<Multiaddr>, NetworkError> {
    let mut parts = addr.iter();
    let host = match parts.next() {
        Some(Protocol::Dns(host) | Protocol::Dns4(host) | Protocol::Dns6(host)) => host,
        Some(Protocol::Ip4(_) | Protocol::Ip6(_)) => return Ok(vec![addr.clone()]),
        _ => {
            let reason = "it must begin with /ip4, /ip6 or /dns".into();
            return Err(bad_address(addr, reason));
        }
    };
    let rest: Multiaddr = parts.collect();
    let lookup = tokio::net::lookup_host((host.as_ref(), 0));
    let found = tokio::time::timeout(DIAL_TIMEOUT, lookup).await;
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(bad_address(addr, error.to_string())),
        Err(_) => return Err(bad_address(addr, "its name is not resolved in time".into())),
    };
    let with_rest = |socket: SocketAddr| Multiaddr::from(socket.ip()).iter().chain(&rest).collect();
    Ok(found.take(4).map(with_rest).collect())
}

/// Whether anything accepts plain TCP there.
async fn answers_tcp(addr: &Multiaddr) -> bool {
    let Some(socket) = tcp_socket(addr) else {
        return false;
    };
    let probe = tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(socket));
    matches!(probe.await, Ok(Ok(_)))
}

/// The socket of an address that begins with `/ip…/tcp/…`.
pub(crate) fn tcp_socket(addr: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = addr.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}
