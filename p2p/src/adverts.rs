//! Adverts: what nodes say about themselves, kept until it expires.
//!
//! Two ways lead here. Gossip carries every new advert to all subscribed peers. And because gossip
//! needs a moment to form its mesh, peers that connect also greet each other over a stream of
//! their own: certificate, own advert, and the adverts of others once the peer is known as a
//! member. Either way the signature, the clock, the membership and the sequence number are
//! checked before anything is believed.
//!
//! | File | Does |
//! |---|---|
//! | [`book`] | decides, purely: what is news, what expired |
//! | [`gossip`] | publishes and hears over gossipsub |
//! | [`hello`] | greets over a stream |

pub(crate) mod book;
pub(crate) mod gossip;
pub(crate) mod hello;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{Notify, mpsc, watch};

use crate::clock::unix_ms;
use crate::membership::CertificateError;
use crate::network::{LocalAddrs, Members, NetworkEvent};
use crate::wire::{Advert, AdvertBody, AdvertError, Goodbye, Gossip};
use book::{AdvertBook, Source, Verdict};

const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Speaks for this node, and remembers what the others said.
pub(crate) struct Adverts {
    keypair: Keypair,
    peer: PeerId,
    ttl: Duration,
    members: Arc<Members>,
    addrs: Arc<LocalAddrs>,
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

/// Why gossip was not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HearError {
    #[error(transparent)]
    Advert(#[from] AdvertError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Adverts {
    pub(crate) fn new(
        keypair: Keypair,
        ttl: Duration,
        members: Arc<Members>,
        addrs: Arc<LocalAddrs>,
        events: mpsc::Sender<NetworkEvent>,
    ) -> Self {
        let peer = keypair.public().to_peer_id();
        Self {
            keypair,
            peer,
            ttl,
            members,
            addrs,
            book: Mutex::new(AdvertBook::new(peer)),
            own: Mutex::default(),
            publish_now: Notify::new(),
            news: watch::Sender::new(0),
            events,
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

    /// Checks signed gossip, remembers it and tells the owner what is new. `teller` is the peer
    /// that told it in a greeting; what came over gossipsub was published just now.
    pub(crate) async fn hear(
        &self,
        sealed: Bytes,
        teller: Option<PeerId>,
    ) -> Result<(), HearError> {
        let now = unix_ms();
        let gossip = Gossip::open(&sealed, now)?;
        let source = match teller {
            Some(teller) if teller != gossip.peer() => Source::Relayed,
            _ => Source::Fresh,
        };
        if let Gossip::Advert(advert) = &gossip {
            self.members
                .admit(advert.peer, advert.body.membership.as_ref())?;
        }
        let verdict = self.book().accept(gossip, sealed, source, now);
        let event = match verdict {
            Verdict::News(advert) => NetworkEvent::Advert(advert),
            Verdict::Gone(peer) => NetworkEvent::PeerExpired(peer),
            Verdict::Nothing => return Ok(()),
        };
        self.news.send_modify(|news| *news += 1);
        // The owner is gone only while the network ends.
        let _ = self.events.send(event).await;
        Ok(())
    }

    /// Tells the owner of adverts that expire, for as long as the network runs.
    pub(crate) async fn sweep(&self) {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            ticks.tick().await;
            let expired = self.book().sweep(unix_ms());
            for peer in expired {
                let _ = self.events.send(NetworkEvent::PeerExpired(peer)).await;
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
