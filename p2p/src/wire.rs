//! What crosses the network: one table of protocol names, tags and size limits, and one file per
//! family of messages.
//!
//! Every message is `tag: u8` followed by its bincode 2 body (standard configuration, little
//! endian, variable-length integers). A tag names one message in one version; it is never given to
//! another message, and an unknown one is refused. A change to a message's layout is a new tag.
//! Limits are checked before memory is taken, trailing bytes are refused, and so is text with
//! control characters, because it ends up in somebody's terminal.
//!
//! | File | Messages | Carried by |
//! |---|---|---|
//! | [`advert`] | adverts and goodbyes, signed by the node | gossipsub |
//! | [`control`] | placement of stages, two-phase | `/accel/control/1` |
//! | [`warm`] | what a stand-in should have ready; part of control | `/accel/control/1` |
//! | [`join`] | an invite for a certificate | `/accel/join/1` |
//! | [`replica`] | the journal of a session, kept on other nodes | `/accel/replica/1` |
//! | [`step`] | activations and tokens | the tensor plane |
//! | [`claim`] | what stages sign about their work; part of the tensor frames | the tensor plane |
//! | [`kv`] | rows of KV caches; part of the tensor frames | the tensor plane |
//! | [`framed`] | length-prefixed messages on a stream | |

pub mod advert;
pub mod claim;
mod codec;
pub mod control;
pub mod framed;
pub mod join;
pub mod kv;
pub mod replica;
pub mod session;
pub mod step;
pub mod warm;

pub use advert::{
    Advert, AdvertBody, AdvertError, Goodbye, Gossip, GpuAdvert, HardwareAdvert, LoadAdvert,
    ModelOffer,
};
pub use claim::{Claim, Link, SignedClaim};
pub(crate) use codec::{Bounded, Wire, put_field, take_field, unknown_tag, wire_enum, wire_struct};
pub use control::{ControlReply, ControlRequest, HeldWire, Hop, Keep, PeerEndpoint, SamplingWire};
pub use framed::{FrameError, read_message, write_message};
pub use join::{JoinRequest, JoinResponse};
pub use kv::{CopyOrder, KvRows};
pub use replica::{Record, ReplicaReply, ReplicaRequest};
pub use session::SessionId;
pub use step::{StepInput, TensorFrame};
pub use warm::WarmOrder;

use bincode::error::{DecodeError, EncodeError};

/// Names under which the protocols are negotiated.
pub mod protocol {
    /// libp2p stream: placement and lifetime of stages, one stream per call.
    pub const CONTROL: &str = "/accel/control/1";
    /// libp2p stream: an invite is exchanged for a membership certificate.
    pub const JOIN: &str = "/accel/join/1";
    /// libp2p stream: the greeting of peers that connect, with their adverts.
    pub const ADVERT: &str = "/accel/advert/1";
    /// libp2p stream: a session's journal is kept, or asked for.
    pub const REPLICA: &str = "/accel/replica/1";
    /// libp2p stream: blocks by CID, as all of IPFS speaks it.
    pub const BITSWAP: &str = "/ipfs/bitswap/1.2.0";
    /// ALPN of the tensor plane's QUIC connections.
    pub const TENSOR_ALPN: &[u8] = b"accel-tensor/1";
    /// Gossipsub topic of the adverts; the swarm id follows.
    pub const ADVERT_TOPIC_PREFIX: &str = "/accel/adverts/1/";
}

/// First byte of every message; never reused, gaps are retired or reserved.
pub mod tag {
    /// [`Advert`](super::Advert), version 1.
    pub const ADVERT: u8 = 0x01;
    /// [`Goodbye`](super::Goodbye), version 1.
    pub const GOODBYE: u8 = 0x02;
    /// The signed envelope around gossip, version 1.
    pub const GOSSIP_ENVELOPE: u8 = 0x03;
    /// First frame of a greeting: the id of the sender's swarm and when it was started, version 1.
    pub const GREETING: u8 = 0x04;
    /// [`ControlRequest`](super::ControlRequest), version 1.
    pub const CONTROL_REQUEST: u8 = 0x10;
    /// [`ControlReply`](super::ControlReply), version 1.
    pub const CONTROL_REPLY: u8 = 0x11;
    /// [`JoinRequest`](super::JoinRequest), version 1.
    pub const JOIN_REQUEST: u8 = 0x20;
    /// [`JoinResponse`](super::JoinResponse), version 1.
    pub const JOIN_RESPONSE: u8 = 0x21;
    /// Header of a [`TensorFrame`](super::TensorFrame), version 1.
    pub const TENSOR_FRAME: u8 = 0x30;
    /// What both ends of a tensor connection say first, version 1.
    pub const TENSOR_GREETING: u8 = 0x31;
    /// [`Certificate`](crate::membership::Certificate), version 1.
    pub const CERTIFICATE: u8 = 0x40;
    /// [`Invite`](crate::membership::Invite), version 1.
    pub const INVITE: u8 = 0x41;
    /// [`SwarmMembership`](crate::membership::SwarmMembership) on disk, version 1.
    pub const MEMBERSHIP: u8 = 0x42;
    /// [`ReplicaRequest`](super::ReplicaRequest), version 1.
    pub const REPLICA_REQUEST: u8 = 0x50;
    /// [`ReplicaReply`](super::ReplicaReply), version 1.
    pub const REPLICA_REPLY: u8 = 0x51;
    /// What the signature of a [`Claim`](super::Claim) covers, version 1; never sent as it is.
    pub const CLAIM: u8 = 0x60;
}

/// Size limits, in bytes unless the name says otherwise.
pub mod limit {
    /// An encoded advert or goodbye. Stays below gossipsub's own default of 64 KiB.
    pub const ADVERT: usize = 48 * 1024;
    /// A signed gossip envelope.
    pub const GOSSIP_ENVELOPE: usize = ADVERT + 256;
    /// A control request.
    pub const CONTROL_REQUEST: usize = 64 * 1024;
    /// A control reply.
    pub const CONTROL_REPLY: usize = 16 * 1024;
    /// A join request.
    pub const JOIN_REQUEST: usize = 8 * 1024;
    /// A join response.
    pub const JOIN_RESPONSE: usize = 8 * 1024;
    /// A certificate.
    pub const CERTIFICATE: usize = 512;
    /// An invite, before its text form.
    pub const INVITE: usize = 4 * 1024;
    /// A node's own membership on disk.
    pub const MEMBERSHIP: usize = 4 * 1024;
    /// A replica request or reply: a part of an opening record, and records.
    pub const REPLICA: usize = 208 * 1024;
    /// The opening record of a session; the journal takes no longer one.
    pub const REPLICA_OPENING: u64 = 8 << 20;
    /// As much of it as goes into one message.
    pub const REPLICA_PART: usize = 64 * 1024;
    /// A record of a session, or its outcome.
    pub const REPLICA_RECORD: usize = 1024;
    /// Records in one message (count).
    pub const REPLICA_RECORDS: usize = 128;
    /// Header of a tensor frame.
    pub const TENSOR_HEADER: usize = 4 * 1024;
    /// The greeting of a tensor connection.
    pub const TENSOR_GREETING: usize = 1024;
    /// A whole tensor frame: header and payload.
    pub const TENSOR_FRAME: usize = 64 * 1024 * 1024;

    /// Addresses of one node in one message (count).
    pub const ADDRS: usize = 16;
    /// One multiaddress.
    pub const MULTIADDR: usize = 256;
    /// One peer id.
    pub const PEER_ID: usize = 64;
    /// One content id.
    pub const CID: usize = 96;
    /// A short name: version, instruction set, numerics class, error code.
    pub const LABEL: usize = 64;
    /// The name of a model, a swarm or a device.
    pub const NAME: usize = 160;
    /// A message or a hint for a person.
    pub const MESSAGE: usize = 2 * 1024;
    /// GPUs in an advert (count).
    pub const GPUS: usize = 16;
    /// Models in an advert (count).
    pub const MODELS: usize = 128;
    /// Providers in a prepare request (count).
    pub const PROVIDERS: usize = 64;
    /// Stages of one route (count).
    pub const HOPS: usize = 64;
    /// A claim of a stage, as it is signed.
    pub const CLAIM: usize = 512;
    /// Claims in one frame (count): stages of a route that is witnessed.
    pub const CLAIMS: usize = 24;
    /// Token ids in one step (count).
    pub const STEP_TOKENS: usize = 16 * 1024;
    /// Alternatives reported with a token (count).
    pub const TOP_LOGPROBS: usize = 64;
    /// How long an advert may ask to be believed, in milliseconds.
    pub const ADVERT_TTL_MS: u64 = 10 * 60 * 1000;
    /// How far two nodes' clocks may differ before adverts and certificates are refused, in
    /// milliseconds.
    pub const CLOCK_TOLERANCE_MS: u64 = 30 * 1000;
}

/// Upper bound that bincode itself holds while it decodes; every message's own limit is smaller.
const DECODER_LIMIT: usize = 1024 * 1024;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<DECODER_LIMIT>()
}

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Larger than the limit of its kind.
    #[error("{message} of {size} bytes is over its limit of {limit}")]
    TooLarge {
        /// What was being read or written.
        message: &'static str,
        /// Its size.
        size: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The bytes end before the message does.
    #[error("{message} is cut short")]
    Truncated {
        /// What was being read.
        message: &'static str,
    },
    /// Another message, or a later version: its sender may run a newer `accel`.
    #[error(
        "{message} has the unknown tag {tag:#04x}; the sender may run another version of accel"
    )]
    UnknownTag {
        /// What was being read.
        message: &'static str,
        /// The tag found.
        tag: u32,
    },
    /// Bytes are left over after the message.
    #[error("{message} is followed by {extra} unexpected bytes")]
    Trailing {
        /// What was being read.
        message: &'static str,
        /// How many bytes were left.
        extra: usize,
    },
    /// A field breaks its rule.
    #[error("{message} is malformed: {reason}")]
    Malformed {
        /// What was being read or written.
        message: &'static str,
        /// The rule that is broken.
        reason: String,
    },
}

/// A message of the table: what its first byte is and how large it may get.
pub(crate) trait Message: Wire {
    /// For errors.
    const NAME: &'static str;
    /// First byte.
    const TAG: u8;
    /// Largest encoding.
    const LIMIT: usize;

    /// Rules that span fields or bound numbers; run after decoding and before encoding.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Encodes a message with its tag.
pub(crate) fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    message.check().map_err(malformed::<M>)?;
    let bytes =
        bincode::encode_to_vec(codec::Outgoing(message), config()).map_err(encode_error::<M>)?;
    if bytes.len() > M::LIMIT {
        return Err(too_large::<M>(bytes.len()));
    }
    Ok(bytes)
}

/// Decodes exactly one message.
pub(crate) fn decode<M: Message>(bytes: &[u8]) -> Result<M, WireError> {
    if bytes.len() > M::LIMIT {
        return Err(too_large::<M>(bytes.len()));
    }
    let (codec::Incoming(message), read): (codec::Incoming<M>, usize) =
        bincode::decode_from_slice(bytes, config()).map_err(decode_error::<M>)?;
    if read != bytes.len() {
        let extra = bytes.len() - read;
        return Err(WireError::Trailing {
            message: M::NAME,
            extra,
        });
    }
    message.check().map_err(malformed::<M>)?;
    Ok(message)
}

fn too_large<M: Message>(size: usize) -> WireError {
    WireError::TooLarge {
        message: M::NAME,
        size,
        limit: M::LIMIT,
    }
}

fn malformed<M: Message>(reason: String) -> WireError {
    WireError::Malformed {
        message: M::NAME,
        reason,
    }
}

fn encode_error<M: Message>(error: EncodeError) -> WireError {
    match error {
        EncodeError::OtherString(reason) => malformed::<M>(reason),
        other => malformed::<M>(other.to_string()),
    }
}

fn decode_error<M: Message>(error: DecodeError) -> WireError {
    match error {
        DecodeError::UnexpectedEnd { .. } => WireError::Truncated { message: M::NAME },
        DecodeError::UnexpectedVariant { found, .. } => WireError::UnknownTag {
            message: M::NAME,
            tag: found,
        },
        DecodeError::OtherString(reason) => malformed::<M>(reason),
        other => malformed::<M>(other.to_string()),
    }
}

/// Cuts `text` to `max` bytes at a character border and drops control characters, so that it may
/// travel in a message.
pub fn clip(text: &str, max: usize) -> String {
    let mut clipped = String::with_capacity(text.len().min(max));
    for character in text.chars().filter(|c| codec::is_sendable(*c)) {
        if clipped.len() + character.len_utf8() > max {
            break;
        }
        clipped.push(character);
    }
    clipped
}

#[cfg(test)]
mod tests;
