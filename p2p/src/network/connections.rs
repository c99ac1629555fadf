//! Who is connected: a table that the swarm writes and everybody else reads.
//!
//! The swarm reports every connection from its own task, where it must not wait, so changes are
//! not queued: they are folded into the table and whoever cares is woken to compare. A peer that
//! left and came back in between shows a new generation, so neither event is lost.
//!
//! A peer says in its greeting when it was started: in which of its *lives* it is. One that was
//! started again may be back before its old connection is seen to end, and counts as one that left
//! and came back. Lives only get later while a peer is connected. The last word of an old
//! connection may be heard after the new one is open and before the first word on that, so each
//! connection stands for two lives and no more: without that, a peer could come and go as often as
//! it says.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use accel_swarm::ConnectionChange;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::watch;

/// How long a greeting waits for news of the connection over which it came, from the swarm and to
/// the owner.
const TELLING_LIMIT: Duration = Duration::from_secs(1);

/// Lives that a peer can show for each of its connections: that of the connection, and one that an
/// older connection tells of late.
const LIVES_PER_CONNECTION: u64 = 2;

/// Connected peers, one entry each, however many connections they have.
#[derive(Debug)]
pub(crate) struct Connections {
    peers: Mutex<Table>,
    version: watch::Sender<u64>,
    /// Up to which version the owner was told.
    told: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    peers: HashMap<PeerId, Connected>,
    last_generation: u64,
}

#[derive(Debug, Clone)]
struct Connected {
    generation: u64,
    /// How many connections there were since it is connected.
    opened: u64,
    /// When it was started, by its own clock; unknown until it greets.
    life: Option<u64>,
    /// In how many lives it was.
    lives: u64,
    dialled_addr: Option<Multiaddr>,
}

/// A peer appeared or went away, seen from whoever compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerChange {
    Connected(PeerId),
    /// It has one more connection: it may have lost the others, and what was said on them.
    Again(PeerId),
    /// In which of its lives it is connected.
    Greeted(PeerId, u64),
    Disconnected(PeerId),
}

/// What one reader of the table has seen so far.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<PeerId, Connected>);

impl Default for Connections {
    fn default() -> Self {
        Self {
            peers: Mutex::default(),
            version: watch::Sender::new(0),
            told: watch::Sender::new(0),
        }
    }
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Folds in what the swarm reports.
    pub(crate) fn apply(&self, change: ConnectionChange) {
        self.change(|table| match change {
            ConnectionChange::Opened {
                peer,
                remote,
                dialled,
            } => {
                table.opened(peer, dialled.then_some(remote));
                true
            }
            ConnectionChange::Closed { peer, remaining: 0 } => table.peers.remove(&peer).is_some(),
            ConnectionChange::Closed { .. } => false,
        });
    }

    /// Whoever sees a change of the table sees its version too: `change` says whether it is one.
    fn change(&self, change: impl FnOnce(&mut Table) -> bool) {
        self.version.send_if_modified(|version| {
            let is_new = change(&mut self.table());
            *version += u64::from(is_new);
            is_new
        });
    }

    /// A connected peer says in which of its lives it is.
    pub(crate) fn greeted(&self, peer: &PeerId, life: u64) {
        self.change(|table| table.greeted(peer, life));
    }

    /// What a connection brings may be read before the swarm reports the connection: waits a
    /// moment for one over which the peer can say that it is in this life.
    pub(crate) async fn wait_for_report(&self, peer: &PeerId, life: u64) {
        let mut version = self.version.subscribe();
        let report = version.wait_for(|_| self.has_connection_for(peer, life));
        let _ = tokio::time::timeout(TELLING_LIMIT, report).await;
    }

    /// Waits a moment until the owner was told of all that changed so far.
    pub(crate) async fn wait_for_owner(&self) {
        let version = *self.version.borrow();
        let mut told = self.told.subscribe();
        let telling = told.wait_for(|told| *told >= version);
        let _ = tokio::time::timeout(TELLING_LIMIT, telling).await;
    }

    /// Whether the peer is connected in this life, or has a connection of which no life was told.
    pub(crate) fn has_connection_for(&self, peer: &PeerId, life: u64) -> bool {
        let table = self.table();
        let connected = table.peers.get(peer);
        connected.is_some_and(|connected| connected.has_connection_for(life))
    }

    /// The owner was told of all changes up to this version.
    pub(crate) fn told(&self, version: u64) {
        self.told.send_replace(version);
    }

    /// In which life a peer is connected, once it has greeted.
    pub(crate) fn life_of(&self, peer: &PeerId) -> Option<u64> {
        self.table().peers.get(peer)?.life
    }

    /// All connected peers, with the lives of those that have greeted.
    pub(crate) fn lives(&self) -> Vec<(PeerId, Option<u64>)> {
        let table = self.table();
        let peers = table.peers.iter();
        peers
            .map(|(peer, connected)| (*peer, connected.life))
            .collect()
    }

    /// Waits until a peer has greeted; not longer than `limit`.
    pub(crate) async fn wait_for_greeting(&self, peer: &PeerId, limit: Duration) {
        let mut version = self.version.subscribe();
        let greeting = version.wait_for(|_| self.life_of(peer).is_some());
        let _ = tokio::time::timeout(limit, greeting).await;
    }

    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        self.table().peers.contains_key(peer)
    }

    /// All connected peers, in no particular order.
    pub(crate) fn peers(&self) -> Vec<PeerId> {
        self.table().peers.keys().copied().collect()
    }

    /// The peer that answered when `addr` was dialled, if it is still connected.
    pub(crate) fn peer_at(&self, addr: &Multiaddr) -> Option<PeerId> {
        let without_peer = strip_peer(addr);
        let table = self.table();
        let found = table.peers.iter().find(|(_, connected)| {
            let dialled = connected.dialled_addr.as_ref().map(strip_peer);
            dialled.as_ref() == Some(&without_peer)
        });
        found.map(|(peer, _)| *peer)
    }

    /// Wakes on every change of the table.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// What changed since the reader looked last.
    pub(crate) fn changes(&self, seen: &mut Seen) -> Vec<PeerChange> {
        let now = self.table().peers.clone();
        let mut changes = Vec::new();
        for (peer, before) in &seen.0 {
            if now.get(peer).is_none_or(|now| !now.goes_on(before)) {
                changes.push(PeerChange::Disconnected(*peer));
            }
        }
        for (peer, now) in &now {
            let before = seen.0.get(peer).filter(|before| now.goes_on(before));
            match before {
                None => changes.push(PeerChange::Connected(*peer)),
                Some(before) if before.opened != now.opened => {
                    changes.push(PeerChange::Again(*peer));
                }
                Some(_) => {}
            }
            let known = before.and_then(|before| before.life);
            if let Some(life) = now.life.filter(|life| known != Some(*life)) {
                changes.push(PeerChange::Greeted(*peer, life));
            }
        }
        seen.0 = now;
        changes
    }
}

impl Connected {
    /// Whether the peer was connected all the time since.
    fn goes_on(&self, before: &Connected) -> bool {
        self.generation == before.generation
    }

    /// Whether there is a connection of which no life was told yet, if that is needed.
    fn has_connection_for(&self, life: u64) -> bool {
        !self.is_later(life) || self.lives < self.opened
    }

    fn may_begin(&self, life: u64) -> bool {
        self.is_later(life) && self.lives < self.opened.saturating_mul(LIVES_PER_CONNECTION)
    }

    fn is_later(&self, life: u64) -> bool {
        self.life.is_none_or(|known| life > known)
    }
}

impl Table {
    fn opened(&mut self, peer: PeerId, dialled_addr: Option<Multiaddr>) {
        if let Some(connected) = self.peers.get_mut(&peer) {
            connected.opened += 1;
            connected.dialled_addr = dialled_addr.or(connected.dialled_addr.take());
            return;
        }
        self.last_generation += 1;
        let connected = Connected {
            generation: self.last_generation,
            opened: 1,
            life: None,
            lives: 0,
            dialled_addr,
        };
        self.peers.insert(peer, connected);
    }

    /// Says whether that is new. An earlier life is the last word of an older connection.
    fn greeted(&mut self, peer: &PeerId, life: u64) -> bool {
        let Some(connected) = self.peers.get_mut(peer) else {
            return false;
        };
        if !connected.may_begin(life) {
            return false;
        }
        if connected.life.is_some() {
            self.last_generation += 1;
            connected.generation = self.last_generation;
        }
        connected.life = Some(life);
        connected.lives += 1;
        true
    }
}

/// The address without the peer it should lead to.
pub(crate) fn strip_peer(addr: &Multiaddr) -> Multiaddr {
    addr.iter()
        .filter(|part| !matches!(part, libp2p::multiaddr::Protocol::P2p(_)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(peer: PeerId) -> ConnectionChange {
        ConnectionChange::Opened {
            peer,
            remote: "/ip4/127.0.0.1/tcp/1".parse().unwrap(),
            dialled: true,
        }
    }

    fn closed(peer: PeerId, remaining: u32) -> ConnectionChange {
        ConnectionChange::Closed { peer, remaining }
    }

    #[test]
    fn a_peer_counts_once_however_many_connections_it_has() {
        let (connections, mut seen) = (Connections::default(), Seen::default());
        let peer = PeerId::random();
        connections.apply(opened(peer));
        connections.apply(opened(peer));
        assert_eq!(
            connections.changes(&mut seen),
            [PeerChange::Connected(peer)]
        );
        connections.apply(opened(peer));
        assert_eq!(connections.changes(&mut seen), [PeerChange::Again(peer)]);
        connections.apply(closed(peer, 1));
        assert_eq!(connections.changes(&mut seen), []);
        assert!(connections.is_connected(&peer));
        connections.apply(closed(peer, 0));
        assert_eq!(
            connections.changes(&mut seen),
            [PeerChange::Disconnected(peer)]
        );
    }

    #[test]
    fn a_peer_that_left_and_came_back_unseen_is_reported_twice() {
        let (connections, mut seen) = (Connections::default(), Seen::default());
        let peer = PeerId::random();
        connections.apply(opened(peer));
        connections.changes(&mut seen);
        connections.apply(closed(peer, 0));
        connections.apply(opened(peer));
        let expected = [PeerChange::Disconnected(peer), PeerChange::Connected(peer)];
        assert_eq!(connections.changes(&mut seen), expected);
    }

    #[test]
    fn a_peer_that_was_started_again_left_and_came_back_whatever_its_connections_say() {
        let (connections, mut seen) = (Connections::default(), Seen::default());
        let peer = PeerId::random();
        let (left, came) = (PeerChange::Disconnected(peer), PeerChange::Connected(peer));
        let in_life = |life| PeerChange::Greeted(peer, life);
        connections.apply(opened(peer));
        assert_eq!(connections.changes(&mut seen), [came]);
        assert_eq!(connections.life_of(&peer), None);
        connections.greeted(&peer, 7);
        assert_eq!(connections.changes(&mut seen), [in_life(7)]);
        // A second connection, then the second life, then the end of the first connection.
        connections.apply(opened(peer));
        connections.greeted(&peer, 7);
        assert_eq!(connections.changes(&mut seen), [PeerChange::Again(peer)]);
        connections.greeted(&peer, 9);
        assert_eq!(connections.changes(&mut seen), [left, came, in_life(9)]);
        connections.apply(closed(peer, 1));
        connections.greeted(&peer, 7);
        assert_eq!(connections.changes(&mut seen), [], "7 is over");
        assert_eq!(connections.life_of(&peer), Some(9));
        // What is known of a connection ends with it.
        connections.apply(closed(peer, 0));
        connections.apply(opened(peer));
        assert_eq!(connections.changes(&mut seen), [left, came]);
        assert_eq!(connections.life_of(&peer), None);
    }

    #[test]
    fn a_late_word_of_an_earlier_life_does_not_keep_the_later_one_out() {
        let (connections, mut seen) = (Connections::default(), Seen::default());
        let peer = PeerId::random();
        let (left, came) = (PeerChange::Disconnected(peer), PeerChange::Connected(peer));
        let in_life = |life| PeerChange::Greeted(peer, life);
        connections.apply(opened(peer));
        connections.apply(closed(peer, 0));
        connections.apply(opened(peer));
        // Said over the first connection.
        connections.greeted(&peer, 7);
        assert_eq!(connections.changes(&mut seen), [came, in_life(7)]);
        connections.greeted(&peer, 8);
        assert_eq!(connections.changes(&mut seen), [left, came, in_life(8)]);
        connections.greeted(&peer, 7);
        assert_eq!(connections.life_of(&peer), Some(8));
    }

    #[test]
    fn a_peer_comes_and_goes_at_most_twice_for_each_connection() {
        let (connections, peer) = (Connections::default(), PeerId::random());
        for connection in 1..=3 {
            connections.apply(opened(peer));
            for life in 1..10 {
                connections.greeted(&peer, 10 * connection + life);
            }
            let last = connections.life_of(&peer);
            assert_eq!(last, Some(10 * connection + 2), "{connection}");
        }
    }

    #[tokio::test]
    async fn a_greeting_waits_for_its_connection_and_until_the_owner_knows_of_it() {
        let (connections, peer) = (Connections::default(), PeerId::random());
        let mut version = connections.subscribe();
        let greeting = async {
            connections.wait_for_report(&peer, 7).await;
            connections.greeted(&peer, 7);
            connections.wait_for_owner().await;
            *connections.told.borrow()
        };
        let telling = async {
            connections.apply(opened(peer));
            let greeted = version.wait_for(|_| connections.life_of(&peer).is_some());
            let version = *greeted.await.unwrap();
            connections.told(version);
            version
        };
        let (told, version) = tokio::join!(greeting, telling);
        assert_eq!((told, version), (2, 2));
        assert_eq!(connections.lives(), [(peer, Some(7))]);
    }

    #[test]
    fn a_dialled_address_leads_to_its_peer_with_or_without_the_peer_part() {
        let connections = Connections::default();
        let peer = PeerId::random();
        connections.apply(opened(peer));
        for text in [
            "/ip4/127.0.0.1/tcp/1".to_owned(),
            format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}"),
        ] {
            assert_eq!(
                connections.peer_at(&text.parse().unwrap()),
                Some(peer),
                "{text}"
            );
        }
        assert_eq!(
            connections.peer_at(&"/ip4/127.0.0.1/tcp/2".parse().unwrap()),
            None
        );
    }
}
