//! Messages on a stream: their length as an unsigned varint, then the message.

use std::io;

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::limits;
use super::message::put_varint;

/// Memory is taken as bytes arrive, this much at first.
const FIRST_CAPACITY: usize = 64 * 1024;

/// Reads one message; `None` at the end of the stream.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let Some(size) = read_size(stream).await? else {
        return Ok(None);
    };
    if size > limits::MESSAGE {
        let reason = format!("a bitswap message of {size} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let mut frame = Vec::with_capacity(size.min(FIRST_CAPACITY));
    stream.take(size as u64).read_to_end(&mut frame).await?;
    if frame.len() < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(frame.into()))
}

async fn read_size(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<usize>> {
    let mut size = 0usize;
    for shift in [0, 7, 14, 21] {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return match shift {
                0 => Ok(None),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        let [byte] = byte;
        size |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(Some(size));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "a bitswap message longer than any may be",
    ))
}

/// Writes one message and flushes it.
pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let mut size = Vec::with_capacity(4);
    put_varint(&mut size, message.len() as u64);
    stream.write_all(&size).await?;
    stream.write_all(message).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    async fn written(messages: &[&[u8]]) -> Vec<u8> {
        let mut stream = Cursor::new(Vec::new());
        for message in messages {
            write(&mut stream, message).await.unwrap();
        }
        stream.into_inner()
    }

    #[tokio::test]
    async fn messages_are_read_as_they_were_written() {
        let long = vec![7; 300_000];
        let bytes = written(&[b"one", b"", &long]).await;
        let mut stream = Cursor::new(bytes);
        assert_eq!(read(&mut stream).await.unwrap().unwrap(), "one");
        assert_eq!(read(&mut stream).await.unwrap().unwrap(), "");
        assert_eq!(read(&mut stream).await.unwrap().unwrap(), long);
        assert_eq!(read(&mut stream).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_message_that_is_cut_or_too_long_is_an_error() {
        let mut cut = written(&[b"message"]).await;
        cut.pop();
        assert!(read(&mut Cursor::new(cut)).await.is_err());
        let mut too_long = Vec::new();
        put_varint(&mut too_long, limits::MESSAGE as u64 + 1);
        assert!(read(&mut Cursor::new(too_long)).await.is_err());
        assert!(read(&mut Cursor::new([0x80; 9])).await.is_err());
    }
}
