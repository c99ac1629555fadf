//! The swarm's identity, and the key that speaks for it.

use std::fmt;
use std::str::FromStr;

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use libp2p::identity::ed25519;
use libp2p::pnet::PreSharedKey;
use multihash_codetable::{Code, MultihashDigest};

use crate::wire::Wire;

/// Names a swarm: SHA-256 over what is public about it. Topics and certificates carry it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwarmId([u8; 32]);

impl SwarmId {
    /// Of a private swarm: its name and its authority.
    pub(super) fn private(name: &str, authority: &AuthorityId) -> Self {
        Self(sha256(&[
            b"accel private swarm 1\0",
            &authority.0,
            name.as_bytes(),
        ]))
    }

    /// Of a public swarm: its name.
    pub(super) fn public(name: &str) -> Self {
        Self(sha256(&[b"accel public swarm 1\0", name.as_bytes()]))
    }

    /// The bytes of the id.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmId({self})")
    }
}

impl Wire for SwarmId {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        Wire::take(decoder).map(Self)
    }
}

/// Public half of the authority key: checks certificates and invites.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuthorityId([u8; 32]);

impl AuthorityId {
    /// Whether the authority signed `message`.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        ed25519::PublicKey::try_from_bytes(&self.0).is_ok_and(|key| key.verify(message, signature))
    }
}

impl fmt::Display for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthorityId({self})")
    }
}

impl Wire for AuthorityId {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        Wire::take(decoder).map(Self)
    }
}

/// 32 bytes that must not be shown: the pre-shared key, or the seed of the authority key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub [u8; 32]);

impl Secret {
    pub fn random() -> Self {
        Self(rand::random())
    }

    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    pub fn pre_shared_key(&self) -> PreSharedKey {
        PreSharedKey::new(self.0)
    }
}

impl FromStr for Secret {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Wire for Secret {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        Wire::take(decoder).map(Self)
    }
}

/// The authority key itself; its seed is the secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Authority {
    pub seed: Secret,
}

impl Authority {
    pub fn id(&self) -> AuthorityId {
        AuthorityId(self.keypair().public().to_bytes())
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.keypair().sign(message);
        signature
            .try_into()
            .expect("an ed25519 signature has 64 bytes")
    }

    fn keypair(&self) -> ed25519::Keypair {
        let secret = ed25519::SecretKey::try_from_bytes(self.seed.0)
            .expect("any 32 bytes are an ed25519 seed");
        ed25519::Keypair::from(secret)
    }
}

/// SHA-256 over the parts, one after the other.
pub(super) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let hash = Code::Sha2_256.digest(&parts.concat());
    hash.digest()
        .try_into()
        .expect("a SHA-256 digest has 32 bytes")
}
