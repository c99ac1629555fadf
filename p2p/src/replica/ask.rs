//! The caller's end of a replica stream.

use std::io;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, Stream};

use super::{ANSWER_TIMEOUT, HELLO, NOT_A_MEMBER, TAKE_TIMEOUT, TAKEN};
use crate::control::ControlError;
use crate::network::{NetworkError, Streams};
use crate::wire::{
    FrameError, ReplicaReply, ReplicaRequest, protocol, read_message, write_message,
};

const ATTEMPTS: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(40);

/// A stream to a replica. After an error it is of no more use. Dropping it closes it.
#[derive(Debug)]
pub struct ReplicaStream {
    peer: PeerId,
    stream: Stream,
}

impl ReplicaStream {
    /// Who is asked.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Sends a request and waits for its reply. To be awaited to its end, or not at all again.
    pub async fn ask(&mut self, request: &ReplicaRequest) -> Result<ReplicaReply, ControlError> {
        let peer = self.peer;
        let stream = &mut self.stream;
        let asking = async {
            write_message(stream, request).await?;
            read_message(stream).await
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(Ok(Some(reply))) => Ok(reply),
            Ok(Ok(None)) => Err(ControlError::Unanswered(peer)),
            Ok(Err(source)) => Err(ControlError::Frame { peer, source }),
            Err(_) => Err(timed_out(peer, ANSWER_TIMEOUT)),
        }
    }
}

/// Opens a stream and returns once the peer has taken it.
pub(crate) async fn open(streams: &Streams, peer: PeerId) -> Result<ReplicaStream, ControlError> {
    for attempt in 1..=ATTEMPTS {
        let mut stream = streams.open(peer, protocol::REPLICA).await?;
        match tokio::time::timeout(TAKE_TIMEOUT, greet(&mut stream)).await {
            Ok(Ok(TAKEN)) => return Ok(ReplicaStream { peer, stream }),
            Ok(Ok(NOT_A_MEMBER)) => return Err(ControlError::NotAMember(peer)),
            Ok(Ok(_)) => return Err(not_a_replica(peer)),
            Ok(Err(error)) => {
                tracing::debug!(%peer, attempt, %error, "the replica stream was not taken");
            }
            Err(_) => return Err(timed_out(peer, TAKE_TIMEOUT)),
        }
        tokio::time::sleep(RETRY_PAUSE * attempt).await;
    }
    Err(ControlError::Unanswered(peer))
}

async fn greet(stream: &mut Stream) -> io::Result<u8> {
    stream.write_all(&[HELLO]).await?;
    stream.flush().await?;
    let mut acknowledgement = [0];
    stream.read_exact(&mut acknowledgement).await?;
    let [byte] = acknowledgement;
    Ok(byte)
}

fn not_a_replica(peer: PeerId) -> ControlError {
    let error = io::Error::new(io::ErrorKind::InvalidData, "not an acknowledgement");
    let source = FrameError::Io(error);
    ControlError::Frame { peer, source }
}

fn timed_out(peer: PeerId, after: Duration) -> ControlError {
    NetworkError::TimedOut { peer, after }.into()
}
