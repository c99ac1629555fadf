//! Invites: a text that lets one more node into a private swarm.
//!
//! `accel-invite:` and base64url (without padding) of the encoded [`Invite`] and, behind it, the
//! first four bytes of its SHA-256: a text that lost its end in a chat window is told apart from
//! one that somebody changed. It holds the pre-shared key: it is a secret until it is used, and
//! whoever reads it before it expires can join.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use cid::multibase::Base;
use libp2p::Multiaddr;
use libp2p::pnet::PreSharedKey;

use super::authority::{Authority, AuthorityId, Secret, SwarmId, sha256};
use crate::wire::{Message, WireError, decode, encode, limit, tag, wire_struct};

/// How the text of an invite begins.
pub const INVITE_PREFIX: &str = "accel-invite:";

const SIGNING_DOMAIN: &[u8] = b"accel invite 1\0";
const CHECKSUM_BYTES: usize = 4;

/// All that a newcomer needs to reach a private swarm and be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Tells invites apart.
    pub id: [u8; 16],
    /// Name of the swarm.
    pub name: String,
    /// Checks certificates.
    pub authority: AuthorityId,
    /// Where to knock.
    pub addrs: Vec<Multiaddr>,
    /// Until when it opens the door.
    pub expires_unix_ms: u64,
    psk: Secret,
    signature: [u8; 64],
}

wire_struct!(Invite {
    id,
    name[limit::NAME],
    authority,
    addrs[limit::ADDRS],
    expires_unix_ms,
    psk,
    signature,
});

impl Message for Invite {
    const NAME: &'static str = "invite";
    const TAG: u8 = tag::INVITE;
    const LIMIT: usize = limit::INVITE;
}

/// Why an invite does not open the door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// The text is not an invite.
    #[error(
        "this is not an invite ({reason}); copy the whole text that `accel swarm invite` printed"
    )]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// It was good once.
    #[error("the invite expired {since:?} ago; ask for a new one (`accel swarm invite`)")]
    Expired {
        /// How long ago.
        since: Duration,
    },
    /// It is for another swarm.
    #[error("the invite is for swarm \"{found}\", but this node belongs to \"{expected}\"")]
    WrongSwarm {
        /// The swarm it is checked for.
        expected: String,
        /// The swarm it names.
        found: String,
    },
    /// The authority did not sign this.
    #[error(
        "the invite was not signed by its swarm's authority: it was changed or made up; ask for a new one"
    )]
    BadSignature,
    /// This node cannot invite or let in.
    #[error(
        "this node does not hold the swarm's key; invite from the node that was started with --swarm-key"
    )]
    NoAuthority,
    /// It cannot be written down.
    #[error("the invite cannot be made: {0}")]
    Unsendable(WireError),
}

impl Invite {
    pub(super) fn issue(
        authority: &Authority,
        name: &str,
        psk: &Secret,
        addrs: Vec<Multiaddr>,
        expires_unix_ms: u64,
    ) -> Result<Self, InviteError> {
        let mut invite = Self {
            id: rand::random(),
            name: name.to_owned(),
            authority: authority.id(),
            addrs,
            expires_unix_ms,
            psk: psk.clone(),
            signature: [0; 64],
        };
        invite.signature = authority.sign(&invite.signed_bytes()?);
        Ok(invite)
    }

    /// The swarm it leads to.
    pub fn swarm_id(&self) -> SwarmId {
        SwarmId::private(&self.name, &self.authority)
    }

    /// Guards the swarm's TCP connections.
    pub fn psk(&self) -> PreSharedKey {
        self.psk.pre_shared_key()
    }

    pub(super) fn secret(&self) -> &Secret {
        &self.psk
    }

    /// Checks the signature against the authority that the invite names, and the time.
    pub fn verify(&self, now_unix_ms: u64) -> Result<(), InviteError> {
        if !self
            .authority
            .verify(&self.signed_bytes()?, &self.signature)
        {
            return Err(InviteError::BadSignature);
        }
        if now_unix_ms >= self.expires_unix_ms {
            let since = Duration::from_millis(now_unix_ms - self.expires_unix_ms);
            return Err(InviteError::Expired { since });
        }
        Ok(())
    }

    /// Everything but the signature, behind the domain.
    fn signed_bytes(&self) -> Result<Vec<u8>, InviteError> {
        let unsigned = Self {
            signature: [0; 64],
            ..self.clone()
        };
        let bytes = encode(&unsigned).map_err(InviteError::Unsendable)?;
        Ok([SIGNING_DOMAIN, &bytes].concat())
    }
}

/// The text form.
impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = encode(self).map_err(|_| fmt::Error)?;
        bytes.extend_from_slice(&checksum(&bytes));
        write!(f, "{INVITE_PREFIX}{}", Base::Base64Url.encode(bytes))
    }
}

/// Parses the text form; says nothing about validity, see [`Invite::verify`].
impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = |reason: &str| InviteError::Malformed {
            reason: reason.into(),
        };
        let encoded = text
            .trim()
            .strip_prefix(INVITE_PREFIX)
            .ok_or_else(|| malformed("it does not begin with accel-invite:"))?;
        if encoded.len() > 2 * limit::INVITE {
            return Err(malformed("it is too long"));
        }
        let bytes = Base::Base64Url.decode(encoded).map_err(|_| {
            malformed("it holds characters that invites do not have, or lost its end")
        })?;
        let (body, sum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or_else(|| malformed("it is too short"))?;
        if *sum != checksum(body) {
            return Err(malformed("some of it is missing or changed"));
        }
        decode(body).map_err(|error| malformed(&error.to_string()))
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *sha256(&[bytes])
        .first_chunk()
        .expect("a digest is longer than the checksum")
}
