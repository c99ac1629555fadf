//! Join: a newcomer shows its invite to a node that holds the swarm's authority key, and gets a
//! certificate for the peer id that the connection proved.

use libp2p::Multiaddr;

use super::{Message, clip, limit, tag, wire_enum, wire_struct};
use crate::membership::{Certificate, Invite};

/// A newcomer asks to be let in.
#[derive(Debug, Clone, PartialEq)]
pub struct JoinRequest {
    /// What it was given.
    pub invite: Invite,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub enum JoinResponse {
    /// The newcomer is a member.
    Welcome {
        /// For the caller's peer id.
        certificate: Certificate,
        /// Further members to dial.
        addrs: Vec<Multiaddr>,
    },
    /// It is not.
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// What to do about it.
        hint: String,
    },
}

wire_struct!(JoinRequest { invite });
wire_enum!(JoinResponse {
    1 => Welcome { certificate, addrs[limit::ADDRS] },
    2 => Refused { code[limit::LABEL], message[limit::MESSAGE], hint[limit::MESSAGE] },
});

impl JoinResponse {
    /// A refusal whose texts are cut to what may travel.
    pub fn refused(code: &str, message: &str, hint: &str) -> Self {
        Self::Refused {
            code: clip(code, limit::LABEL),
            message: clip(message, limit::MESSAGE),
            hint: clip(hint, limit::MESSAGE),
        }
    }
}

impl Message for JoinRequest {
    const NAME: &'static str = "join request";
    const TAG: u8 = tag::JOIN_REQUEST;
    const LIMIT: usize = limit::JOIN_REQUEST;
}

impl Message for JoinResponse {
    const NAME: &'static str = "join response";
    const TAG: u8 = tag::JOIN_RESPONSE;
    const LIMIT: usize = limit::JOIN_RESPONSE;
}
