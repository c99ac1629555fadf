//! What can go wrong with the network, and what to do about it.

use std::net::SocketAddr;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};

use crate::membership::{CertificateError, InviteError};
use crate::tensor::TensorError;

/// Why the network could not be started, or a peer not be reached.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Another program listens there.
    #[error(
        "{addr} is already in use; stop the other program or choose another address with --listen (port 0 lets the system choose)"
    )]
    AddressInUse {
        /// The busy address.
        addr: Multiaddr,
    },
    /// It is no address that this swarm can listen on or dial.
    #[error("{addr} cannot be used: {reason}")]
    BadAddress {
        /// The address.
        addr: Multiaddr,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused to listen there.
    #[error("cannot listen on {addr}: {reason}")]
    Listen {
        /// The address.
        addr: Multiaddr,
        /// What the system said.
        reason: String,
    },
    /// Nobody answers there.
    #[error("{addr} cannot be reached: {reason}; check the address, and that the node there is up")]
    Unreachable {
        /// The address dialled.
        addr: Multiaddr,
        /// What happened.
        reason: String,
    },
    /// Somebody answers there but does not speak as a member of this swarm.
    #[error(
        "{addr} answers, but not as a member of swarm \"{swarm}\"; the swarm key is probably another one: compare the key files, or ask for a new invite"
    )]
    WrongSwarmKey {
        /// The address dialled.
        addr: Multiaddr,
        /// The swarm of this node.
        swarm: String,
    },
    /// Somebody answers there but does not speak as a node of a public swarm.
    #[error(
        "{addr} answers, but not as a node of a public swarm; a private swarm needs its key (--swarm-key) or an invite"
    )]
    NotPublic {
        /// The address dialled.
        addr: Multiaddr,
    },
    /// Another node than the expected one answers there.
    #[error(
        "another peer than expected answers at {addr} ({reason}); correct the part after /p2p/"
    )]
    WrongPeer {
        /// The address dialled.
        addr: Multiaddr,
        /// Who was expected and who was found.
        reason: String,
    },
    /// The invite does not open the door.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// The member that was asked to let this node in refused.
    #[error("the swarm refused to let this node in ({code}): {message}; {hint}")]
    JoinRefused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// This node cannot show that it belongs to its private swarm.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// There is no connection to the peer, and none could be made.
    #[error("peer {0} is not connected")]
    NotConnected(PeerId),
    /// The peer does not speak the protocol.
    #[error("peer {peer} does not speak {protocol}; it may run another version of accel")]
    Unsupported {
        /// The peer.
        peer: PeerId,
        /// The protocol.
        protocol: String,
    },
    /// The peer did not answer in time.
    #[error("peer {peer} did not answer within {after:?}")]
    TimedOut {
        /// The peer.
        peer: PeerId,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection broke.
    #[error("the connection to peer {peer} broke: {reason}")]
    Broken {
        /// The peer.
        peer: PeerId,
        /// What happened.
        reason: String,
    },
    /// The tensor plane could not be started.
    #[error("cannot start the tensor plane on {addr}: {source}")]
    TensorListen {
        /// Where it was to listen.
        addr: SocketAddr,
        /// Why it does not.
        source: Box<TensorError>,
    },
    /// The swarm itself failed.
    #[error("the swarm failed: {0}")]
    Swarm(String),
    /// The network was shut down.
    #[error("the network is shut down")]
    ShutDown,
}

impl NetworkError {
    /// A short name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::AddressInUse { .. } => "address_in_use",
            Self::BadAddress { .. } => "bad_address",
            Self::Listen { .. } | Self::TensorListen { .. } => "cannot_listen",
            Self::Unreachable { .. } => "unreachable",
            Self::WrongSwarmKey { .. } => "wrong_swarm_key",
            Self::NotPublic { .. } => "not_public",
            Self::WrongPeer { .. } => "wrong_peer",
            Self::Invite(_) => "bad_invite",
            Self::JoinRefused { .. } => "join_refused",
            Self::Certificate(_) => "no_certificate",
            Self::NotConnected(_) => "not_connected",
            Self::Unsupported { .. } => "unsupported",
            Self::TimedOut { .. } => "timed_out",
            Self::Broken { .. } => "broken",
            Self::Swarm(_) => "swarm_failed",
            Self::ShutDown => "shut_down",
        }
    }
}
