//! The network half of joining a private swarm.
//!
//! The newcomer can connect, because the invite holds the pre-shared key, but is served nothing
//! until it has a certificate. It shows the invite over `/accel/join/1` to a member that holds the
//! authority key, which checks it and answers with a certificate for the peer id that the
//! connection proved.

use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncWriteExt, StreamExt};
use libp2p::{Multiaddr, PeerId, Stream};
use libp2p_stream::IncomingStreams;
use tokio::sync::Semaphore;

use crate::membership::{Certificate, Invite, InviteError};
use crate::network::{LocalAddrs, Members, NetworkError, Streams, Tasks};
use crate::wire::{FrameError, JoinRequest, JoinResponse, protocol, read_message, write_message};

const ATTEMPTS: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(40);
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REQUESTS: usize = 16;

/// A certificate, and further members to dial.
pub(crate) type Welcome = (Certificate, Vec<Multiaddr>);

/// Asks a connected member to let this node in.
pub(crate) async fn ask(
    streams: &Streams,
    peer: PeerId,
    invite: &Invite,
) -> Result<Welcome, NetworkError> {
    let request = JoinRequest {
        invite: invite.clone(),
    };
    let mut last = NetworkError::NotConnected(peer);
    for attempt in 1..=ATTEMPTS {
        let mut stream = streams.open(peer, protocol::JOIN).await?;
        let asking = exchange(&mut stream, &request);
        last = match tokio::time::timeout(TIMEOUT, asking).await {
            Ok(Ok(Some(response))) => return welcome(response),
            Ok(Ok(None)) => broken(peer, "it closed the stream without an answer".into()),
            Ok(Err(error)) => broken(peer, error.to_string()),
            Err(_) => NetworkError::TimedOut {
                peer,
                after: TIMEOUT,
            },
        };
        tokio::time::sleep(RETRY_PAUSE * attempt).await;
    }
    Err(last)
}

fn broken(peer: PeerId, reason: String) -> NetworkError {
    NetworkError::Broken { peer, reason }
}

async fn exchange(
    stream: &mut Stream,
    request: &JoinRequest,
) -> Result<Option<JoinResponse>, FrameError> {
    write_message(stream, request).await?;
    read_message(stream).await
}

fn welcome(response: JoinResponse) -> Result<Welcome, NetworkError> {
    match response {
        JoinResponse::Welcome { certificate, addrs } => Ok((certificate, addrs)),
        JoinResponse::Refused {
            code,
            message,
            hint,
        } => Err(NetworkError::JoinRefused {
            code,
            message,
            hint,
        }),
    }
}

/// Answers newcomers for as long as the network runs. `addrs` are told to who is let in.
pub(crate) async fn serve(
    mut incoming: IncomingStreams,
    members: Arc<Members>,
    addrs: Arc<LocalAddrs>,
    tasks: Tasks,
) {
    let slots = Arc::new(Semaphore::new(MAX_REQUESTS));
    while let Some((peer, mut stream)) = incoming.next().await {
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let (members, addrs) = (Arc::clone(&members), addrs.listen());
        tasks.spawn(async move {
            let answering = answer(&mut stream, peer, &members, addrs);
            match tokio::time::timeout(TIMEOUT, answering).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a join request failed"),
                Err(_) => tracing::debug!(%peer, "a join request took too long"),
            }
            drop(slot);
        });
    }
}

async fn answer(
    stream: &mut Stream,
    peer: PeerId,
    members: &Members,
    addrs: Vec<Multiaddr>,
) -> Result<(), FrameError> {
    let Some(JoinRequest { invite }) = read_message(stream).await? else {
        return Ok(());
    };
    let response = match members.accept_invite(&invite, peer) {
        Ok(certificate) => {
            tracing::info!(%peer, "a new member joined by invite");
            JoinResponse::Welcome { certificate, addrs }
        }
        Err(error) => {
            tracing::warn!(%peer, %error, "an invite was refused");
            JoinResponse::refused(code(&error), &error.to_string(), hint(&error))
        }
    };
    write_message(stream, &response).await?;
    stream.close().await?;
    Ok(())
}

fn code(error: &InviteError) -> &'static str {
    match error {
        InviteError::Malformed { .. } => "malformed_invite",
        InviteError::Expired { .. } => "expired_invite",
        InviteError::WrongSwarm { .. } => "wrong_swarm",
        InviteError::BadSignature => "forged_invite",
        InviteError::NoAuthority => "no_authority",
        InviteError::Unsendable(_) => "malformed_invite",
    }
}

fn hint(error: &InviteError) -> &'static str {
    match error {
        InviteError::NoAuthority => "join through the node that made the invite",
        _ => "ask for a new invite, made with `accel swarm invite`",
    }
}
