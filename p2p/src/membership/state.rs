//! What a node keeps about the swarm it belongs to.

use std::time::Duration;

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use libp2p::pnet::PreSharedKey;
use libp2p::{Multiaddr, PeerId};

use super::authority::{Authority, AuthorityId, Secret, SwarmId, sha256};
use super::certificate::{CERTIFICATE_LIFETIME, Certificate, CertificateError};
use super::invite::{Invite, InviteError};
use super::key_file::SwarmKey;
use crate::wire::{Message, Wire, WireError, decode, encode, limit, tag, wire_enum, wire_struct};

/// The swarm of a node, and the node's standing in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwarmMembership {
    /// Everybody who knows the name belongs to it.
    Public {
        /// Its name.
        name: String,
    },
    /// Only who was let in belongs to it.
    Private {
        /// What this node knows of it.
        private: Box<PrivateMembership>,
    },
}

/// What a node knows of its private swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateMembership {
    name: String,
    psk: Secret,
    authority_id: AuthorityId,
    certificate: Option<Certificate>,
    authority: Option<Authority>,
}

impl SwarmMembership {
    /// A public swarm.
    pub fn public(name: &str) -> Self {
        Self::Public {
            name: name.to_owned(),
        }
    }

    /// For the holder of the swarm key: certifies itself and may let others in.
    pub fn from_key(key: &SwarmKey, own_peer: PeerId, now_unix_ms: u64) -> Self {
        let certificate = key.issue_certificate(own_peer, now_unix_ms, CERTIFICATE_LIFETIME);
        let private = PrivateMembership {
            name: key.name.clone(),
            psk: key.psk.clone(),
            authority_id: key.authority_id(),
            certificate: Some(certificate),
            authority: Some(key.authority.clone()),
        };
        Self::Private {
            private: Box::new(private),
        }
    }

    /// For a newcomer: can reach the swarm, but is no member before it got a certificate.
    pub fn from_invite(invite: &Invite) -> Self {
        let private = PrivateMembership {
            name: invite.name.clone(),
            psk: invite.secret().clone(),
            authority_id: invite.authority,
            certificate: None,
            authority: None,
        };
        Self::Private {
            private: Box::new(private),
        }
    }

    /// Takes in the certificate that a join brought, after checking it.
    pub fn accept_certificate(
        &mut self,
        certificate: Certificate,
        own_peer: PeerId,
        now_unix_ms: u64,
    ) -> Result<(), CertificateError> {
        self.admit(own_peer, Some(&certificate), now_unix_ms)?;
        if let Self::Private { private } = self {
            private.certificate = Some(certificate);
        }
        Ok(())
    }

    /// Name of the swarm.
    pub fn name(&self) -> &str {
        match self {
            Self::Public { name } => name,
            Self::Private { private } => &private.name,
        }
    }

    /// Names the swarm on the wire.
    pub fn swarm_id(&self) -> SwarmId {
        match self {
            Self::Public { name } => SwarmId::public(name),
            Self::Private { private } => SwarmId::private(&private.name, &private.authority_id),
        }
    }

    /// Whether only members get anything.
    pub fn is_private(&self) -> bool {
        self.private().is_some()
    }

    /// Guards TCP connections, in a private swarm.
    pub fn psk(&self) -> Option<PreSharedKey> {
        self.private().map(|private| private.psk.pre_shared_key())
    }

    /// What this node shows to others; `None` in a public swarm and before joining.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.private()?.certificate.as_ref()
    }

    /// Whether this node may invite and let in.
    pub fn holds_authority(&self) -> bool {
        self.private()
            .is_some_and(|private| private.authority.is_some())
    }

    /// Whether a peer that shows `certificate` belongs to the swarm.
    pub fn admit(
        &self,
        peer: PeerId,
        certificate: Option<&Certificate>,
        now_unix_ms: u64,
    ) -> Result<(), CertificateError> {
        let Some(private) = self.private() else {
            return Ok(());
        };
        let certificate = certificate.ok_or(CertificateError::Missing(peer))?;
        certificate.verify(&private.authority_id, self.swarm_id(), peer, now_unix_ms)
    }

    /// Makes an invite that leads to `addrs`; only holders of the authority key can.
    pub fn create_invite(
        &self,
        addrs: Vec<Multiaddr>,
        ttl: Duration,
        now_unix_ms: u64,
    ) -> Result<Invite, InviteError> {
        self.key()?.issue_invite(addrs, ttl, now_unix_ms)
    }

    /// Lets a newcomer in, if its invite is good; only holders of the authority key can.
    pub fn accept_invite(
        &self,
        invite: &Invite,
        newcomer: PeerId,
        now_unix_ms: u64,
    ) -> Result<Certificate, InviteError> {
        let key = self.key()?;
        if invite.swarm_id() != key.swarm_id() {
            let (expected, found) = (key.name, invite.name.clone());
            return Err(InviteError::WrongSwarm { expected, found });
        }
        invite.verify(now_unix_ms)?;
        Ok(key.issue_certificate(newcomer, now_unix_ms, CERTIFICATE_LIFETIME))
    }

    /// For the data directory: the encoded value and its checksum. Holds secrets.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WireError> {
        let mut bytes = encode(self)?;
        bytes.extend_from_slice(&sha256(&[&bytes]));
        Ok(bytes)
    }

    /// From [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let message = Self::NAME;
        let (body, checksum) = bytes
            .split_last_chunk::<32>()
            .ok_or(WireError::Truncated { message })?;
        if *checksum != sha256(&[body]) {
            let reason = "its checksum is wrong".to_owned();
            return Err(WireError::Malformed { message, reason });
        }
        decode(body)
    }

    fn private(&self) -> Option<&PrivateMembership> {
        match self {
            Self::Public { .. } => None,
            Self::Private { private } => Some(private),
        }
    }

    fn key(&self) -> Result<SwarmKey, InviteError> {
        let private = self.private().ok_or(InviteError::NoAuthority)?;
        let authority = private.authority.clone().ok_or(InviteError::NoAuthority)?;
        Ok(SwarmKey {
            name: private.name.clone(),
            psk: private.psk.clone(),
            authority,
        })
    }
}

wire_enum!(SwarmMembership {
    1 => Public { name[limit::NAME] },
    2 => Private { private },
});
wire_struct!(PrivateMembership { name[limit::NAME], psk, authority_id, certificate, authority });

impl Message for SwarmMembership {
    const NAME: &'static str = "membership";
    const TAG: u8 = tag::MEMBERSHIP;
    const LIMIT: usize = limit::MEMBERSHIP;

    fn check(&self) -> Result<(), String> {
        let authority = self
            .private()
            .and_then(|private| private.authority.as_ref());
        let expected = self.private().map(|private| private.authority_id);
        match authority {
            Some(authority) if Some(authority.id()) != expected => {
                Err("its authority key is not the swarm's".into())
            }
            _ => Ok(()),
        }
    }
}

impl Wire for Authority {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.seed.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        Secret::take(decoder).map(|seed| Self { seed })
    }
}
