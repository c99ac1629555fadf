//! Adverts: what nodes say about themselves, kept until it expires.
//!
//! Two ways lead here. Gossip carries every new advert to all subscribed peers. And because gossip
//! needs a moment to form its mesh, peers that connect also greet each other over a stream of
//! their own: certificate, own advert, and the adverts of others once the peer is known as a
//! member. Either way the signature, the clock, the membership and the sequence number are
//! checked before anything is believed.
//!
//! A node that is started again is the same peer at other ports. So greetings and adverts say when
//! it was started, by its own clock, and what it said in an earlier life is void from then on.
//!
//! | File | Does |
//! |---|---|
//! | [`book`] | decides, purely: what is news, what expired |
//! | [`gossip`] | publishes and hears over gossipsub |
//! | [`hello`] | greets over a stream |

pub(crate) mod book;
pub(crate) mod gossip;
pub(crate) mod hello;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{Notify, mpsc, watch};

use crate::clock::unix_ms;
use crate::membership::CertificateError;
use crate::network::{Connections, LocalAddrs, Members, NetworkEvent};
use crate::tensor::TensorPlane;
use crate::wire::{Advert, AdvertBody, AdvertError, Goodbye, Gossip};
use book::{AdvertBook, Source, Verdict};

const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Speaks for this node, and remembers what the others said.
pub(crate) struct Adverts {
    keypair: Keypair,
    peer: PeerId,
    /// When this node was started.
    life: u64,
    ttl: Duration,
    members: Arc<Members>,
    addrs: Arc<LocalAddrs>,
    connections: Arc<Connections>,
    plane: TensorPlane,
    book: Mutex<AdvertBook>,
    own: Mutex<Own>,
    /// Wakes the publisher before its time.
    publish_now: Notify,
    /// Counts what the book learnt, for the dialler.
    news: watch::Sender<u64>,
    events: mpsc::Sender<NetworkEvent>,
}

#[derive(Default)]
struct Own {
    body: Option<AdvertBody>,
    last_seq: u64,
}

/// What adverts are told with, and whom they concern.
pub(crate) struct AdvertsDeps {
    pub(crate) members: Arc<Members>,
    pub(crate) addrs: Arc<LocalAddrs>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) plane: TensorPlane,
    pub(crate) events: mpsc::Sender<NetworkEvent>,
}

/// How gossip came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// In a greeting of this peer.
    Greeting(PeerId),
    /// Over gossipsub, published just now; the last hop was this peer.
    Gossip(PeerId),
}

/// Why gossip was not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HearError {
    #[error(transparent)]
    Advert(#[from] AdvertError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Adverts {
    pub(crate) fn new(keypair: Keypair, life: u64, ttl: Duration, deps: AdvertsDeps) -> Self {
        let peer = keypair.public().to_peer_id();
        Self {
            keypair,
            peer,
            life,
            ttl,
            members: deps.members,
            addrs: deps.addrs,
            connections: deps.connections,
            plane: deps.plane,
            book: Mutex::new(AdvertBook::new(peer)),
            own: Mutex::default(),
            publish_now: Notify::new(),
            news: watch::Sender::new(0),
            events: deps.events,
        }
    }

    fn book(&self) -> MutexGuard<'_, AdvertBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node says from now on. Published at once when it differs from before.
    pub(crate) fn set_body(&self, body: AdvertBody) {
        let mut own = self.own();
        if own.body.as_ref() == Some(&body) {
            return;
        }
        own.body = Some(body);
        drop(own);
        self.publish_now.notify_one();
    }

    /// Publish before the next renewal is due, because somebody new may listen.
    pub(crate) fn publish_now(&self) {
        self.publish_now.notify_one();
    }

    /// A fresh signed advert of this node; `None` before the first [`set_body`](Self::set_body)
    /// and while this node is no member itself.
    pub(crate) fn seal_own(&self) -> Option<Bytes> {
        self.members.may_take_part().ok()?;
        let mut body = self.own().body.clone()?;
        body.addrs = self.addrs.listen();
        body.tensor_addrs = self.addrs.tensor();
        body.membership = self.members.own_certificate();
        let (seq, issued_unix_ms) = self.next_seq();
        let advert = Advert {
            peer: self.peer,
            seq,
            started_unix_ms: self.life,
            issued_unix_ms,
            ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
            body,
        };
        self.seal(&Gossip::Advert(Box::new(advert)))
    }

    /// A signed goodbye; `None` if this node never said anything.
    pub(crate) fn seal_goodbye(&self) -> Option<Bytes> {
        self.own().body.as_ref()?;
        let (seq, issued_unix_ms) = self.next_seq();
        self.seal(&Gossip::Goodbye(Goodbye {
            peer: self.peer,
            seq,
            issued_unix_ms,
        }))
    }

    fn seal(&self, gossip: &Gossip) -> Option<Bytes> {
        match gossip.seal(&self.keypair) {
            Ok(sealed) => Some(sealed.into()),
            Err(error) => {
                tracing::error!(%error, "this node cannot advertise itself");
                None
            }
        }
    }

    /// Sequence numbers follow the clock, so that they grow over restarts too.
    fn next_seq(&self) -> (u64, u64) {
        let now = unix_ms();
        let mut own = self.own();
        own.last_seq = now.max(own.last_seq + 1);
        (own.last_seq, now)
    }

    /// A connected peer greets in this life. Returns once the owner was told, so that what the peer
    /// says next is told after it.
    pub(crate) async fn greeted(&self, peer: PeerId, life: u64) {
        self.connections.wait_for_report(&peer, life).await;
        self.outlive(peer, life).await;
        self.connections.greeted(&peer, life);
        self.connections.wait_for_owner().await;
    }

    /// A peer has begun this life, by its own word: what it had and said in earlier ones is void.
    async fn outlive(&self, peer: PeerId, life: u64) {
        self.moved(peer, life, &[]).await;
        let is_void = self.book().outlived(&peer, life, unix_ms());
        if is_void {
            self.tell(NetworkEvent::PeerExpired(peer)).await;
        }
    }

    /// The tensor plane lets go of what an earlier life of the peer had.
    async fn moved(&self, peer: PeerId, life: u64, tensor_addrs: &[SocketAddr]) {
        if let Some(loss) = self.plane.moved(&peer, life, tensor_addrs) {
            self.tell(loss.into()).await;
        }
    }

    async fn tell(&self, event: NetworkEvent) {
        // The owner is gone only while the network ends.
        let _ = self.events.send(event).await;
    }

    /// Checks signed gossip, remembers it and tells the owner what is new.
    pub(crate) async fn hear(&self, sealed: Bytes, told: Told) -> Result<(), HearError> {
        let now = unix_ms();
        let gossip = Gossip::open(&sealed, now)?;
        if let Gossip::Advert(advert) = &gossip {
            self.members
                .admit(advert.peer, advert.body.membership.as_ref())?;
            self.meet_author(advert, told).await;
        }
        let source = match told {
            Told::Greeting(teller) if teller != gossip.peer() => Source::Relayed,
            _ => Source::Fresh,
        };
        let life = self.connections.life_of(&gossip.peer());
        let verdict = self.book().accept(gossip, sealed, source, life, now);
        let event = match verdict {
            Verdict::News(advert) => {
                let (life, addrs) = (advert.started_unix_ms, &advert.body.tensor_addrs);
                self.moved(advert.peer, life, addrs).await;
                NetworkEvent::Advert(advert)
            }
            Verdict::Gone(peer) => NetworkEvent::PeerExpired(peer),
            Verdict::Nothing => return Ok(()),
        };
        self.news.send_modify(|news| *news += 1);
        self.tell(event).await;
        Ok(())
    }

    /// The first that a connected peer says itself is of the life in which it is connected. So is one
    /// that it signed after what is known of it, whoever tells it: a greeting may be on its way for
    /// long, on an earlier connection that only the peer takes for open. A later life that anybody
    /// tells has the peer's signature; it counts as connected in that only if there is a connection
    /// that may be of it.
    async fn meet_author(&self, advert: &Advert, told: Told) {
        let (peer, life) = (advert.peer, advert.started_unix_ms);
        let (Told::Greeting(teller) | Told::Gossip(teller)) = told;
        let known = self.connections.life_of(&peer);
        let is_first = known.is_none() && (teller == peer || self.book().is_renewed_by(advert));
        if is_first || known.is_some_and(|known| life > known) {
            self.outlive(peer, life).await;
            if self.connections.has_connection_for(&peer, life) {
                self.connections.greeted(&peer, life);
            }
        }
    }

    /// Tells the owner of adverts that expire, for as long as the network runs.
    pub(crate) async fn sweep(&self) {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            ticks.tick().await;
            let expired = self.book().sweep(unix_ms());
            for peer in expired {
                self.tell(NetworkEvent::PeerExpired(peer)).await;
            }
        }
    }

    /// Wakes whenever something new was heard.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Where the advertised peers listen.
    pub(crate) fn addrs(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        self.book().addrs()
    }

    /// Where one advertised peer listens.
    pub(crate) fn addrs_of(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.book().addrs_of(peer)
    }

    /// Where the tensor plane of one advertised peer listens.
    pub(crate) fn tensor_addrs_of(&self, peer: &PeerId) -> Vec<SocketAddr> {
        self.book().tensor_addrs_of(peer)
    }

    fn sealed_for(&self, peer: &PeerId) -> Vec<Bytes> {
        self.book().sealed_for(peer)
    }
}

/// An advert body that says nothing yet.
#[cfg(test)]
pub(crate) fn empty_body() -> AdvertBody {
    AdvertBody {
        addrs: Vec::new(),
        tensor_addrs: Vec::new(),
        api: None,
        version: "test".into(),
        hardware: crate::wire::HardwareAdvert::default(),
        measured_gb_s: 1.0,
        numerics: "test".into(),
        max_layers: None,
        draining: false,
        load: crate::wire::LoadAdvert::default(),
        models: Vec::new(),
        membership: None,
    }
}
