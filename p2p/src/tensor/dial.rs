//! Dialling a peer: one attempt at a time, however many need it, at all addresses that they know.
//!
//! The addresses may change while the attempt is under way: one that a newer advert no longer has
//! is given up, one that it brings is tried at once. The attempt ends as soon as the peer is
//! connected, also if it was the peer that dialled.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::FuturesUnordered;
use libp2p::PeerId;
use quinn::{Connection, ConnectionError};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

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

/// What one address led to.
type Answer = (SocketAddr, Result<(Connection, u64), DialError>);

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
                    if let Ok((addr, answer)) = answer
                        && let Some(error) = self.hear(addr, answer)
                    {
                        self.link.end_dial();
                        return Err(error);
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
            let attempt = attempt(self.shared.clone(), self.link.peer(), *addr, head_start);
            let attempt: BoxFuture<'static, Answer> = Box::pin(attempt);
            self.attempts.push(Abortable::new(attempt, registration));
            head_start += STAGGER;
        }
    }

    /// Takes in what an address led to; an error that ends the whole dial.
    fn hear(
        &mut self,
        addr: SocketAddr,
        answer: Result<(Connection, u64), DialError>,
    ) -> Option<TensorError> {
        match answer {
            Ok((connection, life)) => {
                accept::adopt(&self.shared, self.link.clone(), connection, life);
                None
            }
            Err(DialError::WrongPeer(found)) if self.tried.len() == 1 => {
                let expected = self.link.peer();
                let wrong = WrongPeer {
                    expected,
                    found,
                    addr,
                };
                Some(TensorError::WrongPeer(Box::new(wrong)))
            }
            // It is the right peer, and it will say the same at its other addresses.
            Err(DialError::Greeting(error)) => Some(error),
            Err(error) => {
                self.reasons.push(format!("{addr}: {error}"));
                None
            }
        }
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
    peer: PeerId,
    addr: SocketAddr,
    head_start: Duration,
) -> Answer {
    sleep(head_start).await;
    let limit = shared.connect_timeout;
    let met = timeout(limit, meet(&shared, peer, addr)).await;
    (addr, met.unwrap_or(Err(DialError::Timeout(limit))))
}

/// Connects, and learns whether it is the peer, and in which life.
async fn meet(
    shared: &Shared,
    peer: PeerId,
    addr: SocketAddr,
) -> Result<(Connection, u64), DialError> {
    let client = shared.client.clone();
    let connecting = shared.endpoint.connect_with(client, addr, SERVER_NAME)?;
    let connection = connecting.await?;
    let found = endpoint::peer_of(&connection).ok_or(DialError::NoIdentity)?;
    if found != peer {
        connection.close(endpoint::BYE, b"looking for somebody else");
        return Err(DialError::WrongPeer(found));
    }
    let admission = shared.admission.as_ref();
    let life = greeting::offer(&connection, found, admission, shared.life).await?;
    Ok((connection, life))
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
