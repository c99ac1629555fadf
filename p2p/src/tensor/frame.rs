//! Frames on a stream: `size: u32, header size: u16` (little endian), header, payload. The size
//! counts header and payload.

use bytes::Bytes;
use quinn::{ReadError, ReadExactError, RecvStream};
use tokio::time::{Instant, timeout};

use super::PAYLOAD_TIMEOUT;
use super::budget::Share;
use super::rate::Rate;
use crate::wire::{TensorFrame, WireError, limit};

const MESSAGE: &str = "tensor frame";
const PREFIX_BYTES: usize = 6;
/// Memory taken for a payload before its bytes arrive; beyond it, memory follows the bytes.
const EAGER_BYTES: usize = 256 * 1024;

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFrameError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Stream(#[from] ReadError),
    /// It keeps room from others.
    #[error("its payload did not arrive within {PAYLOAD_TIMEOUT:?}")]
    Slow,
}

/// What is to be written: prefix and header in one piece, and the payload as it is.
pub(super) fn encode(frame: TensorFrame) -> Result<[Bytes; 2], WireError> {
    let (header, payload) = frame.into_parts()?;
    let size = header.len() + payload.len();
    if size > limit::TENSOR_FRAME {
        return Err(too_large(size, limit::TENSOR_FRAME));
    }
    let size = u32::try_from(size).expect("the limit is below 4 GiB");
    let header_size = u16::try_from(header.len()).expect("the header's limit is below 64 KiB");
    let mut head = Vec::with_capacity(PREFIX_BYTES + header.len());
    head.extend_from_slice(&size.to_le_bytes());
    head.extend_from_slice(&header_size.to_le_bytes());
    head.extend_from_slice(&header);
    Ok([head.into(), payload])
}

/// Reads the next frame and its size on the wire; `None` at the end of the stream. A frame that
/// the stream cuts short counts as the end: its sender gave up writing it. The payload is read
/// once the share has room for it.
pub(super) async fn read(
    stream: &mut RecvStream,
    share: &Share,
    rate: &Rate,
) -> Result<Option<(TensorFrame, usize)>, ReadFrameError> {
    let mut prefix = [0; PREFIX_BYTES];
    if !fill(stream, &mut prefix).await? {
        return Ok(None);
    }
    let (header_size, payload_size) = sizes(prefix)?;
    let mut header = vec![0; header_size];
    if !fill(stream, &mut header).await? {
        return Ok(None);
    }
    let Some(payload) = receive(stream, payload_size, share, rate).await? else {
        return Ok(None);
    };
    let frame = TensorFrame::from_parts(&header, payload)?;
    Ok(Some((frame, PREFIX_BYTES + header_size + payload_size)))
}

/// Sizes of header and payload, within their limits.
fn sizes(prefix: [u8; PREFIX_BYTES]) -> Result<(usize, usize), WireError> {
    let [a, b, c, d, e, f] = prefix;
    let size = u32::from_le_bytes([a, b, c, d]) as usize;
    let header_size = usize::from(u16::from_le_bytes([e, f]));
    if size > limit::TENSOR_FRAME {
        return Err(too_large(size, limit::TENSOR_FRAME));
    }
    if header_size > limit::TENSOR_HEADER {
        return Err(too_large(header_size, limit::TENSOR_HEADER));
    }
    let payload_size = size
        .checked_sub(header_size)
        .ok_or_else(|| WireError::Malformed {
            message: MESSAGE,
            reason: format!("a header of {header_size} bytes in a frame of {size}"),
        })?;
    Ok((header_size, payload_size))
}

fn too_large(size: usize, limit: usize) -> WireError {
    WireError::TooLarge {
        message: MESSAGE,
        size,
        limit,
    }
}

/// Fills `buffer`; `false` when the stream ends before.
async fn fill(stream: &mut RecvStream, buffer: &mut [u8]) -> Result<bool, ReadError> {
    match stream.read_exact(buffer).await {
        Ok(()) => Ok(true),
        Err(ReadExactError::FinishedEarly(_)) => Ok(false),
        Err(ReadExactError::ReadError(error)) => Err(error),
    }
}

/// Waits for room, and then for the payload.
async fn receive(
    stream: &mut RecvStream,
    size: usize,
    share: &Share,
    rate: &Rate,
) -> Result<Option<Bytes>, ReadFrameError> {
    if size == 0 {
        return Ok(Some(Bytes::new()));
    }
    let room = share.take(size).await;
    let started = Instant::now();
    let reading = timeout(PAYLOAD_TIMEOUT, read_payload(stream, size));
    let payload = reading.await.map_err(|_| ReadFrameError::Slow)??;
    rate.saw(size, started.elapsed());
    Ok(payload.map(|payload| room.fill(payload)))
}

/// The buffer doubles as bytes arrive, but never beyond `size`.
async fn read_payload(stream: &mut RecvStream, size: usize) -> Result<Option<Vec<u8>>, ReadError> {
    let mut payload = Vec::with_capacity(size.min(EAGER_BYTES));
    while payload.len() < size {
        let Some(chunk) = stream.read_chunk(size - payload.len(), true).await? else {
            return Ok(None);
        };
        let needed = payload.len() + chunk.bytes.len();
        if needed > payload.capacity() {
            let capacity = needed.max(2 * payload.capacity()).min(size);
            payload.reserve_exact(capacity - payload.len());
        }
        payload.extend_from_slice(&chunk.bytes);
    }
    Ok(Some(payload))
}
