//! The proof of membership that a peer shows in its advert.

use std::time::Duration;

use libp2p::PeerId;

use super::authority::{Authority, AuthorityId, SwarmId};
use crate::wire::{Message, WireError, decode, encode, limit, tag, wire_struct};

/// How long a certificate holds: a year. Nodes that hold the authority key renew their own.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const SIGNING_DOMAIN: &[u8] = b"accel certificate 1\0";

/// The authority of a swarm says: this peer is a member, from then until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Which swarm.
    pub swarm: SwarmId,
    /// Who is a member.
    pub peer: PeerId,
    /// From when on.
    pub issued_unix_ms: u64,
    /// Until when.
    pub expires_unix_ms: u64,
    /// The authority's signature over all of the above.
    pub signature: [u8; 64],
}

wire_struct!(Certificate {
    swarm,
    peer,
    issued_unix_ms,
    expires_unix_ms,
    signature
});

impl Message for Certificate {
    const NAME: &'static str = "certificate";
    const TAG: u8 = tag::CERTIFICATE;
    const LIMIT: usize = limit::CERTIFICATE;
}

/// Why a certificate does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// There is none.
    #[error("peer {0} shows no certificate of this swarm; it must join with an invite")]
    Missing(PeerId),
    /// The bytes are not a certificate.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It is for another swarm.
    #[error("the certificate is for swarm {found}, this one is {expected}")]
    WrongSwarm {
        /// The swarm it is checked for.
        expected: SwarmId,
        /// The swarm it names.
        found: SwarmId,
    },
    /// It is for another peer.
    #[error("the certificate belongs to peer {found}, not to {expected}")]
    WrongPeer {
        /// Who shows it.
        expected: PeerId,
        /// Whom it names.
        found: Box<PeerId>,
    },
    /// It no longer holds.
    #[error(
        "the certificate of peer {peer} expired {since:?} ago; the peer must join with a new invite"
    )]
    Expired {
        /// Whose it is.
        peer: PeerId,
        /// How long ago it stopped holding.
        since: Duration,
    },
    /// It does not hold yet.
    #[error(
        "the certificate of peer {peer} holds only in {ahead:?}; check that both clocks are right"
    )]
    NotYetValid {
        /// Whose it is.
        peer: PeerId,
        /// How far ahead of us its issuer's clock is.
        ahead: Duration,
    },
    /// The authority did not sign this.
    #[error("the certificate of peer {0} was not signed by this swarm's authority")]
    BadSignature(PeerId),
}

impl Certificate {
    pub(super) fn issue(
        authority: &Authority,
        swarm: SwarmId,
        peer: PeerId,
        now_unix_ms: u64,
        lifetime: Duration,
    ) -> Self {
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let mut certificate = Self {
            swarm,
            peer,
            issued_unix_ms: now_unix_ms,
            expires_unix_ms: now_unix_ms.saturating_add(lifetime_ms),
            signature: [0; 64],
        };
        certificate.signature = authority.sign(&certificate.signed_bytes());
        certificate
    }

    /// Whether it makes `peer` a member of `swarm` now.
    pub fn verify(
        &self,
        authority: &AuthorityId,
        swarm: SwarmId,
        peer: PeerId,
        now_unix_ms: u64,
    ) -> Result<(), CertificateError> {
        if self.swarm != swarm {
            return Err(CertificateError::WrongSwarm {
                expected: swarm,
                found: self.swarm,
            });
        }
        if self.peer != peer {
            return Err(CertificateError::WrongPeer {
                expected: peer,
                found: Box::new(self.peer),
            });
        }
        if !authority.verify(&self.signed_bytes(), &self.signature) {
            return Err(CertificateError::BadSignature(peer));
        }
        self.check_time(now_unix_ms)
    }

    fn check_time(&self, now_unix_ms: u64) -> Result<(), CertificateError> {
        let peer = self.peer;
        let ahead = self.issued_unix_ms.saturating_sub(now_unix_ms);
        if ahead > limit::CLOCK_TOLERANCE_MS {
            return Err(CertificateError::NotYetValid {
                peer,
                ahead: Duration::from_millis(ahead),
            });
        }
        if now_unix_ms >= self.expires_unix_ms {
            let since = Duration::from_millis(now_unix_ms - self.expires_unix_ms);
            return Err(CertificateError::Expired { peer, since });
        }
        Ok(())
    }

    /// As bytes, for a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self).expect("a certificate has no parts of variable length but the peer id")
    }

    /// From [`to_bytes`](Self::to_bytes); says nothing about validity.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CertificateError> {
        Ok(decode(bytes)?)
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let times = [
            self.issued_unix_ms.to_le_bytes(),
            self.expires_unix_ms.to_le_bytes(),
        ];
        let peer = self.peer.to_bytes();
        [
            SIGNING_DOMAIN,
            self.swarm.as_bytes(),
            &times.concat(),
            &peer,
        ]
        .concat()
    }
}
