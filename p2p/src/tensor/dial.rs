//! Dialling a peer: one attempt at a time, however many need it, at all addresses that they know.
//!
//! The addresses may change while the attempt is under way: one that a newer advert no longer has
//! is given up, one that it brings is tried at once. The attempt ends as soon as the peer is
//! connected, also if it was the peer that dialled.
//!
//! What is given up is the way to an address, never a peer that answered there: from the first word
//! of the greeting on it may have taken the connection in, and have given up its own for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::FuturesUnordered;
use libp2p::PeerId;
use quinn::{Connection, ConnectionError};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::link::{Link, Outcome};
use super::{Shared, TensorError, WrongPeer, accept, endpoint, greeting};

/// Head start of each address over the next one.
const STAGGER: Duration = Duration::from_millis(50);
/// QUIC wants a server name; identity comes from the certificate.
const SERVER_NAME: &str = "accel";

/// Carries out the dial that the link has under way, and tells all who wait for it.
pub(super) async fn run(shared: Arc<Shared>, link: Arc<Link>, outcome: watch::Sender<Outcome>) {
    let mut dialling = Dialling::new(shared.clone(), link.clone());
    let result = tokio::select! {
        result = dialling.run() => result,
        () = shared.closing.cancelled() => {
            link.end_dial();
            Err(TensorError::ShutDown)
        }
    };
    outcome.send_replace(Some(result));
}

/// What one address led to; the connection is part of the link then.
type Answer = (SocketAddr, Result<(), DialError>);

struct Dialling {
    shared: Arc<Shared>,
    link: Arc<Link>,
    attempts: FuturesUnordered<Abortable<BoxFuture<'static, Answer>>>,
    tried: HashMap<SocketAddr, AbortHandle>,
    reasons: Vec<String>,
}

impl Dialling {
    fn new(shared: Arc<Shared>, link: Arc<Link>) -> Self {
        Self {
            shared,
            link,
            attempts: FuturesUnordered::new(),
            tried: HashMap::new(),
            reasons: Vec::new(),
        }
    }

    async fn run(&mut self) -> Result<(), TensorError> {
        let mut changed = self.link.changes();
        loop {
            changed.mark_unchanged();
            if self.link.is_connected() {
                self.link.end_dial();
                return Ok(());
            }
            self.follow(&self.link.targets());
            if self.attempts.is_empty() && self.link.give_up(|addr| self.tried.contains_key(addr)) {
                return Err(self.unreachable());
            }
            tokio::select! {
                Some(answer) = self.attempts.next() => {
                    // One that was given up has nothing to say.
                    if let Ok((addr, answer)) = answer {
                        self.hear(addr, answer)?;
                    }
                }
                _ = changed.changed() => {}
            }
        }
    }

    /// Gives up addresses that are none any more, and begins with new ones, each a little later
    /// than the one before.
    fn follow(&mut self, targets: &[SocketAddr]) {
        let gone = self.tried.extract_if(|addr, _| !targets.contains(addr));
        for (_, attempt) in gone {
            attempt.abort();
        }
        let mut head_start = Duration::ZERO;
        for addr in targets {
            if self.tried.contains_key(addr) {
                continue;
            }
            let (handle, registration) = AbortHandle::new_pair();
            self.tried.insert(*addr, handle);
            let attempt = attempt(self.shared.clone(), self.link.clone(), *addr, head_start);
            let attempt: BoxFuture<'static, Answer> = Box::pin(attempt);
            self.attempts.push(Abortable::new(attempt, registration));
            head_start += STAGGER;
        }
    }

    /// Takes in what an address led to; an error ends the whole dial.
    fn hear(&mut self, addr: SocketAddr, answer: Result<(), DialError>) -> Result<(), TensorError> {
        let reason = match answer {
            // Asked for only if it is gone again.
            Ok(()) => "the connection closed as soon as it was there".to_owned(),
            Err(DialError::WrongPeer(found)) if self.link.give_up(|target| *target == addr) => {
                let expected = self.link.peer();
                let wrong = WrongPeer {
                    expected,
                    found,
                    addr,
                };
                return Err(TensorError::WrongPeer(Box::new(wrong)));
            }
            // It is the right peer, and it will say the same at its other addresses.
            Err(DialError::Greeting(
                error @ (TensorError::NotAMember { .. } | TensorError::Refused { .. }),
            )) => {
                self.link.end_dial();
                return Err(error);
            }
            Err(error) => error.to_string(),
        };
        self.reasons.push(format!("{addr}: {reason}"));
        Ok(())
    }

    fn unreachable(&self) -> TensorError {
        let reasons = match self.reasons.is_empty() {
            true => "it has no tensor address".to_owned(),
            false => self.reasons.join("; "),
        };
        TensorError::Unreachable {
            peer: self.link.peer(),
            reasons,
        }
    }
}

async fn attempt(
    shared: Arc<Shared>,
    link: Arc<Link>,
    addr: SocketAddr,
    head_start: Duration,
) -> Answer {
    sleep(head_start).await;
    let limit = shared.connect_timeout;
    let deadline = Instant::now() + limit;
    let peer = link.peer();
    let found = match timeout_at(deadline, find(&shared, peer, addr)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return (addr, Err(error)),
        Err(_) => return (addr, Err(DialError::Timeout(limit))),
    };
    // In a task of its own: nobody may give up what the peer may have taken in.
    let (sender, greeted) = oneshot::channel();
    shared.spawn(greet(shared.clone(), link, found, deadline, sender));
    let greeted = greeted.await;
    (addr, greeted.unwrap_or(Err(TensorError::ShutDown.into())))
}

/// Connects, and looks whether it is the peer.
async fn find(shared: &Shared, peer: PeerId, addr: SocketAddr) -> Result<Connection, DialError> {
    let client = shared.client.clone();
    let connecting = shared.endpoint.connect_with(client, addr, SERVER_NAME)?;
    let connection = connecting.await?;
    let found = endpoint::peer_of(&connection).ok_or(DialError::NoIdentity)?;
    if found != peer {
        connection.close(endpoint::BYE, b"looking for somebody else");
        return Err(DialError::WrongPeer(found));
    }
    Ok(connection)
}

/// Learns in which life the peer is, and takes the connection in.
async fn greet(
    shared: Arc<Shared>,
    link: Arc<Link>,
    connection: Connection,
    deadline: Instant,
    answer: oneshot::Sender<Result<(), DialError>>,
) {
    let admission = shared.admission.as_ref();
    let offer = greeting::offer(&connection, link.peer(), admission, shared.life);
    let greeted = match timeout_at(deadline, offer).await {
        Ok(Ok(life)) => {
            accept::adopt(&shared, link, connection, life);
            Ok(())
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(DialError::Timeout(shared.connect_timeout)),
    };
    // Who dialled may be content with another connection by now.
    let _ = answer.send(greeted);
}

/// Why one address did not lead to the peer.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Address(#[from] quinn::ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    #[error("peer {0} is there instead")]
    WrongPeer(PeerId),
    #[error("it proves no peer id")]
    NoIdentity,
    #[error(transparent)]
    Greeting(#[from] TensorError),
}
