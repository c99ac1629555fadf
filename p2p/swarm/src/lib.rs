//! The one place where the rust-ipfs builder is instantiated.
//!
//! Every crate that instantiates the builder's generics pays about two minutes of code generation.
//! This crate does it once behind a single plain function, [`start`], so that a change in
//! `accel-p2p` costs seconds. Which protocols speak over the swarm
//! is decided by `accel-p2p`, which opens and accepts streams through [`Ipfs::stream_control`]. Only
//! what the swarm itself must do is here: closing connections that are [silent](pulse).

/// What is heard on a gossip topic.
pub use connexa::prelude::GossipsubEvent;
use libp2p::identity::Keypair;
use libp2p::pnet::PreSharedKey;
use libp2p::{Multiaddr, PeerId};
use rust_ipfs::Ipfs;
use rust_ipfs::builder::IpfsBuilder;
use rust_ipfs::p2p::{IdentifyConfiguration, PubsubConfig, PubsubValidation};
use rust_ipfs::swarm::SwarmEvent;

mod pulse;

use pulse::Pulse;

/// The identify protocol version that public IPFS nodes know.
const IDENTIFY_PROTOCOL: &str = "/ipfs/0.1.0";
/// Connections are kept for as long as both sides live; [`Pulse`] closes the dead ones.
const IDLE_TIMEOUT_SECS: u64 = 365 * 24 * 3600;
const MAX_CONNECTIONS: u32 = 512;
const MAX_CONNECTIONS_PER_PEER: u32 = 4;
const MAX_PENDING_CONNECTIONS: u32 = 128;

/// What a swarm is started with.
pub struct SwarmOptions {
    /// The identity of this node.
    pub keypair: Keypair,
    /// The key of a private swarm. QUIC is not guarded by it and is therefore off when set.
    pub pre_shared_key: Option<PreSharedKey>,
    /// What this node calls itself in identify, for example `accel/0.1.0`.
    pub agent: String,
    /// The largest gossip message that is sent or accepted, in bytes.
    pub max_gossip_bytes: usize,
    /// Called for every connection that opens or closes, in order and on the swarm's own task:
    /// it must not block.
    pub on_connection: Box<dyn Fn(ConnectionChange) + Send + Sync>,
}

/// A connection opened or closed.
#[derive(Debug, Clone)]
pub enum ConnectionChange {
    /// One more connection to the peer.
    Opened {
        /// The authenticated peer.
        peer: PeerId,
        /// The address at the other end.
        remote: Multiaddr,
        /// Whether this node dialled, so that `remote` is an address the peer listens on.
        dialled: bool,
    },
    /// One connection less.
    Closed {
        /// The peer.
        peer: PeerId,
        /// How many connections to the peer are left.
        remaining: u32,
    },
}

/// The swarm could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the network: {0}")]
pub struct SwarmError(String);

/// Starts the swarm: identify, ping, gossipsub and streams; TCP always, QUIC in public swarms.
/// It does not listen yet; see [`Ipfs::add_listening_address`].
pub async fn start(options: SwarmOptions) -> Result<Ipfs, SwarmError> {
    let identify = IdentifyConfiguration {
        protocol_version: IDENTIFY_PROTOCOL.into(),
        agent_version: options.agent,
        ..Default::default()
    };
    let gossip = PubsubConfig {
        max_transmit_size: options.max_gossip_bytes,
        validate: PubsubValidation::Strict,
        ..Default::default()
    };
    let on_connection = options.on_connection;

    let builder = IpfsBuilder::<Pulse>::with_keypair(&options.keypair)
        .map_err(|error| SwarmError(error.to_string()))?
        .with_identify(identify)
        .with_custom_behaviour(|_| Ok(Pulse::new()))
        .with_pubsub(gossip)
        .with_streams()
        .set_connection_limits(|limits| {
            limits
                .with_max_pending_incoming(Some(MAX_PENDING_CONNECTIONS))
                .with_max_pending_outgoing(Some(MAX_PENDING_CONNECTIONS))
                .with_max_established(Some(MAX_CONNECTIONS))
                .with_max_established_per_peer(Some(MAX_CONNECTIONS_PER_PEER))
        })
        .set_idle_connection_timeout(IDLE_TIMEOUT_SECS)
        .enable_tcp()
        .swarm_events(move |_, event| {
            if let Some(change) = connection_change(event) {
                on_connection(change);
            }
        });
    let builder = match options.pre_shared_key {
        Some(key) => builder.enable_pnet(key),
        None => builder.enable_quic(),
    };
    builder
        .start()
        .await
        .map_err(|error| SwarmError(format!("{error:#}")))
}

fn connection_change<E>(event: &SwarmEvent<E>) -> Option<ConnectionChange> {
    match event {
        SwarmEvent::ConnectionEstablished {
            peer_id, endpoint, ..
        } => Some(ConnectionChange::Opened {
            peer: *peer_id,
            remote: endpoint.get_remote_address().clone(),
            dialled: endpoint.is_dialer(),
        }),
        SwarmEvent::ConnectionClosed {
            peer_id,
            num_established,
            ..
        } => Some(ConnectionChange::Closed {
            peer: *peer_id,
            remaining: *num_established,
        }),
        _ => None,
    }
}
