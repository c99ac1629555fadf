//! Replicas: the journal of a session with `fault_tolerance: high` is also on two other nodes, and that
//! of a session whose node stops on one.
//!
//! A coordinator opens a stream to each of them and appends; what they have said is durable may be
//! emitted (`session/replicator.rs`, `session/machine/replicating.rs`). A node that keeps a session
//! has it in its own journal like one of its own that waits for a client, but marked as kept: so the
//! client can come back to it, and the session goes on there as it would at home. Who does not have
//! a session asks its peers for it.
//!
//! | File | Holds |
//! |---|---|
//! | `choose.rs` | which peers are to keep a session |
//! | `keeper.rs` | what a node does for coordinators elsewhere |
//! | `pages.rs` | how a session is told to those who ask for it |
//! | `tenure.rs` | which sessions are kept just now, and since when no longer |
//! | `quota.rs` | how much each peer may have kept |
//! | `copy.rs` | finding a session at the peers, and taking it into the own journal |

pub(crate) mod choose;
pub(crate) mod copy;
pub(crate) mod keeper;
mod pages;
mod quota;
pub(crate) mod tenure;

use std::sync::Arc;

use accel_p2p::{Network, PeerId, ReplicaReply, ReplicaRequest, ReplicaStream};
use async_trait::async_trait;

use crate::error::{ErrorKind, Failure};
use crate::peers::unanswered;

/// Other nodes, as far as replicas need them.
#[async_trait]
pub(crate) trait Replicas: Send + Sync {
    /// The peers that are connected.
    fn connected(&self) -> Vec<PeerId>;
    /// Opens a stream to a peer.
    async fn open(&self, peer: PeerId) -> Result<Box<dyn ReplicaLink>, Failure>;
}

/// A stream to a peer: one request at a time, in order.
#[async_trait]
pub(crate) trait ReplicaLink: Send {
    /// Sends a request and waits for its reply. After an error the link is of no more use.
    async fn ask(&mut self, request: &ReplicaRequest) -> Result<ReplicaReply, Failure>;
}

/// The real network.
pub(crate) struct NetworkReplicas(Network);

impl NetworkReplicas {
    pub(crate) fn new(network: Network) -> Arc<Self> {
        Arc::new(Self(network))
    }
}

#[async_trait]
impl Replicas for NetworkReplicas {
    fn connected(&self) -> Vec<PeerId> {
        self.0.connected()
    }

    async fn open(&self, peer: PeerId) -> Result<Box<dyn ReplicaLink>, Failure> {
        let opened = self.0.replica(peer).await;
        let stream = opened.map_err(|error| unanswered(peer, &error))?;
        Ok(Box::new(NetworkLink(stream)))
    }
}

struct NetworkLink(ReplicaStream);

#[async_trait]
impl ReplicaLink for NetworkLink {
    async fn ask(&mut self, request: &ReplicaRequest) -> Result<ReplicaReply, Failure> {
        let peer = self.0.peer();
        let asked = self.0.ask(request).await;
        match asked.map_err(|error| unanswered(peer, &error))? {
            ReplicaReply::Refused {
                code,
                message,
                hint,
            } => {
                let message = format!("peer {peer} does not keep the session: {message}");
                Err(Failure::new(ErrorKind::Unavailable, code, message, hint))
            }
            reply => Ok(reply),
        }
    }
}

/// A reply that does not fit its request.
pub(crate) fn strange() -> Failure {
    let hint = "update accel on all nodes if it happens again";
    Failure::unavailable("bad_reply", "a replica gave no proper answer", hint)
}
