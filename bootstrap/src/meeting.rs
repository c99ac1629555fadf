//! The network of a meeting point, with nothing behind it.

use std::{io, sync::Arc};

use accel_p2p::{BlockStore, ControlReply, NetworkEvent};
use bytes::Bytes;
use cid::Cid;
use tokio::sync::mpsc;

/// The store of a node that stores nothing.
pub fn no_blocks() -> Arc<dyn BlockStore> {
    Arc::new(NoBlocks)
}

struct NoBlocks;

impl BlockStore for NoBlocks {
    fn get(&self, _cid: &Cid) -> io::Result<Option<Bytes>> {
        Ok(None)
    }

    fn has(&self, _cid: &Cid) -> io::Result<bool> {
        Ok(false)
    }
}

/// Hosts until the network ends: tells who comes and goes, and refuses work.
pub async fn host(mut events: mpsc::Receiver<NetworkEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            NetworkEvent::PeerConnected(peer) => tracing::info!(%peer, "connected"),
            NetworkEvent::PeerDisconnected(peer) => tracing::info!(%peer, "disconnected"),
            NetworkEvent::Control(call) => {
                let refusal = ControlReply::refused(
                    "no_engine",
                    "this is a meeting point; it computes nothing",
                    "choose a peer that advertises memory for models",
                );
                // A caller that hung up needs no refusal.
                let _ = call.responder.try_send(refusal);
            }
            _ => {}
        }
    }
}
