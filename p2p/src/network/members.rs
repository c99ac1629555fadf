//! Who belongs to the swarm, as far as this node has been shown.
//!
//! In a public swarm everybody does. In a private one a peer counts from the moment it has shown
//! a valid certificate until that certificate expires; until then it is served nothing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use tokio::sync::watch;

use crate::clock::unix_ms;
use crate::membership::{Certificate, CertificateError, Invite, InviteError, SwarmMembership};
use crate::tensor::Admission;

/// How long a request waits for the certificate of its sender, which may still be on its way.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// The gate that every service asks before it serves.
#[derive(Debug)]
pub(crate) struct Members {
    own_peer: PeerId,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    swarm: SwarmMembership,
    /// Members by the time at which their certificates expire.
    admitted: HashMap<PeerId, u64>,
}

impl Members {
    pub(crate) fn new(own_peer: PeerId, swarm: SwarmMembership) -> Self {
        let state = State {
            swarm,
            admitted: HashMap::new(),
        };
        Self {
            own_peer,
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node's standing in the swarm.
    pub(crate) fn membership(&self) -> SwarmMembership {
        self.state().swarm.clone()
    }

    pub(crate) fn is_private(&self) -> bool {
        self.state().swarm.is_private()
    }

    /// What this node shows to others.
    pub(crate) fn own_certificate(&self) -> Option<Certificate> {
        self.state().swarm.certificate().cloned()
    }

    /// Whether this node can take part: it is a member itself, or needs not be.
    pub(crate) fn may_take_part(&self) -> Result<(), CertificateError> {
        let state = self.state();
        let certificate = state.swarm.certificate();
        state.swarm.admit(self.own_peer, certificate, unix_ms())
    }

    /// Takes in the certificate that a join brought.
    pub(crate) fn accept_certificate(
        &self,
        certificate: Certificate,
    ) -> Result<(), CertificateError> {
        self.state()
            .swarm
            .accept_certificate(certificate, self.own_peer, unix_ms())?;
        self.changed.send_replace(());
        Ok(())
    }

    /// Checks what a peer shows and remembers the peer as a member.
    pub(crate) fn admit(
        &self,
        peer: PeerId,
        certificate: Option<&Certificate>,
    ) -> Result<(), CertificateError> {
        let mut state = self.state();
        let now = unix_ms();
        state.swarm.admit(peer, certificate, now)?;
        let Some(certificate) = certificate.filter(|_| state.swarm.is_private()) else {
            return Ok(());
        };
        let expires = certificate.expires_unix_ms;
        let is_new = state.admitted.insert(peer, expires) != Some(expires);
        if is_new {
            state.admitted.retain(|_, expires| *expires > now);
            drop(state);
            self.changed.send_replace(());
        }
        Ok(())
    }

    /// Whether the peer may be served.
    pub(crate) fn is_member(&self, peer: &PeerId) -> bool {
        let state = self.state();
        let expires = state.admitted.get(peer);
        !state.swarm.is_private() || expires.is_some_and(|expires| *expires > unix_ms())
    }

    /// Whether the peer may be served, now or within `limit`.
    pub(crate) async fn wait_for(&self, peer: &PeerId, limit: Duration) -> bool {
        self.wait_until(limit, || self.is_member(peer)).await
    }

    /// Waits until this node has a certificate to show, or needs none.
    pub(crate) async fn wait_for_own(&self, limit: Duration) -> bool {
        self.wait_until(limit, || self.may_take_part().is_ok())
            .await
    }

    async fn wait_until(&self, limit: Duration, holds: impl Fn() -> bool) -> bool {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !holds() {
                if changed.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(limit, waiting).await.unwrap_or(false)
    }

    /// Answers a newcomer's invite with a certificate.
    pub(crate) fn accept_invite(
        &self,
        invite: &Invite,
        newcomer: PeerId,
    ) -> Result<Certificate, InviteError> {
        self.state()
            .swarm
            .accept_invite(invite, newcomer, unix_ms())
    }
}

/// Members show their certificates to each other on the tensor plane, too.
impl Admission for Members {
    fn own_certificate(&self) -> Option<Certificate> {
        self.own_certificate()
    }

    fn admit(
        &self,
        peer: &PeerId,
        certificate: Option<&Certificate>,
    ) -> Result<(), CertificateError> {
        self.admit(*peer, certificate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::SwarmKey;

    fn private(own_peer: PeerId) -> (SwarmKey, Members) {
        let key = SwarmKey::generate("test").unwrap();
        let swarm = SwarmMembership::from_key(&key, own_peer, unix_ms());
        (key, Members::new(own_peer, swarm))
    }

    #[test]
    fn in_a_public_swarm_everybody_is_a_member() {
        let members = Members::new(PeerId::random(), SwarmMembership::public("open"));
        assert!(members.is_member(&PeerId::random()));
    }

    #[test]
    fn in_a_private_swarm_a_certificate_makes_the_member() {
        let (key, members) = private(PeerId::random());
        let (friend, stranger) = (PeerId::random(), PeerId::random());
        let certificate = key.issue_certificate(friend, unix_ms(), Duration::from_secs(60));
        assert!(!members.is_member(&friend));
        assert!(members.admit(stranger, Some(&certificate)).is_err());
        assert!(members.admit(stranger, None).is_err());
        members.admit(friend, Some(&certificate)).unwrap();
        assert!(members.is_member(&friend));
        assert!(!members.is_member(&stranger));
    }

    #[tokio::test]
    async fn a_request_waits_for_the_certificate_of_its_sender() {
        let (key, members) = private(PeerId::random());
        let friend = PeerId::random();
        let certificate = key.issue_certificate(friend, unix_ms(), Duration::from_secs(60));
        let waiting = members.wait_for(&friend, Duration::from_secs(30));
        let showing = async { members.admit(friend, Some(&certificate)) };
        let (is_member, shown) = tokio::join!(waiting, showing);
        shown.unwrap();
        assert!(is_member);
        assert!(
            !members
                .wait_for(&PeerId::random(), Duration::from_millis(1))
                .await
        );
    }
}
