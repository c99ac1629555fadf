//! Adverts: what a node says about itself, signed with its libp2p key and gossiped to the swarm.
//!
//! A gossip message is a signed envelope: payload and signature. The signature covers the payload
//! behind a domain prefix, so that it can never pass for anything else that the key signs. The
//! signer is the peer named in the payload: an ed25519 peer id holds its public key.

use std::net::SocketAddr;

use cid::Cid;
use libp2p::identity::{Keypair, PublicKey};
use libp2p::{Multiaddr, PeerId};

use super::{Message, WireError, decode, encode, limit, tag, wire_struct};
use crate::membership::Certificate;

const SIGNING_DOMAIN: &[u8] = b"accel gossip 1\0";

/// A node's statement about itself, believed until `issued_unix_ms + ttl_ms`.
#[derive(Debug, Clone, PartialEq)]
pub struct Advert {
    /// Who speaks, and whose key signed.
    pub peer: PeerId,
    /// Grows with every advert of the peer, also over restarts: start from the time in
    /// milliseconds. An advert with a lower number than the newest known is stale.
    pub seq: u64,
    /// When the peer was started, by its own clock: tells its lives apart, and which is later.
    pub started_unix_ms: u64,
    /// When it was signed, by the peer's clock.
    pub issued_unix_ms: u64,
    /// How long it holds.
    pub ttl_ms: u64,
    /// The statement.
    pub body: AdvertBody,
}

/// What an advert says.
#[derive(Debug, Clone, PartialEq)]
pub struct AdvertBody {
    /// Where libp2p listens.
    pub addrs: Vec<Multiaddr>,
    /// Where the tensor plane listens (UDP).
    pub tensor_addrs: Vec<SocketAddr>,
    /// Where the HTTP API listens, if other machines may know.
    pub api: Option<SocketAddr>,
    /// Version of the software.
    pub version: String,
    /// What the machine has.
    pub hardware: HardwareAdvert,
    /// Measured speed of the engine's own quantised matrix-vector product, in GB/s of weights.
    pub measured_gb_s: f32,
    /// Numerics class: sessions do not mix classes.
    pub numerics: String,
    /// The most layers that the user lets this node serve.
    pub max_layers: Option<u32>,
    /// Whether it takes no more layers, because it wants to leave or was told so.
    pub draining: bool,
    /// What it is busy with.
    pub load: LoadAdvert,
    /// What it holds and would serve.
    pub models: Vec<ModelOffer>,
    /// Proof of membership in a private swarm.
    pub membership: Option<Certificate>,
}

/// Hardware of a node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HardwareAdvert {
    /// Cores that the engine may use.
    pub cores: u32,
    /// Instruction set of the kernels.
    pub isa: String,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Memory that the node gives to models.
    pub memory_for_models: u64,
    /// Graphics adapters.
    pub gpus: Vec<GpuAdvert>,
}

/// One graphics adapter.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GpuAdvert {
    /// As the driver calls it.
    pub name: String,
    /// Vulkan, Metal, …
    pub backend: String,
    /// Discrete, integrated, cpu, …
    pub kind: String,
}

/// What a node is busy with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoadAdvert {
    /// Sessions that run on it.
    pub sessions: u32,
    /// Requests that wait.
    pub queued: u32,
    /// Memory for models that is taken.
    pub reserved_bytes: u64,
    /// How long its stages take for a token now, in percent of what they take at best.
    pub toil_percent: u32,
}

/// A model that a node can serve blocks of.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelOffer {
    /// Its root.
    pub cid: Cid,
    /// What people call it.
    pub name: String,
    /// Size of the whole model.
    pub bytes: u64,
    /// Whether all of it is here.
    pub complete: bool,
    /// How much of it is here.
    pub present_bytes: u64,
}

/// A node's last word: it leaves now, in good order.
#[derive(Debug, Clone, PartialEq)]
pub struct Goodbye {
    /// Who leaves.
    pub peer: PeerId,
    /// In the same sequence as its adverts.
    pub seq: u64,
    /// When it was signed.
    pub issued_unix_ms: u64,
}

wire_struct!(Advert {
    peer,
    seq,
    started_unix_ms,
    issued_unix_ms,
    ttl_ms,
    body
});
wire_struct!(AdvertBody {
    addrs[limit::ADDRS],
    tensor_addrs[limit::ADDRS],
    api,
    version[limit::LABEL],
    hardware,
    measured_gb_s,
    numerics[limit::LABEL],
    max_layers,
    draining,
    load,
    models[limit::MODELS],
    membership,
});
wire_struct!(HardwareAdvert {
    cores,
    isa[limit::LABEL],
    memory_bytes,
    memory_for_models,
    gpus[limit::GPUS],
});
wire_struct!(GpuAdvert { name[limit::NAME], backend[limit::LABEL], kind[limit::LABEL] });
wire_struct!(LoadAdvert {
    sessions,
    queued,
    reserved_bytes,
    toil_percent
});
wire_struct!(ModelOffer { cid, name[limit::NAME], bytes, complete, present_bytes });
wire_struct!(Goodbye {
    peer,
    seq,
    issued_unix_ms
});

impl Message for Advert {
    const NAME: &'static str = "advert";
    const TAG: u8 = tag::ADVERT;
    const LIMIT: usize = limit::ADVERT;

    fn check(&self) -> Result<(), String> {
        if self.ttl_ms > limit::ADVERT_TTL_MS {
            return Err(format!(
                "ttl of {} ms is over {}",
                self.ttl_ms,
                limit::ADVERT_TTL_MS
            ));
        }
        let speed = self.body.measured_gb_s;
        if !speed.is_finite() || speed < 0.0 {
            return Err(format!("measured speed of {speed} GB/s"));
        }
        match self
            .body
            .models
            .iter()
            .find(|model| model.present_bytes > model.bytes)
        {
            Some(model) => Err(format!("more bytes present than {} has", model.cid)),
            None => Ok(()),
        }
    }
}

impl Message for Goodbye {
    const NAME: &'static str = "goodbye";
    const TAG: u8 = tag::GOODBYE;
    const LIMIT: usize = limit::ADVERT;
}

/// Everything that is gossiped in a swarm.
#[derive(Debug, Clone, PartialEq)]
pub enum Gossip {
    /// A node is there.
    Advert(Box<Advert>),
    /// A node leaves.
    Goodbye(Goodbye),
}

/// Why gossip is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdvertError {
    /// The bytes are not a message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer's key cannot be read off its id.
    #[error("peer {0} has no ed25519 identity, so its gossip cannot be checked")]
    UnknownKey(PeerId),
    /// Somebody else signed, or the content was changed.
    #[error("the signature on the gossip of peer {0} is wrong")]
    BadSignature(PeerId),
    /// It no longer holds.
    #[error(
        "the advert of peer {peer} expired {since_ms} ms ago; check that both clocks are right"
    )]
    Expired {
        /// Who signed it.
        peer: PeerId,
        /// How long ago it stopped holding.
        since_ms: u64,
    },
    /// It comes from a clock that is far ahead.
    #[error(
        "the advert of peer {peer} is dated {ahead_ms} ms in the future; check that both clocks are right"
    )]
    FromTheFuture {
        /// Who signed it.
        peer: PeerId,
        /// How far ahead of us its clock is.
        ahead_ms: u64,
    },
    /// We cannot sign.
    #[error("cannot sign gossip: {0}")]
    Signing(String),
}

struct Envelope {
    payload: Vec<u8>,
    signature: [u8; 64],
}

wire_struct!(Envelope { payload[limit::ADVERT], signature });

impl Message for Envelope {
    const NAME: &'static str = "gossip envelope";
    const TAG: u8 = tag::GOSSIP_ENVELOPE;
    const LIMIT: usize = limit::GOSSIP_ENVELOPE;
}

impl Gossip {
    /// Who speaks.
    pub fn peer(&self) -> PeerId {
        match self {
            Gossip::Advert(advert) => advert.peer,
            Gossip::Goodbye(goodbye) => goodbye.peer,
        }
    }

    /// The peer's sequence number.
    pub fn seq(&self) -> u64 {
        match self {
            Gossip::Advert(advert) => advert.seq,
            Gossip::Goodbye(goodbye) => goodbye.seq,
        }
    }

    /// Encodes and signs, with the key of the peer that speaks.
    pub fn seal(&self, keypair: &Keypair) -> Result<Vec<u8>, AdvertError> {
        let payload = match self {
            Gossip::Advert(advert) => encode(advert.as_ref())?,
            Gossip::Goodbye(goodbye) => encode(goodbye)?,
        };
        let signature = keypair
            .sign(&signed_bytes(&payload))
            .map_err(|error| AdvertError::Signing(error.to_string()))?;
        let signature = <[u8; 64]>::try_from(signature.as_slice())
            .map_err(|_| AdvertError::UnknownKey(keypair.public().to_peer_id()))?;
        Ok(encode(&Envelope { payload, signature })?)
    }

    /// Decodes and checks signature and time. That the sequence number is newer than the last one
    /// is for the caller to see, who remembers it.
    pub fn open(bytes: &[u8], now_unix_ms: u64) -> Result<Self, AdvertError> {
        let Envelope { payload, signature } = decode(bytes)?;
        let gossip = Self::from_payload(&payload)?;
        let peer = gossip.peer();
        let key = public_key_of(&peer).ok_or(AdvertError::UnknownKey(peer))?;
        if !key.verify(&signed_bytes(&payload), &signature) {
            return Err(AdvertError::BadSignature(peer));
        }
        gossip.check_time(now_unix_ms)?;
        Ok(gossip)
    }

    fn from_payload(payload: &[u8]) -> Result<Self, WireError> {
        match payload.first() {
            Some(&tag::GOODBYE) => decode(payload).map(Gossip::Goodbye),
            _ => decode(payload).map(|advert| Gossip::Advert(Box::new(advert))),
        }
    }

    fn check_time(&self, now_unix_ms: u64) -> Result<(), AdvertError> {
        let (peer, issued, ttl) = match self {
            Gossip::Advert(advert) => (advert.peer, advert.issued_unix_ms, advert.ttl_ms),
            Gossip::Goodbye(goodbye) => (goodbye.peer, goodbye.issued_unix_ms, 0),
        };
        let ahead_ms = issued.saturating_sub(now_unix_ms);
        if ahead_ms > limit::CLOCK_TOLERANCE_MS {
            return Err(AdvertError::FromTheFuture { peer, ahead_ms });
        }
        let since_ms = now_unix_ms.saturating_sub(issued.saturating_add(ttl));
        if since_ms > limit::CLOCK_TOLERANCE_MS {
            return Err(AdvertError::Expired { peer, since_ms });
        }
        Ok(())
    }
}

fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    [SIGNING_DOMAIN, payload].concat()
}

/// The public key that an ed25519 peer id holds: small keys are not hashed into the id.
pub(crate) fn public_key_of(peer: &PeerId) -> Option<PublicKey> {
    const IDENTITY_HASH: u64 = 0;
    let hash: &multihash::Multihash<64> = peer.as_ref();
    if hash.code() != IDENTITY_HASH {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    key.clone().try_into_ed25519().ok()?;
    Some(key)
}
