//! Answers to steps for sessions that are not here (any more): without them, a coordinator whose
//! stage server was restarted would notice only when time is up.

use std::sync::Arc;

use accel_p2p::PeerId;
use accel_p2p::wire::{PeerEndpoint, SessionId, TensorFrame};
use tokio::sync::mpsc;

use crate::peers::Peers;
use crate::session::table::SessionTable;

/// Answers that may wait; more are left out, and time has to tell.
const QUEUE: usize = 64;

/// See the module.
pub(super) struct Complaints {
    queue: mpsc::Sender<(PeerId, TensorFrame)>,
}

impl Complaints {
    /// Starts the task that sends them; it ends when this is dropped.
    pub(super) fn start(peers: Arc<dyn Peers>, sessions: Arc<SessionTable>) -> Self {
        let (queue, mut waiting) = mpsc::channel::<(PeerId, TensorFrame)>(QUEUE);
        actix::spawn(async move {
            let own = peers.endpoint().peer;
            while let Some((peer, frame)) = waiting.recv().await {
                if peer == own {
                    sessions.deliver(own, frame).await;
                    continue;
                }
                // The connection over which the step came is used for the answer.
                let tensor_addrs = Vec::new();
                let sent = peers
                    .send(&PeerEndpoint { peer, tensor_addrs }, frame)
                    .await;
                if let Err(failure) = sent {
                    tracing::debug!(%peer, %failure, "a stray step is not answered");
                }
            }
        });
        Self { queue }
    }

    /// Tells the sender of a step that nothing of its session is here.
    pub(super) fn unknown_session(&self, to: PeerId, session: SessionId, epoch: u64, step: u64) {
        tracing::debug!(%session, peer = %to, "a step for a session that is not here");
        let message = "this node holds nothing of the session any more";
        let frame = TensorFrame::failed(session, epoch, step, "unknown_session", message);
        if self.queue.try_send((to, frame)).is_err() {
            tracing::debug!(%session, "too many stray steps; one is not answered");
        }
    }
}
