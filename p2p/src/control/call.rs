//! The caller's end of a control call.

use std::io;
use std::time::Duration;

use futures::AsyncReadExt;
use libp2p::{PeerId, Stream};
use tokio::sync::mpsc;

use super::{NOT_A_MEMBER, REPLY_QUEUE, SILENCE_LIMIT, TAKE_TIMEOUT, TAKEN};
use crate::network::{NetworkError, Streams, Tasks};
use crate::wire::{
    ControlReply, ControlRequest, FrameError, protocol, read_message, write_message,
};

const ATTEMPTS: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(40);

/// Why a control call failed on its way. A refusal by the peer is a reply, not an error.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The peer cannot be reached.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The connection broke, or the peer talks nonsense.
    #[error("the call to peer {peer} failed: {source}")]
    Frame {
        /// Who was called.
        peer: PeerId,
        /// What happened.
        source: FrameError,
    },
    /// The peer closed the stream before a final reply.
    #[error("peer {0} ended the call without an answer; it may have stopped")]
    Unanswered(PeerId),
    /// The peer has seen no valid certificate of this node.
    #[error(
        "peer {0} does not take this node for a member of its swarm; join again with a new invite"
    )]
    NotAMember(PeerId),
}

/// A call under way. Dropping it tells the peer that nobody waits any more.
#[derive(Debug)]
pub struct ControlCall {
    peer: PeerId,
    replies: mpsc::Receiver<Result<ControlReply, ControlError>>,
}

impl ControlCall {
    /// Who was called.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The next reply; `None` after the final one or after an error.
    pub async fn next(&mut self) -> Option<Result<ControlReply, ControlError>> {
        self.replies.recv().await
    }

    /// The final reply, past all progress.
    pub async fn finish(mut self) -> Result<ControlReply, ControlError> {
        while let Some(reply) = self.next().await {
            match reply {
                Ok(reply) if !reply.is_final() => {}
                other => return other,
            }
        }
        Err(ControlError::Unanswered(self.peer))
    }
}

/// Sends the request and returns once the peer has taken it.
pub(crate) async fn call(
    streams: &Streams,
    tasks: &Tasks,
    peer: PeerId,
    request: &ControlRequest,
) -> Result<ControlCall, ControlError> {
    let stream = open_and_send(streams, peer, request).await?;
    let (sender, replies) = mpsc::channel(REPLY_QUEUE);
    tasks.spawn(receive(peer, stream, sender));
    Ok(ControlCall { peer, replies })
}

async fn open_and_send(
    streams: &Streams,
    peer: PeerId,
    request: &ControlRequest,
) -> Result<Stream, ControlError> {
    for attempt in 1..=ATTEMPTS {
        let mut stream = streams.open(peer, protocol::CONTROL).await?;
        let sending = send(&mut stream, request);
        match tokio::time::timeout(TAKE_TIMEOUT, sending).await {
            Ok(Ok(TAKEN)) => return Ok(stream),
            Ok(Ok(NOT_A_MEMBER)) => return Err(ControlError::NotAMember(peer)),
            Ok(Ok(_)) => return Err(not_control(peer)),
            Ok(Err(FrameError::Io(error))) => {
                tracing::debug!(%peer, attempt, %error, "the control stream was not taken");
            }
            Ok(Err(source)) => return Err(ControlError::Frame { peer, source }),
            Err(_) => return Err(timed_out(peer, TAKE_TIMEOUT)),
        }
        tokio::time::sleep(RETRY_PAUSE * attempt).await;
    }
    Err(ControlError::Unanswered(peer))
}

/// Sends the request and reads the byte that acknowledges it.
async fn send(stream: &mut Stream, request: &ControlRequest) -> Result<u8, FrameError> {
    write_message(stream, request).await?;
    let mut acknowledgement = [0];
    stream.read_exact(&mut acknowledgement).await?;
    let [byte] = acknowledgement;
    Ok(byte)
}

fn not_control(peer: PeerId) -> ControlError {
    let error = io::Error::new(io::ErrorKind::InvalidData, "not an acknowledgement");
    let source = FrameError::Io(error);
    ControlError::Frame { peer, source }
}

/// Passes replies on until the final one, an error, or until nobody waits for them.
async fn receive(
    peer: PeerId,
    mut stream: Stream,
    replies: mpsc::Sender<Result<ControlReply, ControlError>>,
) {
    loop {
        let reply = tokio::select! {
            reply = next_reply(peer, &mut stream) => reply,
            () = replies.closed() => return,
        };
        let is_last = !matches!(&reply, Ok(reply) if !reply.is_final());
        if replies.send(reply).await.is_err() || is_last {
            return;
        }
    }
}

async fn next_reply(peer: PeerId, stream: &mut Stream) -> Result<ControlReply, ControlError> {
    match tokio::time::timeout(SILENCE_LIMIT, read_message(stream)).await {
        Ok(Ok(Some(reply))) => Ok(reply),
        Ok(Ok(None)) => Err(ControlError::Unanswered(peer)),
        Ok(Err(source)) => Err(ControlError::Frame { peer, source }),
        Err(_) => Err(timed_out(peer, SILENCE_LIMIT)),
    }
}

fn timed_out(peer: PeerId, after: Duration) -> ControlError {
    NetworkError::TimedOut { peer, after }.into()
}
