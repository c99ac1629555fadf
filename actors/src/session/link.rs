//! The way to the stages of a route, whether they are on this node or on another: the same
//! requests and frames, in process or over the network.

use std::sync::Arc;
use std::time::Duration;

use accel_p2p::PeerId;
use accel_p2p::wire::{ControlReply, ControlRequest, PeerEndpoint, TensorFrame};
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::error::Failure;
use crate::peers::{Peers, Replies, finish};
use crate::stage::{Control, StageServer, Step};
use crate::supervisor::{ActorRef, AskError};

/// How long the stage server of this node may take to take a message.
const LOCAL: Duration = Duration::from_secs(5);
/// Replies that may wait for their reader.
const REPLIES: usize = 16;
/// How often an ending is told to a peer that does not hear it; then its lease expires.
const END_ATTEMPTS: u32 = 3;

/// See the module.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) stage: ActorRef<StageServer>,
}

impl Link {
    /// Asks a stage for something.
    pub(crate) async fn control(
        &self,
        peer: PeerId,
        request: ControlRequest,
    ) -> Result<Replies, Failure> {
        if peer != self.peers.endpoint().peer {
            return self.peers.control(peer, request).await;
        }
        let (replies, mut receiver) = mpsc::channel(REPLIES);
        let message = Control {
            from: peer,
            request,
            replies,
        };
        self.stage.ask(message, LOCAL).await.map_err(local)?;
        let replies = futures::stream::poll_fn(move |task| receiver.poll_recv(task));
        Ok(replies.map(Ok).boxed())
    }

    /// Asks and waits for the final reply, which must come within `silence` of any other.
    pub(crate) async fn call(
        &self,
        peer: PeerId,
        request: ControlRequest,
        silence: Duration,
    ) -> Result<ControlReply, Failure> {
        let replies = self.control(peer, request).await?;
        finish(replies, silence, |_, _| {}).await
    }

    /// Sends a step to a stage.
    pub(crate) async fn step(&self, to: &PeerEndpoint, frame: TensorFrame) -> Result<(), Failure> {
        let own = self.peers.endpoint().peer;
        if to.peer != own {
            return self.peers.send(to, frame).await;
        }
        self.stage
            .ask(Step { from: own, frame }, LOCAL)
            .await
            .map_err(local)
    }

    /// Tells a stage in the background that it is no longer needed.
    pub(crate) fn end(&self, peer: PeerId, request: ControlRequest) {
        let link = self.clone();
        actix::spawn(async move {
            for attempt in 1..=END_ATTEMPTS {
                match link.call(peer, request.clone(), LOCAL).await {
                    Ok(_) => return,
                    Err(failure) => tracing::debug!(%peer, attempt, %failure, "not released yet"),
                }
                tokio::time::sleep(Duration::from_millis(200) * attempt).await;
            }
        });
    }
}

fn local(error: AskError) -> Failure {
    Failure::unavailable("stage_server", error.to_string(), "send the request again")
}
