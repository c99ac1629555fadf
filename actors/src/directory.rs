//! The directory: what this node knows of the swarm. Peers are there as long as their adverts
//! hold; a goodbye removes them at once. A peer counts as connected once it has greeted on its
//! connection, and with an advert of the life of which it said so: one that was started again listens
//! elsewhere, and what it said before is of no use. The state is a plain value with time as an argument; the
//! actor gives it a mailbox. After a restart it is empty, and full again once every peer has
//! renewed its advert.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_p2p::PeerId;
use accel_p2p::wire::{Advert, AdvertBody};
use actix::{Actor, Context, Handler, Message};
use cid::Cid;

use crate::supervisor::{ActorRef, supervised};

/// Messages that may wait.
const MAILBOX: usize = 256;
/// Peers that are remembered; the first to expire make room.
const MOST_PEERS: usize = 4096;
/// How long the directory may take to answer.
const WITHIN: Duration = Duration::from_secs(5);

/// A node of the swarm.
#[derive(Debug, Clone)]
pub(crate) struct PeerRecord {
    pub(crate) peer: PeerId,
    pub(crate) is_self: bool,
    /// Whether it is connected, and in the life of this advert.
    pub(crate) connected: bool,
    pub(crate) body: Arc<AdvertBody>,
    /// When the advert arrived.
    pub(crate) seen: Instant,
}

impl PeerRecord {
    /// How much of a model the peer says it has.
    pub(crate) fn present_bytes(&self, model: &Cid) -> u64 {
        let offers = self.body.models.iter();
        let offer = offers.filter(|offer| offer.cid == *model);
        offer.map(|offer| offer.present_bytes).max().unwrap_or(0)
    }
}

/// What the directory is told.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum Heard {
    /// What this node says of itself.
    Own(PeerId, Arc<AdvertBody>),
    Advert(Box<Advert>),
    Connected(PeerId),
    /// A connected peer says when it was started, by its own clock.
    Greeted(PeerId, u64),
    Disconnected(PeerId),
    /// It said goodbye, or its advert expired.
    Gone(PeerId),
}

/// Asks for everyone who is there, this node first.
#[derive(Debug, Message)]
#[rtype(result = "Arc<Vec<PeerRecord>>")]
pub(crate) struct Snapshot;

struct Entry {
    seq: u64,
    started_unix_ms: u64,
    expires: Instant,
    seen: Instant,
    body: Arc<AdvertBody>,
}

/// The state, without the actor around it.
#[derive(Default)]
struct State {
    own: Option<(PeerId, Arc<AdvertBody>, Instant)>,
    entries: HashMap<PeerId, Entry>,
    /// When each was started, if it has said so on this connection.
    connected: HashMap<PeerId, Option<u64>>,
}

impl State {
    fn hear(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Own(peer, body) => self.own = Some((peer, body, now)),
            Heard::Advert(advert) => self.hear_advert(*advert, now),
            Heard::Connected(peer) => {
                self.connected.insert(peer, None);
            }
            Heard::Greeted(peer, started_unix_ms) => {
                if let Some(started) = self.connected.get_mut(&peer) {
                    *started = Some(started_unix_ms);
                }
            }
            Heard::Disconnected(peer) => {
                self.connected.remove(&peer);
            }
            Heard::Gone(peer) => {
                self.entries.remove(&peer);
            }
        }
    }

    fn hear_advert(&mut self, advert: Advert, now: Instant) {
        let known = self.entries.get(&advert.peer);
        if known.is_some_and(|entry| entry.seq >= advert.seq && entry.expires > now) {
            return;
        }
        if self.entries.len() >= MOST_PEERS && known.is_none() {
            let first = self.entries.iter().min_by_key(|(_, entry)| entry.expires);
            if let Some(first) = first.map(|(peer, _)| *peer) {
                self.entries.remove(&first);
            }
        }
        let entry = Entry {
            seq: advert.seq,
            started_unix_ms: advert.started_unix_ms,
            expires: now + Duration::from_millis(advert.ttl_ms),
            seen: now,
            body: Arc::new(advert.body),
        };
        self.entries.insert(advert.peer, entry);
    }

    fn snapshot(&mut self, now: Instant) -> Vec<PeerRecord> {
        self.entries.retain(|_, entry| entry.expires > now);
        let own = self.own.iter().map(|(peer, body, seen)| PeerRecord {
            peer: *peer,
            is_self: true,
            connected: true,
            body: Arc::clone(body),
            seen: *seen,
        });
        let own_id = self.own.as_ref().map(|(peer, ..)| *peer);
        let others = self
            .entries
            .iter()
            .filter(|(peer, _)| Some(**peer) != own_id);
        let others = others.map(|(peer, entry)| PeerRecord {
            peer: *peer,
            is_self: false,
            connected: self.is_connected(peer, entry),
            body: Arc::clone(&entry.body),
            seen: entry.seen,
        });
        let mut records: Vec<PeerRecord> = own.chain(others).collect();
        records.sort_by_key(|record| (!record.is_self, record.peer));
        records
    }

    fn is_connected(&self, peer: &PeerId, entry: &Entry) -> bool {
        self.connected.get(peer) == Some(&Some(entry.started_unix_ms))
    }
}

/// See the module.
pub(crate) struct Directory {
    state: State,
}

impl Directory {
    /// A directory that knows of these connections, and of nobody's adverts yet.
    pub(crate) fn new(
        own: (PeerId, Arc<AdvertBody>),
        connected: Vec<(PeerId, Option<u64>)>,
    ) -> Self {
        let (peer, body) = own;
        let state = State {
            own: Some((peer, body, Instant::now())),
            entries: HashMap::new(),
            connected: connected.into_iter().collect(),
        };
        Self { state }
    }
}

impl Actor for Directory {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

supervised!(Directory);

impl Handler<Heard> for Directory {
    type Result = ();

    fn handle(&mut self, heard: Heard, _: &mut Context<Self>) {
        self.state.hear(heard, Instant::now());
    }
}

impl Handler<Snapshot> for Directory {
    type Result = Arc<Vec<PeerRecord>>;

    fn handle(&mut self, _: Snapshot, _: &mut Context<Self>) -> Self::Result {
        Arc::new(self.state.snapshot(Instant::now()))
    }
}

/// Everyone who is there; nobody when the directory does not answer.
pub(crate) async fn snapshot(directory: &ActorRef<Directory>) -> Arc<Vec<PeerRecord>> {
    match directory.ask(Snapshot, WITHIN).await {
        Ok(records) => records,
        Err(error) => {
            tracing::warn!(%error, "no snapshot of the directory");
            Arc::default()
        }
    }
}

/// Tells the directory something.
pub(crate) async fn tell(directory: &ActorRef<Directory>, heard: Heard) {
    if let Err(error) = directory.ask(heard, WITHIN).await {
        tracing::warn!(%error, "the directory missed an event");
    }
}

#[cfg(test)]
mod tests {
    use accel_p2p::wire::{HardwareAdvert, LoadAdvert};

    use super::*;

    fn body(version: &str) -> AdvertBody {
        AdvertBody {
            addrs: Vec::new(),
            tensor_addrs: Vec::new(),
            api: None,
            version: version.into(),
            hardware: HardwareAdvert::default(),
            measured_gb_s: 1.0,
            numerics: "test-1".into(),
            max_layers: None,
            draining: false,
            load: LoadAdvert::default(),
            models: Vec::new(),
            membership: None,
        }
    }

    fn advert(peer: PeerId, seq: u64, version: &str) -> Heard {
        advert_in(peer, 1, seq, version)
    }

    fn advert_in(peer: PeerId, life: u64, seq: u64, version: &str) -> Heard {
        Heard::Advert(Box::new(Advert {
            peer,
            seq,
            started_unix_ms: life,
            issued_unix_ms: 0,
            ttl_ms: 1000,
            body: body(version),
        }))
    }

    fn versions(state: &mut State, now: Instant) -> Vec<String> {
        let records = state.snapshot(now);
        records
            .iter()
            .map(|record| record.body.version.clone())
            .collect()
    }

    #[test]
    fn a_peer_is_there_until_its_advert_expires() {
        let (mut state, now, peer) = (State::default(), Instant::now(), PeerId::random());
        state.hear(advert(peer, 1, "a"), now);
        assert_eq!(
            versions(&mut state, now + Duration::from_millis(999)),
            ["a"]
        );
        assert!(versions(&mut state, now + Duration::from_millis(1000)).is_empty());
    }

    #[test]
    fn an_older_advert_changes_nothing_and_a_goodbye_removes_at_once() {
        let (mut state, now, peer) = (State::default(), Instant::now(), PeerId::random());
        state.hear(advert(peer, 2, "new"), now);
        state.hear(advert(peer, 1, "old"), now);
        assert_eq!(versions(&mut state, now), ["new"]);
        state.hear(Heard::Gone(peer), now);
        assert!(versions(&mut state, now).is_empty());
    }

    #[test]
    fn this_node_comes_first_and_connections_are_told_apart() {
        let (mut state, now) = (State::default(), Instant::now());
        let [own, near, far] = [(); 3].map(|()| PeerId::random());
        state.hear(Heard::Own(own, Arc::new(body("own"))), now);
        for peer in [near, far] {
            state.hear(advert(peer, 1, "other"), now);
        }
        for peer in [near, far] {
            state.hear(Heard::Connected(peer), now);
            state.hear(Heard::Greeted(peer, 1), now);
        }
        state.hear(Heard::Disconnected(far), now);
        let records = state.snapshot(now);
        assert!(records[0].is_self);
        let connected: Vec<PeerId> = records
            .iter()
            .filter(|r| r.connected)
            .map(|r| r.peer)
            .collect();
        assert_eq!(connected.len(), 2);
        assert!(!connected.contains(&far));
    }

    #[test]
    fn a_peer_that_was_started_again_is_connected_only_with_what_it_says_since() {
        let (mut state, now, peer) = (State::default(), Instant::now(), PeerId::random());
        let mut hear = |heard| {
            state.hear(heard, now);
            let records = state.snapshot(now);
            let connected = records.iter().find(|record| record.connected);
            connected.map(|record| record.body.version.clone())
        };
        let old = Some("old".to_owned());
        assert_eq!(hear(advert_in(peer, 7, 1, "old")), None);
        assert_eq!(hear(Heard::Connected(peer)), None, "it has not greeted");
        assert_eq!(hear(Heard::Greeted(peer, 7)), old);
        // It is killed, started again, and back before its advert.
        assert_eq!(hear(Heard::Disconnected(peer)), None);
        assert_eq!(hear(Heard::Connected(peer)), None);
        assert_eq!(
            hear(advert_in(peer, 7, 2, "late")),
            None,
            "it was under way"
        );
        assert_eq!(hear(Heard::Greeted(peer, 9)), None);
        let new = Some("new".to_owned());
        assert_eq!(hear(advert_in(peer, 9, 3, "new")), new);
        // A broken connection is none of that.
        hear(Heard::Disconnected(peer));
        hear(Heard::Connected(peer));
        assert_eq!(hear(Heard::Greeted(peer, 9)), new);
    }

    #[test]
    fn an_advert_may_come_before_the_greeting_and_whoever_is_not_connected_does_not_greet() {
        let (mut state, now, peer) = (State::default(), Instant::now(), PeerId::random());
        state.hear(Heard::Greeted(peer, 9), now);
        state.hear(advert_in(peer, 9, 3, "new"), now);
        assert!(!state.snapshot(now)[0].connected);
        state.hear(Heard::Connected(peer), now);
        state.hear(Heard::Greeted(peer, 9), now);
        assert!(state.snapshot(now)[0].connected);
    }
}
