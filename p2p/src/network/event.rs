//! What the network tells its owner.

use libp2p::PeerId;

use crate::control::IncomingControl;
use crate::replica::IncomingReplica;
use crate::tensor::PeerLoss;
use crate::wire::{Advert, TensorFrame};

/// What the network tells its owner.
#[derive(Debug)]
pub enum NetworkEvent {
    /// A peer is connected; told once per peer, not per connection.
    PeerConnected(PeerId),
    /// A connected peer says when it was started, by its own clock. Its adverts of that life hold
    /// for this connection, those of an earlier one do not.
    PeerGreeted {
        /// Who greets.
        peer: PeerId,
        /// The [`Advert::started_unix_ms`] of its adverts from now on.
        started_unix_ms: u64,
    },
    /// The last connection to a peer closed, or the peer was started again.
    PeerDisconnected(PeerId),
    /// A peer says something new about itself.
    Advert(Box<Advert>),
    /// A peer said goodbye, or its last advert expired.
    PeerExpired(PeerId),
    /// A member asks for something.
    Control(IncomingControl),
    /// A member opened a stream about journals of sessions.
    Replica(IncomingReplica),
    /// A member sent a frame over the tensor plane.
    Tensor {
        /// Who sent it.
        peer: PeerId,
        /// The frame.
        frame: TensorFrame,
    },
    /// A peer fell silent on the tensor plane, closed it or was started again; frames under way to
    /// it are lost.
    TensorLost {
        /// Who is lost.
        peer: PeerId,
        /// How.
        reason: String,
    },
}

impl From<PeerLoss> for NetworkEvent {
    fn from(loss: PeerLoss) -> Self {
        NetworkEvent::TensorLost {
            peer: loss.peer,
            reason: loss.error.to_string(),
        }
    }
}
