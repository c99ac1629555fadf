//! What comes in: any number of streams per peer, each read by a task of its own.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::StreamExt;
use futures::io::BufReader;
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;

use super::message::{Block, Message};
use super::wants::Arrival;
use super::{Exchange, content, frame};
use crate::network::GRACE;

/// Streams of one peer at a time. Kubo opens one per message and closes it soon.
const MAX_STREAMS: usize = 64;

/// Counts open streams per peer.
#[derive(Clone, Default)]
struct OpenStreams {
    counts: Arc<Mutex<HashMap<PeerId, usize>>>,
}

/// One stream of a peer; given back when dropped.
struct Slot {
    streams: OpenStreams,
    peer: PeerId,
}

impl OpenStreams {
    fn take(&self, peer: PeerId) -> Option<Slot> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_default();
        if *count >= MAX_STREAMS {
            return None;
        }
        *count += 1;
        let streams = self.clone();
        Some(Slot { streams, peer })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let counts = &self.streams.counts;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

/// Takes streams for as long as the network runs.
pub(super) async fn serve(exchange: Arc<Exchange>, mut incoming: IncomingStreams) {
    let open = OpenStreams::default();
    while let Some((peer, stream)) = incoming.next().await {
        let Some(slot) = open.take(peer) else {
            tracing::debug!(%peer, "too many bitswap streams; one is dropped");
            continue;
        };
        let reader = Arc::clone(&exchange);
        exchange.tasks.spawn(async move {
            if let Err(error) = read(reader, peer, stream).await {
                tracing::debug!(%peer, %error, "a bitswap stream ended early");
            }
            drop(slot);
        });
    }
}

async fn read(exchange: Arc<Exchange>, peer: PeerId, stream: Stream) -> io::Result<()> {
    if !exchange.members.wait_for(&peer, GRACE).await {
        tracing::warn!(%peer, "blocks are asked for by a peer that is no member of this swarm");
        return Ok(());
    }
    let mut stream = BufReader::new(stream);
    let mut messages = 0u64;
    while let Some(frame) = frame::read(&mut stream).await? {
        messages += 1;
        if messages == 2 {
            exchange.partner(peer).prove_steady();
        }
        let message = Message::decode(&frame).map_err(io::Error::other)?;
        if !exchange.members.is_member(&peer) {
            return Ok(());
        }
        take(&exchange, peer, message).await;
    }
    Ok(())
}

async fn take(exchange: &Arc<Exchange>, peer: PeerId, message: Message) {
    for (cid, presence) in &message.presences {
        exchange.wants.presence(peer, cid, *presence);
    }
    if !message.wants.is_empty() || message.full {
        let partner = exchange.partner(peer);
        partner.queue.update(message.wants, message.full);
    }
    if !message.blocks.is_empty() {
        let checker = Arc::clone(exchange);
        let blocks = message.blocks;
        let checking = tokio::task::spawn_blocking(move || {
            for block in blocks {
                take_block(&checker, peer, block);
            }
        });
        // Waiting keeps one peer from filling the threads with its hashes.
        let _ = checking.await;
    }
}

/// Hashes a block and gives it to whoever wants it.
fn take_block(exchange: &Exchange, peer: PeerId, block: Block) {
    let cid = content::cid_of(&block);
    let now = Instant::now();
    match exchange.wants.block(peer, cid, block.data, now) {
        Arrival::Wanted(took) => exchange.ledger().delivered(peer, took, now),
        Arrival::Duplicate => exchange.counters.duplicate(),
        Arrival::Wrong => {
            tracing::warn!(%peer, "a peer sent a wrong block; it is not asked again for a while");
            exchange.counters.wrong();
            exchange.ledger().wrong(peer, now);
            exchange.wants.distrust(&peer);
        }
    }
}
