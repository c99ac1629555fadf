//! What the network tells its owner.

use libp2p::PeerId;

use crate::control::IncomingControl;
use crate::replica::IncomingReplica;
use crate::wire::{Advert, TensorFrame};

/// What the network tells its owner.
#[derive(Debug)]
pub enum NetworkEvent {
    /// A peer is connected; told once per peer, not per connection.
    PeerConnected(PeerId),
    /// The last connection to a peer closed.
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
    /// A peer fell silent on the tensor plane, or closed it; frames under way to it are lost.
    TensorLost {
        /// Who is lost.
        peer: PeerId,
        /// How.
        reason: String,
    },
}
