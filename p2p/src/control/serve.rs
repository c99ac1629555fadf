//! The responder's end of control calls.

use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;
use tokio::sync::{Semaphore, mpsc};

use super::{NOT_A_MEMBER, REPLY_QUEUE, TAKEN};
use crate::network::{Connections, GRACE, Members, NetworkEvent, Tasks};
use crate::wire::{ControlReply, ControlRequest, FrameError, read_message, write_message};

/// Calls served at once; more are turned away.
const MAX_CALLS: usize = 256;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A request from a peer that belongs to the swarm.
#[derive(Debug)]
pub struct IncomingControl {
    /// Who asks, proved by the connection.
    pub peer: PeerId,
    /// What is asked.
    pub request: ControlRequest,
    /// Takes the answer. Dropped without a final reply, the caller sees an error.
    pub responder: ControlResponder,
}

/// Takes the replies to one request.
#[derive(Debug)]
pub struct ControlResponder {
    replies: mpsc::Sender<ControlReply>,
}

/// The caller is gone: whatever was done for it should be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller of this control request is gone")]
pub struct ControlClosed;

impl ControlResponder {
    /// Sends a reply; the first final one ends the call.
    pub async fn send(&self, reply: ControlReply) -> Result<(), ControlClosed> {
        self.replies.send(reply).await.map_err(|_| ControlClosed)
    }

    /// Sends a reply if there is room for it at once; for progress, which may be left out.
    pub fn try_send(&self, reply: ControlReply) -> Result<(), ControlClosed> {
        match self.replies.try_send(reply) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(ControlClosed),
        }
    }

    /// Resolves when the caller no longer waits.
    pub async fn closed(&self) {
        self.replies.closed().await;
    }

    /// Whether the caller no longer waits.
    pub fn is_closed(&self) -> bool {
        self.replies.is_closed()
    }
}

/// Accepts calls for as long as the network runs.
pub(crate) async fn serve(
    mut incoming: IncomingStreams,
    members: Arc<Members>,
    connections: Arc<Connections>,
    tasks: Tasks,
    events: mpsc::Sender<NetworkEvent>,
) {
    let slots = Arc::new(Semaphore::new(MAX_CALLS));
    while let Some((peer, stream)) = incoming.next().await {
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(%peer, "too many control calls at once; one is turned away");
            continue;
        };
        let (members, events) = (Arc::clone(&members), events.clone());
        let connections = Arc::clone(&connections);
        tasks.spawn(async move {
            // What it asks for is for the life in which it asks, of which the owner hears first.
            let greeting = async {
                connections.wait_for_greeting(&peer, GRACE).await;
                connections.wait_for_owner().await;
            };
            let (is_member, ()) = tokio::join!(members.wait_for(&peer, GRACE), greeting);
            if let Err(error) = answer(peer, stream, is_member, &events).await {
                tracing::debug!(%peer, %error, "a control call ended early");
            }
            drop(slot);
        });
    }
}

async fn answer(
    peer: PeerId,
    mut stream: Stream,
    is_member: bool,
    events: &mpsc::Sender<NetworkEvent>,
) -> Result<(), FrameError> {
    if !is_member {
        tracing::warn!(%peer, "a control call by a peer that is no member of this swarm");
        stream.write_all(&[NOT_A_MEMBER]).await?;
        stream.close().await?;
        return Ok(());
    }
    let reading = tokio::time::timeout(REQUEST_TIMEOUT, read_message(&mut stream));
    let Ok(Some(request)) = reading.await.unwrap_or(Ok(None)) else {
        return Ok(());
    };
    stream.write_all(&[TAKEN]).await?;
    stream.flush().await?;

    let (sender, replies) = mpsc::channel(REPLY_QUEUE);
    let incoming = IncomingControl {
        peer,
        request,
        responder: ControlResponder { replies: sender },
    };
    if events.try_send(NetworkEvent::Control(incoming)).is_err() {
        let busy = ControlReply::refused(
            "busy",
            "this node has too much to do",
            "try again in a moment, or place the layers on another peer",
        );
        return reply(&mut stream, &busy).await;
    }
    pass_replies(stream, replies).await
}

/// Writes replies until the final one, or until the caller closes the stream.
async fn pass_replies(
    mut stream: Stream,
    mut replies: mpsc::Receiver<ControlReply>,
) -> Result<(), FrameError> {
    let mut nothing = [0];
    loop {
        let next = tokio::select! {
            next = replies.recv() => next,
            // The caller sends nothing after its request: this is its end of the stream.
            _ = stream.read(&mut nothing) => return Ok(()),
        };
        let Some(next) = next else {
            return Ok(());
        };
        reply(&mut stream, &next).await?;
        if next.is_final() {
            stream.close().await?;
            return Ok(());
        }
    }
}

async fn reply(stream: &mut Stream, reply: &ControlReply) -> Result<(), FrameError> {
    match tokio::time::timeout(WRITE_TIMEOUT, write_message(stream, reply)).await {
        Ok(written) => written,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}
