//! Incoming connections, and reading from all connections.

use std::sync::Arc;

use libp2p::PeerId;
use quinn::{Connection, ConnectionError, Incoming, ReadError, RecvStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::frame::{self, ReadFrameError};
use super::link::Link;
use super::{MAX_CONNECTIONS, PeerLoss, Shared, TensorError, endpoint, greeting, pulse};

/// Takes connections until the plane shuts down.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let incoming = tokio::select! {
            () = shared.closing.cancelled() => return,
            incoming = shared.endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let permit = shared.handshakes.clone().try_acquire_owned();
        match permit {
            Ok(permit) if shared.endpoint.open_connections() < MAX_CONNECTIONS => {
                shared.spawn(greet(shared.clone(), incoming, permit));
            }
            _ => incoming.refuse(),
        }
    }
}

/// Finishes the handshake and lets members in. The permit bounds how many do so at once.
async fn greet(shared: Arc<Shared>, incoming: Incoming, _permit: OwnedSemaphorePermit) {
    let from = incoming.remote_address();
    match timeout(shared.connect_timeout, meet(&shared, incoming)).await {
        Ok(Ok((peer, connection, life))) => {
            tracing::debug!(%peer, %from, "tensor connection from peer");
            let link = shared.link(peer);
            adopt(&shared, link, connection, life);
        }
        Ok(Err(error)) => tracing::warn!(%from, %error, "refused a tensor connection"),
        Err(_) => tracing::warn!(%from, "a tensor connection never got to its greeting"),
    }
}

/// Learns who connects, whether it is a member, and in which of its lives it is.
async fn meet(shared: &Shared, incoming: Incoming) -> Result<(PeerId, Connection, u64), MeetError> {
    let connection = incoming.await?;
    let peer = endpoint::peer_of(&connection).ok_or(MeetError::NoIdentity)?;
    let admission = shared.admission.as_ref();
    let life = greeting::answer(&connection, peer, admission, shared.life).await?;
    Ok((peer, connection, life))
}

/// Why an incoming connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum MeetError {
    #[error(transparent)]
    Handshake(#[from] ConnectionError),
    #[error("it proves no peer id")]
    NoIdentity,
    #[error(transparent)]
    Greeting(#[from] TensorError),
}

/// Makes a connection part of the link to its peer, and reads from it until it ends. What was
/// under way to an earlier life of the peer is lost.
pub(super) fn adopt(shared: &Arc<Shared>, link: Arc<Link>, connection: Connection, life: u64) {
    if link.add(connection.clone(), life) {
        // Nobody listening is fine.
        let _ = shared.losses.send(endpoint::outlived(link.peer()));
    }
    shared.spawn(serve(shared.clone(), link, connection));
}

async fn serve(shared: Arc<Shared>, link: Arc<Link>, connection: Connection) {
    let peer = link.peer();
    let ended = tokio::select! {
        ended = read_streams(&shared, &link, &connection) => ended,
        () = pulse::silence(&connection) => {
            // Should it live after all, it learns that it has to connect again.
            connection.close(endpoint::SILENT, b"silent");
            Err(endpoint::silent(peer))
        }
    };
    let is_loss = link.ended(&connection);
    let Err(error) = ended else {
        return tracing::debug!(%peer, "tensor connection closed here");
    };
    tracing::debug!(%peer, %error, "tensor connection broke");
    if is_loss {
        // Nobody listening is fine.
        let _ = shared.losses.send(PeerLoss { peer, error });
    }
}

/// Reads one stream after the other, so that a frame never overtakes one of an older stream.
/// `Ok` when the connection was closed on this side.
async fn read_streams(
    shared: &Shared,
    link: &Link,
    connection: &Connection,
) -> Result<(), TensorError> {
    loop {
        let mut stream = match connection.accept_uni().await {
            Ok(stream) => stream,
            Err(error) => return closed(link.peer(), &error),
        };
        match read_frames(shared, link, &mut stream).await {
            Err(ReadFrameError::Stream(ReadError::ConnectionLost(error))) => {
                return closed(link.peer(), &error);
            }
            Err(error @ (ReadFrameError::Wire(_) | ReadFrameError::Slow)) => {
                connection.close(endpoint::BAD_FRAME, b"bad frame");
                let reason = format!("it sent a bad frame: {error}");
                return Err(TensorError::Lost {
                    peer: link.peer(),
                    reason,
                });
            }
            Ok(()) | Err(ReadFrameError::Stream(_)) => {}
        }
    }
}

fn closed(peer: PeerId, error: &ConnectionError) -> Result<(), TensorError> {
    match error {
        ConnectionError::LocallyClosed => Ok(()),
        error => Err(endpoint::loss(peer, error)),
    }
}

async fn read_frames(
    shared: &Shared,
    link: &Link,
    stream: &mut RecvStream,
) -> Result<(), ReadFrameError> {
    let peer: PeerId = link.peer();
    loop {
        let read = tokio::select! {
            () = shared.closing.cancelled() => return Ok(()),
            read = frame::read(stream, link.share(), &shared.rate) => read?,
        };
        let Some((frame, size)) = read else {
            return Ok(());
        };
        link.count_received(size);
        let delivered = tokio::select! {
            () = shared.closing.cancelled() => return Ok(()),
            delivered = shared.frames.send((peer, frame)) => delivered,
        };
        if delivered.is_err() {
            // The receiver is gone: nobody will ever want what comes.
            return Ok(());
        }
    }
}
