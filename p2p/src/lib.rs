//! The network of accel: one swarm of peers that find each other, exchange blocks by CID, agree on
//! the placement of stages, and pass activations on.
//!
//! [`Network`] is the handle; [`NetworkEvent`]s come out of it. What happens on the wire:
//!
//! ```text
//!                       libp2p (TCP; QUIC in public swarms; PSK in private ones)
//!  adverts   ── gossipsub, and a greeting on connect ──▶ NetworkEvent::Advert, PeerExpired
//!  bitswap   ── /ipfs/bitswap/1.2.0 ───────────────────▶ Network::fetch_block ◀─ BlockStore
//!  control   ── /accel/control/1 ──────────────────────▶ NetworkEvent::Control
//!  join      ── /accel/join/1 ─────────────────────────▶ a certificate for an invite
//!                       quinn, apart from the above
//!  tensor    ── accel-tensor/1 ────────────────────────▶ NetworkEvent::Tensor
//! ```
//!
//! | Module | Is |
//! |---|---|
//! | [`network`] | the handle, starting, connections, dialling |
//! | [`adverts`] | what peers say about themselves, until it expires |
//! | [`bitswap`] | the block exchange, client and server |
//! | [`control`] | requests that coordinators make of stages |
//! | [`join`] | an invite becomes a certificate |
//! | [`replica`] | journals of sessions, kept by others |
//! | [`membership`] | keys, certificates and invites of private swarms |
//! | [`tensor`] | activations and tokens, from stage to stage |
//! | [`wire`] | every message, its limits, and the table of protocols |
//!
//! The swarm itself is `rust-ipfs`, instantiated in `accel-swarm`. No `NetworkBehaviour` is
//! written here: all protocols are streams that [`network`] opens and accepts. In a private swarm
//! each of them serves only peers that have shown a valid certificate.

mod adverts;
mod bitswap;
mod clock;
mod control;
mod join;
pub mod membership;
mod network;
mod replica;
pub mod tensor;
pub mod wire;

pub use bitswap::{BlockStore, ExchangeStats, FetchError};
pub use clock::unix_ms;
pub use control::{ControlCall, ControlClosed, ControlError, ControlResponder, IncomingControl};
pub use membership::{
    Certificate, CertificateError, Invite, InviteError, SwarmId, SwarmKey, SwarmMembership,
};
pub use network::{
    DEFAULT_ADVERT_TTL, JoinTarget, Network, NetworkConfig, NetworkError, NetworkEvent,
};
pub use replica::{IncomingReplica, ReplicaCall, ReplicaStream};
pub use tensor::{PeerLoss, TensorError, TensorPlane, TensorSender, Traffic};
pub use wire::{
    Advert, AdvertBody, Claim, ControlReply, ControlRequest, GpuAdvert, HardwareAdvert, Hop, Link,
    LoadAdvert, ModelOffer, PeerEndpoint, Record, ReplicaReply, ReplicaRequest, SamplingWire,
    SessionId, SignedClaim, StepInput, TensorFrame,
};

pub use libp2p::identity::Keypair;
pub use libp2p::{Multiaddr, PeerId};
