//! What is known of the peers: pure decisions over adverts whose signatures were checked.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId};

use crate::wire::{Advert, Gossip};

/// Peers remembered at once; adverts of further ones are ignored until some expire.
const MAX_PEERS: usize = 1024;
/// How long a goodbye outlives itself, so that an older advert cannot bring the peer back.
const REMEMBER_GOODBYE_MS: u64 = 60_000;

/// How an advert came here, which decides how fresh it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// From its author, or by gossip as it was published: it holds from now on.
    Fresh,
    /// Told by a third peer some time after: it holds from the time written in it.
    Relayed,
}

/// What an advert changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// The peer is new, or says something new.
    News(Box<Advert>),
    /// The peer is gone.
    Gone(PeerId),
    /// Nothing: a repeat, older than what is known, our own, or no room.
    Nothing,
}

/// Adverts that hold, one per peer.
#[derive(Debug)]
pub(crate) struct AdvertBook {
    own_peer: PeerId,
    known: HashMap<PeerId, Known>,
    /// Sequence number of each goodbye, and until when to remember it.
    departed: HashMap<PeerId, (u64, u64)>,
}

#[derive(Debug)]
struct Known {
    advert: Advert,
    sealed: Bytes,
    expires_unix_ms: u64,
}

impl AdvertBook {
    pub(crate) fn new(own_peer: PeerId) -> Self {
        Self {
            own_peer,
            known: HashMap::new(),
            departed: HashMap::new(),
        }
    }

    /// Takes in gossip whose signature and membership were checked; `sealed` is its signed form,
    /// `life` the one in which its author is connected now.
    pub(crate) fn accept(
        &mut self,
        gossip: Gossip,
        sealed: Bytes,
        source: Source,
        life: Option<u64>,
        now_unix_ms: u64,
    ) -> Verdict {
        let (peer, seq) = (gossip.peer(), gossip.seq());
        if peer == self.own_peer || !self.is_newer(&peer, seq) {
            return Verdict::Nothing;
        }
        if matches!(&gossip, Gossip::Advert(advert) if life > Some(advert.started_unix_ms)) {
            return Verdict::Nothing;
        }
        match gossip {
            Gossip::Advert(advert) => self.accept_advert(*advert, sealed, source, now_unix_ms),
            Gossip::Goodbye(_) => {
                let forget_at = now_unix_ms.saturating_add(REMEMBER_GOODBYE_MS);
                if self.known.remove(&peer).is_none() {
                    return Verdict::Nothing;
                }
                self.departed.insert(peer, (seq, forget_at));
                Verdict::Gone(peer)
            }
        }
    }

    fn is_newer(&self, peer: &PeerId, seq: u64) -> bool {
        let newest_advert = self.known.get(peer).map(|known| known.advert.seq);
        let goodbye = self.departed.get(peer).map(|(seq, _)| *seq);
        newest_advert.max(goodbye).is_none_or(|newest| seq > newest)
    }

    /// Whether a peer signed this after the advert that is known of it, in the same life or a later
    /// one.
    pub(crate) fn is_renewed_by(&self, advert: &Advert) -> bool {
        let known = self.known.get(&advert.peer).map(|known| &known.advert);
        known.is_some_and(|known| {
            let order = |advert: &Advert| (advert.started_unix_ms, advert.seq);
            order(advert) > order(known)
        })
    }

    fn accept_advert(
        &mut self,
        advert: Advert,
        sealed: Bytes,
        source: Source,
        now_unix_ms: u64,
    ) -> Verdict {
        let peer = advert.peer;
        if self.known.len() >= MAX_PEERS && !self.known.contains_key(&peer) {
            tracing::warn!(%peer, "no room for the advert of one more peer");
            return Verdict::Nothing;
        }
        let holds_from = match source {
            Source::Fresh => now_unix_ms,
            Source::Relayed => advert.issued_unix_ms.min(now_unix_ms),
        };
        let expires_unix_ms = holds_from.saturating_add(advert.ttl_ms);
        if expires_unix_ms <= now_unix_ms {
            return Verdict::Nothing;
        }
        self.departed.remove(&peer);
        let known = Known {
            advert: advert.clone(),
            sealed,
            expires_unix_ms,
        };
        self.known.insert(peer, known);
        Verdict::News(Box::new(advert))
    }

    /// The peer is in this life now. What it said in an earlier one is void, and so is what may
    /// still come of that; says whether there was something.
    pub(crate) fn outlived(&mut self, peer: &PeerId, life: u64, now_unix_ms: u64) -> bool {
        let is_old = |known: &Known| known.advert.started_unix_ms < life;
        if !self.known.get(peer).is_some_and(is_old) {
            return false;
        }
        if let Some(known) = self.known.remove(peer) {
            let forget_at = now_unix_ms.saturating_add(REMEMBER_GOODBYE_MS);
            self.departed.insert(*peer, (known.advert.seq, forget_at));
        }
        true
    }

    /// Drops what no longer holds and says whose adverts those were.
    pub(crate) fn sweep(&mut self, now_unix_ms: u64) -> Vec<PeerId> {
        self.departed
            .retain(|_, (_, forget_at)| *forget_at > now_unix_ms);
        self.known
            .extract_if(|_, known| known.expires_unix_ms <= now_unix_ms)
            .map(|(peer, _)| peer)
            .collect()
    }

    /// The signed adverts of all peers but `to`, to tell them to `to`.
    pub(crate) fn sealed_for(&self, to: &PeerId) -> Vec<Bytes> {
        let others = self.known.iter().filter(|(peer, _)| *peer != to);
        others.map(|(_, known)| known.sealed.clone()).collect()
    }

    /// Where the peers listen.
    pub(crate) fn addrs(&self) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let known = self.known.iter();
        known
            .map(|(peer, known)| (*peer, known.advert.body.addrs.clone()))
            .collect()
    }

    /// Where one peer listens.
    pub(crate) fn addrs_of(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let known = self.known.get(peer);
        known
            .map(|known| known.advert.body.addrs.clone())
            .unwrap_or_default()
    }

    /// Where the tensor plane of one peer listens.
    pub(crate) fn tensor_addrs_of(&self, peer: &PeerId) -> Vec<SocketAddr> {
        let known = self.known.get(peer);
        known
            .map(|known| known.advert.body.tensor_addrs.clone())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adverts::empty_body;
    use crate::wire::Goodbye;

    const NOW: u64 = 1_000_000;
    const TTL: u64 = 15_000;

    fn advert(peer: PeerId, seq: u64) -> Gossip {
        advert_in(peer, 1, seq)
    }

    fn advert_in(peer: PeerId, life: u64, seq: u64) -> Gossip {
        Gossip::Advert(Box::new(Advert {
            peer,
            seq,
            started_unix_ms: life,
            issued_unix_ms: NOW,
            ttl_ms: TTL,
            body: empty_body(),
        }))
    }

    fn goodbye(peer: PeerId, seq: u64) -> Gossip {
        Gossip::Goodbye(Goodbye {
            peer,
            seq,
            issued_unix_ms: NOW,
        })
    }

    struct Fixture {
        book: AdvertBook,
        peer: PeerId,
    }

    impl Fixture {
        fn new() -> Self {
            let book = AdvertBook::new(PeerId::random());
            let peer = PeerId::random();
            Self { book, peer }
        }

        fn hear(&mut self, gossip: Gossip, now: u64) -> Verdict {
            let sealed = Bytes::new();
            self.book.accept(gossip, sealed, Source::Fresh, None, now)
        }
    }

    #[test]
    fn a_newer_advert_is_news_and_an_older_one_or_a_repeat_is_not() {
        let mut fixture = Fixture::new();
        let peer = fixture.peer;
        for (seq, is_news) in [(5, true), (5, false), (4, false), (6, true)] {
            let verdict = fixture.hear(advert(peer, seq), NOW);
            assert_eq!(matches!(verdict, Verdict::News(_)), is_news, "{seq}");
        }
    }

    #[test]
    fn an_advert_expires_unless_it_is_renewed() {
        let mut fixture = Fixture::new();
        let peer = fixture.peer;
        fixture.hear(advert(peer, 1), NOW);
        fixture.hear(advert(peer, 2), NOW + TTL - 1);
        assert_eq!(fixture.book.sweep(NOW + TTL), []);
        assert_eq!(fixture.book.sweep(NOW + 2 * TTL - 1), [peer]);
        assert_eq!(fixture.book.addrs(), []);
    }

    #[test]
    fn a_relayed_advert_does_not_live_longer_for_being_relayed() {
        let mut fixture = Fixture::new();
        let peer = fixture.peer;
        let late = NOW + TTL - 1;
        let verdict =
            fixture
                .book
                .accept(advert(peer, 1), Bytes::new(), Source::Relayed, None, late);
        assert!(matches!(verdict, Verdict::News(_)));
        assert_eq!(fixture.book.sweep(NOW + TTL), [peer]);
        let (second, sealed) = (advert(peer, 2), Bytes::new());
        let verdict = fixture
            .book
            .accept(second, sealed, Source::Relayed, None, NOW + TTL);
        assert_eq!(verdict, Verdict::Nothing);
    }

    #[test]
    fn after_a_goodbye_an_older_advert_does_not_bring_the_peer_back_but_a_newer_one_does() {
        let mut fixture = Fixture::new();
        let peer = fixture.peer;
        fixture.hear(advert(peer, 1), NOW);
        assert_eq!(fixture.hear(goodbye(peer, 3), NOW), Verdict::Gone(peer));
        assert_eq!(fixture.hear(advert(peer, 2), NOW), Verdict::Nothing);
        assert!(matches!(
            fixture.hear(advert(peer, 4), NOW),
            Verdict::News(_)
        ));
    }

    #[test]
    fn what_a_peer_said_before_it_was_started_again_is_void_and_does_not_come_back() {
        let mut fixture = Fixture::new();
        let peer = fixture.peer;
        fixture.hear(advert_in(peer, 7, 10), NOW);
        assert!(!fixture.book.outlived(&peer, 7, NOW), "it is the same life");
        assert!(fixture.book.outlived(&peer, 8, NOW));
        assert!(fixture.book.sealed_for(&PeerId::random()).is_empty());
        assert!(!fixture.book.outlived(&peer, 8, NOW), "it is gone already");
        // Somebody tells it once more, or a later one that was under way when the peer died.
        for seq in [10, 11] {
            let (old, sealed) = (advert_in(peer, 7, seq), Bytes::new());
            let told = fixture
                .book
                .accept(old, sealed, Source::Relayed, Some(8), NOW);
            assert_eq!(told, Verdict::Nothing, "{seq}");
        }
        let new = advert_in(peer, 8, 12);
        let told = fixture
            .book
            .accept(new, Bytes::new(), Source::Fresh, Some(8), NOW);
        assert!(matches!(told, Verdict::News(_)));
    }

    #[test]
    fn what_a_peer_signed_later_renews_what_is_known_of_it() {
        let mut fixture = Fixture::new();
        let peer = PeerId::random();
        let renews = |fixture: &Fixture, life, seq| match advert_in(peer, life, seq) {
            Gossip::Advert(advert) => fixture.book.is_renewed_by(&advert),
            Gossip::Goodbye(_) => false,
        };
        assert!(!renews(&fixture, 7, 10));
        fixture.hear(advert_in(peer, 7, 10), NOW);
        for (life, seq, expected) in [(7, 10, false), (7, 9, false), (7, 11, true), (8, 1, true)] {
            assert_eq!(renews(&fixture, life, seq), expected, "{life}, {seq}");
        }
        assert!(!renews(&fixture, 6, 12));
    }

    #[test]
    fn our_own_advert_is_no_news() {
        let mut fixture = Fixture::new();
        let own = fixture.book.own_peer;
        assert_eq!(fixture.hear(advert(own, 1), NOW), Verdict::Nothing);
    }

    #[test]
    fn a_newcomer_is_told_of_everybody_but_itself() {
        let mut fixture = Fixture::new();
        let (peer, other) = (fixture.peer, PeerId::random());
        for (peer, sealed) in [(peer, "a"), (other, "b")] {
            let sealed = Bytes::from_static(sealed.as_bytes());
            fixture
                .book
                .accept(advert(peer, 1), sealed, Source::Fresh, None, NOW);
        }
        assert_eq!(fixture.book.sealed_for(&peer), ["b"]);
        assert_eq!(fixture.book.sealed_for(&PeerId::random()).len(), 2);
    }
}
