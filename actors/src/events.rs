//! The pump of network events: each goes to the actor that it concerns, in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_p2p::{ControlReply, IncomingControl, NetworkEvent, PeerId, TensorFrame};
use tokio::sync::mpsc;

use crate::directory::{Directory, Heard, snapshot, tell};
use crate::health::Health;
use crate::replica::keeper::Keeper;
use crate::session::stand_ins::StandIns;
use crate::session::table::SessionTable;
use crate::stage::{Control, NextLost, StageServer, Step};
use crate::supervisor::ActorRef;
use crate::telemetry::Telemetry;

/// How long the stage server may take to take a message.
const WITHIN: Duration = Duration::from_secs(5);
/// Replies to a control call that may wait.
const REPLIES: usize = 16;

/// See the module.
pub(crate) struct Pump {
    pub(crate) directory: ActorRef<Directory>,
    pub(crate) stage: ActorRef<StageServer>,
    pub(crate) sessions: Arc<SessionTable>,
    pub(crate) stand_ins: Option<Arc<StandIns>>,
    pub(crate) health: Arc<Health>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) telemetry: Telemetry,
}

impl Pump {
    /// Runs until the network ends.
    pub(crate) async fn run(self, mut events: mpsc::Receiver<NetworkEvent>) {
        while let Some(event) = events.recv().await {
            self.dispatch(event).await;
        }
    }

    async fn dispatch(&self, event: NetworkEvent) {
        match event {
            NetworkEvent::PeerConnected(peer) => {
                if let Some(stand_ins) = &self.stand_ins {
                    stand_ins.forget(peer);
                }
                self.hear(Heard::Connected(peer)).await;
            }
            NetworkEvent::PeerGreeted {
                peer,
                started_unix_ms,
            } => self.hear(Heard::Greeted(peer, started_unix_ms)).await,
            NetworkEvent::PeerDisconnected(peer) => {
                self.sessions.peer_lost(peer);
                self.dropped(peer).await;
                self.hear(Heard::Disconnected(peer)).await;
            }
            NetworkEvent::Advert(advert) => {
                let peer = advert.peer;
                self.hear(Heard::Advert(advert)).await;
                self.sessions.peer_heard(peer);
            }
            NetworkEvent::PeerExpired(peer) => self.hear(Heard::Gone(peer)).await,
            NetworkEvent::TensorLost { peer, reason } => {
                tracing::info!(%peer, %reason, "the tensor plane lost a peer");
                self.sessions.peer_lost(peer);
                self.dropped(peer).await;
                if let Err(error) = self.stage.ask(NextLost { peer, reason }, WITHIN).await {
                    tracing::warn!(%error, "the stage server did not hear of a lost peer");
                }
            }
            NetworkEvent::Control(incoming) => self.control(incoming).await,
            NetworkEvent::Replica(incoming) => {
                actix::spawn(Arc::clone(&self.keeper).serve(incoming));
            }
            NetworkEvent::Tensor { peer, frame } => self.frame(peer, frame).await,
        }
    }

    /// Whoever says goodbye is out of the directory before its connections end.
    async fn dropped(&self, peer: PeerId) {
        let records = snapshot(&self.directory).await;
        let is_there = records.iter().any(|record| record.peer == peer);
        if is_there && self.health.dropped(peer, Instant::now()) {
            tracing::info!(%peer, "lost without a goodbye: left alone for a while");
            self.telemetry.breaker_opened();
        }
    }

    async fn hear(&self, heard: Heard) {
        tell(&self.directory, heard).await;
    }

    async fn frame(&self, from: PeerId, frame: TensorFrame) {
        match &frame {
            TensorFrame::Step { .. }
            | TensorFrame::Replay { .. }
            | TensorFrame::Copy(_)
            | TensorFrame::Rows { .. } => {
                self.to_stage(from, frame).await;
            }
            TensorFrame::Claimed { frame: inner, .. } if is_step(inner) => {
                self.to_stage(from, frame).await;
            }
            TensorFrame::Failed { session, .. } if !self.sessions.coordinates(*session) => {
                self.to_stage(from, frame).await;
            }
            TensorFrame::Token { .. }
            | TensorFrame::Claimed { .. }
            | TensorFrame::Applied { .. }
            | TensorFrame::Failed { .. } => self.sessions.deliver(from, frame).await,
        }
    }

    async fn to_stage(&self, from: PeerId, frame: TensorFrame) {
        if let Err(error) = self.stage.ask(Step { from, frame }, WITHIN).await {
            tracing::warn!(%error, "a frame for the stage server was lost");
        }
    }

    async fn control(&self, incoming: IncomingControl) {
        let IncomingControl {
            peer,
            request,
            responder,
        } = incoming;
        let (replies, mut receiver) = mpsc::channel(REPLIES);
        let message = Control {
            from: peer,
            request,
            replies,
        };
        if let Err(error) = self.stage.ask(message, WITHIN).await {
            let hint = "send the request again, or place the layers on another peer";
            let refusal = ControlReply::refused("stage_server", &error.to_string(), hint);
            // The caller may be gone as well; then nobody needs an answer.
            let _ = responder.send(refusal).await;
            return;
        }
        actix::spawn(async move {
            loop {
                let reply = tokio::select! {
                    reply = receiver.recv() => reply,
                    () = responder.closed() => return,
                };
                let Some(reply) = reply else { return };
                if responder.send(reply).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn is_step(frame: &TensorFrame) -> bool {
    matches!(frame, TensorFrame::Step { .. })
}
