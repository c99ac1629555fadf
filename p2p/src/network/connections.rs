//! Who is connected: a table that the swarm writes and everybody else reads.
//!
//! The swarm reports every connection from its own task, where it must not wait, so changes are
//! not queued: they are folded into the table and whoever cares is woken to compare. A peer that
//! left and came back in between shows a new generation, so neither event is lost.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use accel_swarm::ConnectionChange;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::watch;

/// Connected peers, one entry each, however many connections they have.
#[derive(Debug)]
pub(crate) struct Connections {
    peers: Mutex<Table>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    peers: HashMap<PeerId, Connected>,
    last_generation: u64,
}

#[derive(Debug, Clone)]
struct Connected {
    generation: u64,
    dialled_addr: Option<Multiaddr>,
}

/// A peer appeared or went away, seen from whoever compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerChange {
    Connected(PeerId),
    Disconnected(PeerId),
}

/// What one reader of the table has seen so far.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<PeerId, u64>);

impl Default for Connections {
    fn default() -> Self {
        Self {
            peers: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Folds in what the swarm reports.
    pub(crate) fn apply(&self, change: ConnectionChange) {
        let mut table = self.table();
        match change {
            ConnectionChange::Opened {
                peer,
                remote,
                dialled,
            } => table.opened(peer, dialled.then_some(remote)),
            ConnectionChange::Closed { peer, remaining: 0 } => {
                table.peers.remove(&peer);
            }
            ConnectionChange::Closed { .. } => return,
        }
        drop(table);
        self.version.send_modify(|version| *version += 1);
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
        let now: HashMap<PeerId, u64> = self
            .table()
            .peers
            .iter()
            .map(|(peer, connected)| (*peer, connected.generation))
            .collect();
        let gone = seen
            .0
            .iter()
            .filter(|(peer, generation)| now.get(*peer) != Some(*generation))
            .map(|(peer, _)| PeerChange::Disconnected(*peer));
        let new = now
            .iter()
            .filter(|(peer, generation)| seen.0.get(*peer) != Some(*generation))
            .map(|(peer, _)| PeerChange::Connected(*peer));
        let changes = gone.chain(new).collect();
        seen.0 = now;
        changes
    }
}

impl Table {
    fn opened(&mut self, peer: PeerId, dialled_addr: Option<Multiaddr>) {
        if let Some(connected) = self.peers.get_mut(&peer) {
            connected.dialled_addr = dialled_addr.or(connected.dialled_addr.take());
            return;
        }
        self.last_generation += 1;
        let connected = Connected {
            generation: self.last_generation,
            dialled_addr,
        };
        self.peers.insert(peer, connected);
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
