//! Watches connections and the tensor plane, and tells the owner and the services.

use std::collections::HashMap;
use std::sync::Arc;

use libp2p::PeerId;
use rust_ipfs::Ipfs;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::connections::{Connections, PeerChange, Seen};
use super::event::NetworkEvent;
use super::streams::Streams;
use super::tasks::Tasks;
use crate::adverts::Adverts;
use crate::adverts::hello::{self, Stranger};
use crate::bitswap::Bitswap;
use crate::tensor::TensorPlane;
use crate::wire::TensorFrame;

/// Greets peers that connect and lets go of those that leave.
pub(super) async fn peers(
    connections: Arc<Connections>,
    mut greetings: Greetings,
    bitswap: Bitswap,
    events: mpsc::Sender<NetworkEvent>,
) {
    let mut version = connections.subscribe();
    let mut seen = Seen::default();
    loop {
        let seen_version = *version.borrow_and_update();
        for change in connections.changes(&mut seen) {
            let event = match change {
                PeerChange::Connected(peer) => {
                    greetings.begin(peer);
                    NetworkEvent::PeerConnected(peer)
                }
                PeerChange::Again(peer) => {
                    greetings.repeat(&peer);
                    continue;
                }
                PeerChange::Greeted(peer, started_unix_ms) => NetworkEvent::PeerGreeted {
                    peer,
                    started_unix_ms,
                },
                PeerChange::Disconnected(peer) => {
                    greetings.end(&peer);
                    bitswap.peer_left(&peer);
                    NetworkEvent::PeerDisconnected(peer)
                }
            };
            // The owner is gone only while the network ends.
            let _ = events.send(event).await;
        }
        connections.told(seen_version);
        if version.changed().await.is_err() {
            return;
        }
    }
}

/// One task for each connected peer, which greets it for as long as it is connected.
pub(super) struct Greetings {
    ipfs: Ipfs,
    streams: Streams,
    adverts: Arc<Adverts>,
    tasks: Tasks,
    running: HashMap<PeerId, Greeting>,
}

struct Greeting {
    token: CancellationToken,
    again: Arc<Notify>,
}

impl Greetings {
    pub(super) fn new(ipfs: Ipfs, streams: Streams, adverts: Arc<Adverts>, tasks: Tasks) -> Self {
        Self {
            ipfs,
            streams,
            adverts,
            tasks,
            running: HashMap::new(),
        }
    }

    fn begin(&mut self, peer: PeerId) {
        let token = self.tasks.child_token();
        let again = Arc::new(Notify::new());
        let greeting = Greeting {
            token: token.clone(),
            again: again.clone(),
        };
        if let Some(before) = self.running.insert(peer, greeting) {
            before.token.cancel();
        }
        self.adverts.publish_now();
        let (ipfs, streams) = (self.ipfs.clone(), self.streams.clone());
        let adverts = Arc::clone(&self.adverts);
        self.tasks.spawn(async move {
            let greeting = greet(ipfs, streams, adverts, peer, &again);
            token.run_until_cancelled(greeting).await;
        });
    }

    /// The peer has one more connection: what was said on the others may be lost.
    fn repeat(&self, peer: &PeerId) {
        if let Some(greeting) = self.running.get(peer) {
            self.adverts.publish_now();
            greeting.again.notify_one();
        }
    }

    fn end(&mut self, peer: &PeerId) {
        if let Some(greeting) = self.running.remove(peer) {
            greeting.token.cancel();
        }
    }
}

async fn greet(ipfs: Ipfs, streams: Streams, adverts: Arc<Adverts>, peer: PeerId, again: &Notify) {
    let Stranger = hello::greet(&adverts, &streams, peer, again).await;
    tracing::warn!(%peer, "a peer showed no certificate of this swarm and is disconnected");
    if let Err(error) = ipfs.disconnect(peer).await {
        tracing::debug!(%peer, %error, "it had left already");
    }
}

/// Passes on what comes over the tensor plane.
pub(super) async fn tensor(
    plane: TensorPlane,
    mut frames: mpsc::Receiver<(PeerId, TensorFrame)>,
    events: mpsc::Sender<NetworkEvent>,
) {
    let mut losses = plane.losses();
    loop {
        let event = tokio::select! {
            Some((peer, frame)) = frames.recv() => NetworkEvent::Tensor { peer, frame },
            loss = losses.recv() => match loss {
                Ok(loss) => loss.into(),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "losses on the tensor plane were missed");
                    continue;
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
            else => return,
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}
