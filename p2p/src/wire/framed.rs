//! Length-prefixed messages on a byte stream: `length: u32` (little endian), then the message.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::control::{ControlReply, ControlRequest};
use super::join::{JoinRequest, JoinResponse};
use super::replica::{ReplicaReply, ReplicaRequest};
use super::{Message, WireError, decode, encode};

/// Why a framed message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
    /// The bytes on it are not the expected message.
    #[error(transparent)]
    Wire(#[from] WireError),
}

mod sealed {
    pub trait Sealed {}
}

/// A message that travels on a stream of its own protocol.
#[expect(private_bounds, reason = "the table of messages is closed")]
pub trait StreamMessage: Message + sealed::Sealed {}

macro_rules! stream_messages {
    ($($type:ty),*) => {$(
        impl sealed::Sealed for $type {}
        impl StreamMessage for $type {}
    )*};
}

stream_messages!(
    ControlRequest,
    ControlReply,
    JoinRequest,
    JoinResponse,
    ReplicaRequest,
    ReplicaReply
);

/// Reads one message; `None` when the stream ends before its first byte.
pub async fn read_message<M: StreamMessage>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<M>, FrameError> {
    let Some(prefix) = read_prefix(stream).await? else {
        return Ok(None);
    };
    let size = u32::from_le_bytes(prefix) as usize;
    if size > M::LIMIT {
        return Err(WireError::TooLarge {
            message: M::NAME,
            size,
            limit: M::LIMIT,
        }
        .into());
    }
    let mut bytes = vec![0; size];
    stream
        .read_exact(&mut bytes)
        .await
        .map_err(cut_short::<M>)?;
    Ok(Some(decode(&bytes)?))
}

/// Writes one message and flushes it.
pub async fn write_message<M: StreamMessage>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> Result<(), FrameError> {
    let body = encode(message)?;
    let size = u32::try_from(body.len()).expect("limits are below 4 GiB");
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&size.to_le_bytes());
    frame.extend_from_slice(&body);
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}

async fn read_prefix(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<[u8; 4]>, FrameError> {
    let mut prefix = [0; 4];
    let (first, rest) = prefix.split_at_mut(1);
    if stream.read(first).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(rest).await?;
    Ok(Some(prefix))
}

fn cut_short<M: Message>(error: io::Error) -> FrameError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return WireError::Truncated { message: M::NAME }.into();
    }
    error.into()
}
