//! What a network is started with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use libp2p::Multiaddr;

use crate::membership::{Invite, SwarmMembership};
use crate::tensor::CONNECT_TIMEOUT;

/// How long an advert holds unless it is renewed, by default.
pub const DEFAULT_ADVERT_TTL: Duration = Duration::from_secs(15);

/// What a network is started with.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Seed of the node's ed25519 key, and so of its peer id.
    pub seed: [u8; 32],
    /// Where to listen; port 0 lets the system choose. In a private swarm TCP only.
    pub listen: Vec<Multiaddr>,
    /// Where the tensor plane listens (UDP).
    pub tensor_listen: SocketAddr,
    /// Whom to find the swarm through. At least one must answer, if there is any.
    pub join: Vec<JoinTarget>,
    /// The swarm, and this node's standing in it.
    pub swarm: SwarmMembership,
    /// How long one attempt to connect on the tensor plane may take.
    pub tensor_connect_timeout: Duration,
    /// How long this node's adverts hold; they are renewed after a third of it.
    pub advert_ttl: Duration,
}

/// Somebody through whom to find the swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinTarget {
    /// The address of a member, with or without its `/p2p/` part.
    Addr(Multiaddr),
    /// An invite: its addresses are dialled, and a certificate is asked for.
    Invite(Box<Invite>),
}

impl NetworkConfig {
    /// A network on loopback, ports chosen by the system, that joins nobody.
    pub fn loopback(seed: [u8; 32], swarm: SwarmMembership) -> Self {
        let listen = Multiaddr::empty()
            .with(libp2p::multiaddr::Protocol::Ip4(Ipv4Addr::LOCALHOST))
            .with(libp2p::multiaddr::Protocol::Tcp(0));
        Self {
            seed,
            listen: vec![listen],
            tensor_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            join: Vec::new(),
            swarm,
            tensor_connect_timeout: CONNECT_TIMEOUT,
            advert_ttl: DEFAULT_ADVERT_TTL,
        }
    }
}
