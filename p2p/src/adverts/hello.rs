//! The greeting: what two peers tell each other as soon as they are connected.
//!
//! ```text
//! one side                                   the other
//!   ── id of the swarm, start of the node ──▶  the same swarm, or the stream is closed
//!   ── certificate (private swarm) ─────────▶  admitted, or the stream is closed
//!   ── signed advert, for each known ───────▶  checked and remembered
//!   ── empty frame ─────────────────────────▶
//!   ◀──────────────────────────── one byte: heard
//! ```
//!
//! When a node was started is what tells that it was started again: the peer is the same, its
//! ports and all that it held are not. It is said at once, and the advert may come later.
//!
//! Both sides greet, each on a stream of its own. Frames are `length: u32` (little endian) and a
//! message of the wire table, told apart by its tag. In a private swarm the adverts of others
//! follow in a second greeting, once the peer has shown its certificate; who shows none is
//! disconnected, whether it takes the greeting or not: until then it may overhear gossip.
//!
//! A greeting that is not heard is said again for as long as the peer is connected, and one more
//! connection makes both sides greet anew: what was under way on another may be lost.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;
use tokio::sync::{Notify, Semaphore};

use super::{Adverts, Told};
use crate::membership::Certificate;
use crate::network::{NetworkError, Streams, Tasks};
use crate::wire::{limit, protocol, tag};

/// Pauses before a greeting is said again; the last one holds from then on.
const RETRY_PAUSES: [Duration; 4] = [
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(120),
    Duration::from_secs(5),
];
/// A greeting takes no longer, whatever its size.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long this node may take to become a member before it greets.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// How long a connected peer may take to show its certificate.
const CERTIFICATE_LIMIT: Duration = Duration::from_secs(5);
/// Adverts in one greeting; what does not fit is learnt by gossip.
const MAX_ADVERTS: usize = 256;
const MAX_GREETINGS: usize = 64;
const HEARD: u8 = 1;

/// The peer has shown no certificate in time.
pub(crate) struct Stranger;

/// Greets a peer for as long as this is polled: now, and anew at every notice of one more
/// connection. Ends only if the peer proves to be no member.
pub(crate) async fn greet(
    adverts: &Adverts,
    streams: &Streams,
    peer: PeerId,
    again: &Notify,
) -> Stranger {
    let can_speak = adverts.members.wait_for_own(JOIN_LIMIT).await;
    let speaking = async {
        if !can_speak {
            return pending().await;
        }
        loop {
            tokio::select! {
                () = speak(adverts, streams, peer) => again.notified().await,
                () = again.notified() => {}
            }
        }
    };
    // A peer that takes long to hear us, or connects again, has no longer to show who it is.
    tokio::select! {
        stranger = stranger(adverts, peer) => stranger,
        stranger = speaking => stranger,
    }
}

/// Waits for a certificate in a private swarm; returns only if none comes.
async fn stranger(adverts: &Adverts, peer: PeerId) -> Stranger {
    let members = &adverts.members;
    match members.is_private() && !members.wait_for(&peer, CERTIFICATE_LIMIT).await {
        true => Stranger,
        false => pending().await,
    }
}

/// Says the greeting until it is heard.
async fn speak(adverts: &Adverts, streams: &Streams, peer: PeerId) {
    let [quick @ .., slow] = RETRY_PAUSES;
    for pause in quick.into_iter().chain(std::iter::repeat(slow)) {
        match tell(adverts, streams, peer).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%peer, %error, "a greeting was not heard"),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Tells a peer all that it may know, once.
async fn tell(adverts: &Adverts, streams: &Streams, peer: PeerId) -> Result<(), SendError> {
    let members = &adverts.members;
    let mut sealed: Vec<Bytes> = adverts.seal_own().into_iter().collect();
    if members.is_private() {
        send(adverts, streams, peer, &sealed).await?;
        sealed.clear();
        if !members.wait_for(&peer, CERTIFICATE_LIMIT).await {
            return Ok(());
        }
    }
    sealed.extend(adverts.sealed_for(&peer));
    match members.is_private() && sealed.is_empty() {
        true => Ok(()),
        false => send(adverts, streams, peer, &sealed).await,
    }
}

/// Why a greeting was not heard.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Stream(#[from] NetworkError),
    #[error(transparent)]
    Cut(#[from] io::Error),
    #[error("no answer in {GREETING_TIMEOUT:?}")]
    Timeout,
}

async fn send(
    adverts: &Adverts,
    streams: &Streams,
    peer: PeerId,
    sealed: &[Bytes],
) -> Result<(), SendError> {
    let mut frames = vec![first_frame(adverts)];
    let certificate = adverts.members.own_certificate();
    frames.extend(certificate.map(|own| Bytes::from(own.to_bytes())));
    frames.extend(sealed.iter().take(MAX_ADVERTS).cloned());
    let mut stream = streams.open(peer, protocol::ADVERT).await?;
    let greeting = send_frames(&mut stream, &frames);
    match tokio::time::timeout(GREETING_TIMEOUT, greeting).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(SendError::Timeout),
    }
}

async fn send_frames(stream: &mut Stream, frames: &[Bytes]) -> io::Result<()> {
    for frame in frames {
        let size = u32::try_from(frame.len()).map_err(io::Error::other)?;
        stream.write_all(&size.to_le_bytes()).await?;
        stream.write_all(frame).await?;
    }
    stream.write_all(&[0; 4]).await?;
    stream.flush().await?;
    let mut heard = [0];
    stream.read_exact(&mut heard).await?;
    stream.close().await
}

/// Hears greetings for as long as the network runs.
pub(crate) async fn serve(mut incoming: IncomingStreams, adverts: Arc<Adverts>, tasks: Tasks) {
    let slots = Arc::new(Semaphore::new(MAX_GREETINGS));
    while let Some((peer, mut stream)) = incoming.next().await {
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let adverts = Arc::clone(&adverts);
        tasks.spawn(async move {
            let hearing = hear(&adverts, peer, &mut stream);
            match tokio::time::timeout(GREETING_TIMEOUT, hearing).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a greeting was cut short"),
                Err(_) => tracing::debug!(%peer, "a greeting took too long"),
            }
            drop(slot);
        });
    }
}

async fn hear(adverts: &Adverts, peer: PeerId, stream: &mut Stream) -> io::Result<()> {
    let first = read_frame(stream).await?;
    let life = life_in(&first, adverts)
        .ok_or_else(|| io::Error::other("the peer belongs to another swarm"))?;
    adverts.greeted(peer, life).await;
    // The certificate, the adverts, and the empty frame at the end.
    for _ in 0..MAX_ADVERTS + 2 {
        let frame = read_frame(stream).await?;
        match frame.first() {
            None => {
                stream.write_all(&[HEARD]).await?;
                return stream.close().await;
            }
            Some(&tag::CERTIFICATE) => show(adverts, peer, &frame)?,
            Some(_) if !adverts.members.is_member(&peer) => {
                return Err(io::Error::other("adverts from a peer that is no member"));
            }
            Some(_) => {
                if let Err(error) = adverts.hear(frame, Told::Greeting(peer)).await {
                    tracing::debug!(%peer, %error, "an advert in a greeting is not believed");
                }
            }
        }
    }
    Err(io::Error::other("more frames than a greeting may have"))
}

/// Says which swarm the sender belongs to, as not everybody who connects belongs to the same, and
/// in which of its lives it is.
fn first_frame(adverts: &Adverts) -> Bytes {
    let mut frame = vec![tag::GREETING];
    frame.extend_from_slice(adverts.members.membership().swarm_id().as_bytes());
    frame.extend_from_slice(&adverts.life.to_le_bytes());
    frame.into()
}

/// The life in the first frame of somebody of this swarm.
fn life_in(frame: &[u8], adverts: &Adverts) -> Option<u64> {
    let swarm = adverts.members.membership().swarm_id();
    let rest = frame.strip_prefix(&[tag::GREETING])?;
    let life = rest.strip_prefix(swarm.as_bytes().as_slice())?;
    life.try_into().ok().map(u64::from_le_bytes)
}

fn show(adverts: &Adverts, peer: PeerId, frame: &[u8]) -> io::Result<()> {
    let certificate = Certificate::from_bytes(frame).map_err(io::Error::other)?;
    let admitted = adverts.members.admit(peer, Some(&certificate));
    admitted.map_err(|error| {
        tracing::warn!(%peer, %error, "a peer is not let into the swarm");
        io::Error::other(error)
    })
}

async fn read_frame(stream: &mut Stream) -> io::Result<Bytes> {
    let mut size = [0; 4];
    stream.read_exact(&mut size).await?;
    let size = u32::from_le_bytes(size) as usize;
    if size > limit::GOSSIP_ENVELOPE {
        return Err(io::Error::other("a frame larger than any advert"));
    }
    let mut frame = vec![0; size];
    stream.read_exact(&mut frame).await?;
    Ok(frame.into())
}

#[cfg(test)]
mod tests;
