//! Which swarm a node belongs to: from its settings, else from what the data directory remembers.
//!
//! | Given | Then |
//! |---|---|
//! | a key file | the private swarm of the key; this node may invite |
//! | an invite | the invite's swarm; the certificate of an earlier join is used again |
//! | a name | the public swarm of that name |
//! | nothing | what was remembered, else the public swarm |

use std::path::Path;

use accel_p2p::{
    Invite, JoinTarget, Keypair, Multiaddr, PeerId, SwarmKey, SwarmMembership, unix_ms,
};
use accel_storage::DataDir;

use crate::config::NodeConfig;
use crate::error::StartError;

/// The public swarm of nodes that are told nothing else.
pub const DEFAULT_SWARM: &str = "public";
/// Where the membership is remembered in the data directory.
const FILE: &str = "membership";
const INVITE_PREFIX: &str = accel_p2p::membership::INVITE_PREFIX;

/// Whom a node is, and by whom it joins.
pub(crate) struct Standing {
    pub(crate) membership: SwarmMembership,
    pub(crate) join: Vec<JoinTarget>,
}

/// The key of an identity.
pub(crate) fn keypair_of(seed: [u8; 32]) -> Result<Keypair, StartError> {
    let keypair = Keypair::ed25519_from_bytes(seed);
    keypair.map_err(|error| StartError::Conflict(error.to_string()))
}

pub(crate) fn standing(
    config: &NodeConfig,
    data: &DataDir,
    own: PeerId,
) -> Result<Standing, StartError> {
    let join = join_targets(&config.join)?;
    let remembered = remembered(data)?;
    let invite = join.iter().find_map(|target| match target {
        JoinTarget::Invite(invite) => Some(invite.as_ref()),
        JoinTarget::Addr(_) => None,
    });
    let membership = match (&config.swarm_key, &config.swarm, invite) {
        (Some(_), Some(_), _) => {
            let reason = "a node is in a public swarm (--swarm) or a private one (--swarm-key)";
            return Err(StartError::Conflict(reason.to_owned()));
        }
        (None, Some(_), Some(_)) => {
            let reason = "an invite leads to a private swarm: leave --swarm away";
            return Err(StartError::Conflict(reason.to_owned()));
        }
        (Some(path), None, invite) => {
            let key = read_key(path)?;
            if invite.is_some_and(|invite| invite.swarm_id() != key.swarm_id()) {
                let reason = "the invite and the key file belong to different swarms";
                return Err(StartError::Conflict(reason.to_owned()));
            }
            SwarmMembership::from_key(&key, own, unix_ms())
        }
        (None, None, Some(invite)) => by_invite(invite, remembered),
        (None, Some(name), None) => SwarmMembership::public(name),
        (None, None, None) => remembered.unwrap_or_else(|| SwarmMembership::public(DEFAULT_SWARM)),
    };
    Ok(Standing { membership, join })
}

/// A member that comes back keeps its certificate, also when the invite has expired meanwhile.
fn by_invite(invite: &Invite, remembered: Option<SwarmMembership>) -> SwarmMembership {
    let same = remembered.filter(|known| known.swarm_id() == invite.swarm_id());
    same.unwrap_or_else(|| SwarmMembership::from_invite(invite))
}

fn read_key(path: &Path) -> Result<SwarmKey, StartError> {
    let text = std::fs::read_to_string(path).map_err(|source| StartError::KeyFile {
        path: path.display().to_string(),
        source,
    })?;
    Ok(text.parse()?)
}

fn join_targets(texts: &[String]) -> Result<Vec<JoinTarget>, StartError> {
    let target = |text: &String| -> Result<JoinTarget, StartError> {
        if text.starts_with(INVITE_PREFIX) {
            let invite = text.parse::<Invite>();
            let invite = invite.map_err(|error| bad_address("invite", text, &error))?;
            return Ok(JoinTarget::Invite(Box::new(invite)));
        }
        multiaddr("join address", text).map(JoinTarget::Addr)
    };
    texts.iter().map(target).collect()
}

/// Parses an address that a person typed.
pub(crate) fn multiaddr(what: &'static str, text: &str) -> Result<Multiaddr, StartError> {
    let parsed = text.parse::<Multiaddr>();
    parsed.map_err(|error| bad_address(what, text, &error))
}

fn bad_address(what: &'static str, text: &str, error: &dyn std::fmt::Display) -> StartError {
    StartError::BadAddress {
        what,
        text: text.to_owned(),
        reason: error.to_string(),
    }
}

fn remembered(data: &DataDir) -> Result<Option<SwarmMembership>, StartError> {
    let Some(bytes) = data.read_file(FILE)? else {
        return Ok(None);
    };
    let membership = SwarmMembership::from_bytes(&bytes);
    membership.map(Some).map_err(|error| unusable(data, &error))
}

/// Remembers the membership, with the certificate that a join brought.
pub(crate) fn remember(data: &DataDir, membership: &SwarmMembership) -> Result<(), StartError> {
    let bytes = membership
        .to_bytes()
        .map_err(|error| unusable(data, &error))?;
    Ok(data.write_file(FILE, &bytes)?)
}

fn unusable(data: &DataDir, error: &dyn std::fmt::Display) -> StartError {
    StartError::Membership {
        path: data.path().display().to_string(),
        reason: error.to_string(),
    }
}
