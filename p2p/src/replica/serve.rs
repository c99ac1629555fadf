//! The responder's end of replica streams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{ANSWER_TIMEOUT, HELLO, IDLE_TIMEOUT, NOT_A_MEMBER, TAKE_TIMEOUT, TAKEN};
use crate::network::{GRACE, Members, NetworkEvent, Tasks};
use crate::wire::{FrameError, ReplicaReply, ReplicaRequest, read_message, write_message};

/// Streams of one peer at once; more are turned away.
const MAX_OF_PEER: usize = 64;
/// Streams of all peers at once.
const MAX_STREAMS: usize = 512;

/// A stream of a peer that belongs to the swarm. Dropped, it ends.
#[derive(Debug)]
pub struct IncomingReplica {
    /// Who asks, proved by the connection.
    pub peer: PeerId,
    /// What is asked, one at a time; none any more once the peer has closed the stream.
    pub calls: mpsc::Receiver<ReplicaCall>,
}

/// One request. Dropped without an answer, the stream ends.
#[derive(Debug)]
pub struct ReplicaCall {
    /// What is asked.
    pub request: ReplicaRequest,
    /// Takes the answer.
    pub answer: oneshot::Sender<ReplicaReply>,
}

/// How many streams each peer has.
#[derive(Debug, Default)]
struct Slots(Mutex<HashMap<PeerId, usize>>);

/// A place among the streams, given up when dropped.
struct Slot {
    slots: Arc<Slots>,
    peer: PeerId,
}

impl Slots {
    fn take(self: &Arc<Self>, peer: PeerId) -> Option<Slot> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let of_peer = taken.entry(peer).or_default();
        if *of_peer >= MAX_OF_PEER || all >= MAX_STREAMS {
            return None;
        }
        *of_peer += 1;
        let slots = Arc::clone(self);
        Some(Slot { slots, peer })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let taken = self.slots.0.lock();
        let mut taken = taken.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

/// Accepts streams for as long as the network runs.
pub(crate) async fn serve(
    mut incoming: IncomingStreams,
    members: Arc<Members>,
    tasks: Tasks,
    events: mpsc::Sender<NetworkEvent>,
) {
    let slots = Arc::new(Slots::default());
    while let Some((peer, stream)) = incoming.next().await {
        let Some(slot) = slots.take(peer) else {
            tracing::warn!(%peer, "too many replica streams; one is turned away");
            continue;
        };
        let (members, events) = (Arc::clone(&members), events.clone());
        tasks.spawn(async move {
            if let Err(error) = answer(peer, stream, &members, &events).await {
                tracing::debug!(%peer, %error, "a replica stream ended early");
            }
            drop(slot);
        });
    }
}

async fn answer(
    peer: PeerId,
    mut stream: Stream,
    members: &Members,
    events: &mpsc::Sender<NetworkEvent>,
) -> Result<(), FrameError> {
    let is_member = members.wait_for(&peer, GRACE).await;
    let mut hello = [0];
    let read = timeout(TAKE_TIMEOUT, stream.read_exact(&mut hello)).await;
    if !matches!(read, Ok(Ok(()))) || hello != [HELLO] {
        return Ok(());
    }
    if !is_member {
        tracing::warn!(%peer, "a replica stream of a peer that is no member of this swarm");
        stream.write_all(&[NOT_A_MEMBER]).await?;
        stream.close().await?;
        return Ok(());
    }
    let (sender, calls) = mpsc::channel(1);
    let incoming = IncomingReplica { peer, calls };
    if events.try_send(NetworkEvent::Replica(incoming)).is_err() {
        // Nothing was said yet: the caller sees that the stream was not taken, and tries again.
        return Ok(());
    }
    stream.write_all(&[TAKEN]).await?;
    stream.flush().await?;
    pass_on(&mut stream, &sender).await
}

/// Passes requests on and writes their replies, one by one, until either end has enough.
async fn pass_on(stream: &mut Stream, calls: &mpsc::Sender<ReplicaCall>) -> Result<(), FrameError> {
    loop {
        let reading = timeout(IDLE_TIMEOUT, read_message(stream));
        let Ok(Some(request)) = reading.await.unwrap_or(Ok(None)) else {
            return Ok(());
        };
        let (answer, reply) = oneshot::channel();
        let call = ReplicaCall { request, answer };
        if calls.send(call).await.is_err() {
            return Ok(());
        }
        let Ok(Ok(reply)) = timeout(ANSWER_TIMEOUT, reply).await else {
            return Ok(());
        };
        let is_last = matches!(reply, ReplicaReply::Refused { .. });
        let writing = timeout(ANSWER_TIMEOUT, write_message(stream, &reply));
        let silent = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        writing.await.map_err(silent)??;
        if is_last {
            stream.close().await?;
            return Ok(());
        }
    }
}
