//! The seam between the actors and the network: what a session and a stage server need of other
//! nodes. The real one is [`NetworkPeers`]; tests put several nodes into one process behind it.

use std::sync::Arc;
use std::time::Duration;

use accel_p2p::wire::{ControlReply, ControlRequest, PeerEndpoint, TensorFrame};
use accel_p2p::{ControlError, FetchError, Network, NetworkError, PeerId};
use accel_storage::{BlockSource, BlockSourceError};
use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::error::{Failure, PEER_SILENT};

/// Replies to a control call; the last one is final. Dropping them ends the call.
pub(crate) type Replies = BoxStream<'static, Result<ControlReply, Failure>>;

/// Other nodes, as far as sessions and stages need them.
#[async_trait]
pub(crate) trait Peers: Send + Sync {
    /// This node, as others reach its tensor plane.
    fn endpoint(&self) -> PeerEndpoint;
    /// Asks a peer for something.
    async fn control(&self, peer: PeerId, request: ControlRequest) -> Result<Replies, Failure>;
    /// Sends a frame; frames to one peer arrive in order.
    async fn send(&self, to: &PeerEndpoint, frame: TensorFrame) -> Result<(), Failure>;
    /// Blocks from these providers, or from anybody connected when there are none.
    fn blocks(&self, providers: Vec<PeerId>) -> Box<dyn BlockSource>;
    /// How many peers are connected.
    fn connected(&self) -> usize;
    /// Bytes per second at which large frames came in lately; 0 while none came.
    fn plane_bytes_s(&self) -> u64;
}

/// The real network.
pub(crate) struct NetworkPeers {
    network: Network,
    block_timeout: Duration,
}

impl NetworkPeers {
    pub(crate) fn new(network: Network, block_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            network,
            block_timeout,
        })
    }
}

fn unreachable(peer: PeerId, reason: impl std::fmt::Display) -> Failure {
    Failure::unavailable(
        "peer_unreachable",
        format!("peer {peer} cannot be reached: {reason}"),
        "send the request again; `accel peers` shows who is there",
    )
}

/// Why a call came to nothing: a peer that says nothing may hang.
pub(crate) fn unanswered(peer: PeerId, error: &ControlError) -> Failure {
    let mut failure = unreachable(peer, error);
    if matches!(error, ControlError::Network(NetworkError::TimedOut { .. })) {
        PEER_SILENT.clone_into(&mut failure.code);
    }
    failure
}

#[async_trait]
impl Peers for NetworkPeers {
    fn endpoint(&self) -> PeerEndpoint {
        PeerEndpoint {
            peer: self.network.peer_id(),
            tensor_addrs: self.network.tensor_addrs(),
        }
    }

    async fn control(&self, peer: PeerId, request: ControlRequest) -> Result<Replies, Failure> {
        let called = self.network.control(peer, request).await;
        let call = called.map_err(|error| unanswered(peer, &error))?;
        let replies = futures::stream::unfold(call, move |mut call| async move {
            let reply = call.next().await?;
            Some((reply.map_err(|error| unanswered(peer, &error)), call))
        });
        Ok(replies.boxed())
    }

    async fn send(&self, to: &PeerEndpoint, frame: TensorFrame) -> Result<(), Failure> {
        let sender = self.network.tensor(to.peer, &to.tensor_addrs).await;
        let sender = sender.map_err(|error| unreachable(to.peer, error))?;
        let sent = sender.send(frame).await;
        sent.map_err(|error| unreachable(to.peer, error))
    }

    fn blocks(&self, providers: Vec<PeerId>) -> Box<dyn BlockSource> {
        Box::new(SwarmBlocks {
            network: self.network.clone(),
            providers,
            block_timeout: self.block_timeout,
        })
    }

    fn connected(&self) -> usize {
        self.network.connected().len()
    }

    fn plane_bytes_s(&self) -> u64 {
        self.network.tensor_plane().received_bytes_s()
    }
}

/// Blocks of other nodes, by bitswap.
struct SwarmBlocks {
    network: Network,
    providers: Vec<PeerId>,
    block_timeout: Duration,
}

#[async_trait]
impl BlockSource for SwarmBlocks {
    async fn block(&self, cid: &Cid) -> Result<Bytes, BlockSourceError> {
        let fetched = self
            .network
            .fetch_block(cid, &self.providers, self.block_timeout)
            .await;
        fetched.map_err(|error| match error {
            FetchError::NoProviders { .. } | FetchError::NotFound { .. } => {
                BlockSourceError::NotFound
            }
            FetchError::TimedOut { .. } => BlockSourceError::Timeout,
        })
    }
}

/// Reads replies up to the final one, which must come within `silence` of the one before.
pub(crate) async fn finish(
    mut replies: Replies,
    silence: Duration,
    mut progress: impl FnMut(u64, u64),
) -> Result<ControlReply, Failure> {
    loop {
        let reply = tokio::time::timeout(silence, replies.next()).await;
        let Ok(reply) = reply else {
            return Err(Failure::unavailable(
                PEER_SILENT,
                format!("a peer said nothing for {} s", silence.as_secs()),
                "send the request again; the peer may be overloaded or cut off",
            ));
        };
        match reply {
            Some(Ok(ControlReply::Progress { done, total })) => progress(done, total),
            Some(Ok(ControlReply::Refused {
                code,
                message,
                hint,
            })) => {
                return Err(Failure::new(kind_of(&code), code, message, hint));
            }
            Some(Ok(reply)) => return Ok(reply),
            Some(Err(failure)) => return Err(failure),
            None => {
                return Err(Failure::unavailable(
                    PEER_SILENT,
                    "a peer ended the call without an answer",
                    "send the request again",
                ));
            }
        }
    }
}

/// The kind behind a peer's refusal: some are about the model and would be the same anywhere.
fn kind_of(code: &str) -> crate::error::ErrorKind {
    use crate::error::ErrorKind;
    match code {
        "content_not_found" => ErrorKind::NotFound,
        "unsupported_model" | "bad_model_file" | "bad_request" => ErrorKind::BadRequest,
        crate::error::MEMORY_IN_USE => ErrorKind::Overloaded,
        _ => ErrorKind::Unavailable,
    }
}
