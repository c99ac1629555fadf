//! Watches connections and the tensor plane, and tells the owner and the services.

use std::collections::HashMap;
use std::sync::Arc;

use libp2p::PeerId;
use rust_ipfs::Ipfs;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::connections::{Connections, PeerChange, Seen};
use super::event::NetworkEvent;
use super::streams::Streams;
use super::tasks::Tasks;
use crate::adverts::Adverts;
use crate::adverts::hello::{self, Greeted};
use crate::bitswap::Bitswap;
use crate::tensor::TensorPlane;
use crate::wire::TensorFrame;

/// Greets peers that connect and lets go of those that leave.
pub(super) async fn peers(
    ipfs: Ipfs,
    connections: Arc<Connections>,
    streams: Streams,
    adverts: Arc<Adverts>,
    bitswap: Bitswap,
    tasks: Tasks,
    events: mpsc::Sender<NetworkEvent>,
) {
    let mut version = connections.subscribe();
    let mut seen = Seen::default();
    let mut greetings: HashMap<PeerId, CancellationToken> = HashMap::new();
    loop {
        let seen_version = *version.borrow_and_update();
        for change in connections.changes(&mut seen) {
            let event = match change {
                PeerChange::Connected(peer) | PeerChange::Again(peer) => {
                    let token = tasks.child_token();
                    if let Some(before) = greetings.insert(peer, token.clone()) {
                        before.cancel();
                    }
                    let greeting = greet(ipfs.clone(), streams.clone(), Arc::clone(&adverts), peer);
                    tasks.spawn(async move {
                        token.run_until_cancelled(greeting).await;
                    });
                    match change {
                        PeerChange::Again(_) => continue,
                        _ => NetworkEvent::PeerConnected(peer),
                    }
                }
                PeerChange::Greeted(peer, started_unix_ms) => NetworkEvent::PeerGreeted {
                    peer,
                    started_unix_ms,
                },
                PeerChange::Disconnected(peer) => {
                    if let Some(token) = greetings.remove(&peer) {
                        token.cancel();
                    }
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

async fn greet(ipfs: Ipfs, streams: Streams, adverts: Arc<Adverts>, peer: PeerId) {
    adverts.publish_now();
    if hello::greet(&adverts, &streams, peer).await == Greeted::NotAMember {
        tracing::warn!(%peer, "a peer showed no certificate of this swarm and is disconnected");
        if let Err(error) = ipfs.disconnect(peer).await {
            tracing::debug!(%peer, %error, "it had left already");
        }
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
