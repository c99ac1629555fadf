//! The way to one peer: its connections, where it listens, and the one stream that we write.
//!
//! A peer that was started again is the same peer in a later *life*, which it numbers itself by
//! the time of its start. Nothing that belongs to an earlier one is of use: its connections lead
//! to a process that is gone, and nobody listens at its addresses. So they are given up as soon as
//! a later life shows, in the greeting of a new connection or in what the node hears elsewhere.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use quinn::{Connection, SendStream};
use tokio::sync::watch;

use super::budget::Share;
use super::{TensorError, endpoint};
use crate::wire::limit;

/// Connections to one peer at a time: both may dial at once, and both may do so again.
const MAX_CONNECTIONS_PER_PEER: usize = 4;
/// Addresses that one dial tries: those that the peer tells, and those that others tell of it.
const MAX_TARGETS: usize = 2 * limit::ADDRS;

/// What became of a dial; absent while it is under way.
pub(super) type Outcome = Option<Result<(), TensorError>>;

/// All that the plane knows of one peer.
pub(super) struct Link {
    peer: PeerId,
    state: Mutex<State>,
    /// Wakes the dial that is under way.
    changed: watch::Sender<()>,
    /// Held while a frame is written: one at a time. Nobody dials meanwhile.
    pub outgoing: tokio::sync::Mutex<Option<Outgoing>>,
    /// What payloads of the peer may take, over all its connections.
    share: Share,
    counters: Counters,
}

#[derive(Default)]
struct State {
    connections: Vec<Open>,
    /// The latest life of the peer that showed.
    life: u64,
    /// Where it says that it listens in this life.
    addrs: Vec<SocketAddr>,
    /// The connection that frames go to.
    written: Option<usize>,
    dial: Option<Dial>,
}

struct Open {
    connection: Connection,
    life: u64,
}

/// A dial that is under way; all who need the peer wait for the same one.
struct Dial {
    targets: Vec<SocketAddr>,
    outcome: watch::Receiver<Outcome>,
}

pub(super) struct Outgoing {
    pub connection: Connection,
    pub stream: SendStream,
}

/// What somebody who needs the peer has to do.
pub(super) enum Reach {
    /// Nothing: it is connected.
    Connected,
    /// Wait for what comes of the dial.
    Wait(watch::Receiver<Outcome>),
    /// The same, and carry the dial out: nobody does yet.
    Dial(watch::Sender<Outcome>, watch::Receiver<Outcome>),
}

#[derive(Default)]
struct Counters {
    sent_bytes: AtomicU64,
    sent_frames: AtomicU64,
    received_bytes: AtomicU64,
    received_frames: AtomicU64,
}

/// What went to and came from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes of frames sent, with their headers.
    pub sent_bytes: u64,
    /// Frames sent.
    pub sent_frames: u64,
    /// Bytes of frames received, with their headers.
    pub received_bytes: u64,
    /// Frames received.
    pub received_frames: u64,
}

impl Link {
    pub fn new(peer: PeerId, share: Share) -> Self {
        Self {
            peer,
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            outgoing: tokio::sync::Mutex::default(),
            share,
            counters: Counters::default(),
        }
    }

    /// Takes in a connection to the peer in one of its lives, whoever dialled it; says whether
    /// connections of an earlier life ended with that.
    pub fn add(&self, connection: Connection, life: u64) -> bool {
        let mut state = self.lock();
        let outlived = state.begin(life);
        state.connections.retain(Open::is_open);
        if state.connections.len() >= MAX_CONNECTIONS_PER_PEER {
            let oldest = state.connections.remove(0);
            let reason = b"too many connections";
            oldest.connection.close(endpoint::SUPERSEDED, reason);
        }
        state.connections.push(Open { connection, life });
        drop(state);
        self.changed.send_replace(());
        outlived
    }

    /// The peer says in which of its lives it is, and where it listens in that; nothing while that
    /// is not known. Says whether connections of an earlier life ended with that.
    pub fn moved(&self, life: u64, addrs: &[SocketAddr]) -> bool {
        let mut state = self.lock();
        if life < state.life {
            return false;
        }
        let outlived = state.begin(life);
        state.listens_at(addrs);
        drop(state);
        self.changed.send_replace(());
        outlived
    }

    /// A connection ended; says whether frames may be lost with it.
    pub fn ended(&self, connection: &Connection) -> bool {
        let mut state = self.lock();
        state.connections.retain(Open::is_open);
        let id = connection.stable_id();
        let was_written = state.written.take_if(|written| *written == id).is_some();
        was_written || state.connections.is_empty()
    }

    pub fn peer(&self) -> PeerId {
        self.peer
    }

    pub fn share(&self) -> &Share {
        &self.share
    }

    /// Neither connected nor owner of payloads that count against its share.
    pub fn is_idle(&self) -> bool {
        !self.is_connected() && self.share.is_unused()
    }

    pub fn is_connected(&self) -> bool {
        self.lock().newest().is_some()
    }

    /// The connection that frames are to go to from now on.
    pub fn to_write(&self) -> Option<Connection> {
        let mut state = self.lock();
        let connection = state.newest()?.clone();
        state.written = Some(connection.stable_id());
        Some(connection)
    }

    /// How to reach the peer, which somebody says listens at `addrs`.
    pub fn reach(&self, addrs: &[SocketAddr]) -> Reach {
        let mut state = self.lock();
        if state.newest().is_some() {
            return Reach::Connected;
        }
        if let Some(dial) = state.dial.as_mut().filter(|dial| dial.is_carried_out()) {
            dial.add(addrs);
            let outcome = dial.outcome.clone();
            drop(state);
            self.changed.send_replace(());
            return Reach::Wait(outcome);
        }
        let (sender, outcome) = watch::channel(None);
        let mut dial = Dial {
            targets: state.addrs.clone(),
            outcome: outcome.clone(),
        };
        dial.add(addrs);
        state.dial = Some(dial);
        Reach::Dial(sender, outcome)
    }

    /// Wakes when there is somewhere else to dial, or no need to.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Where the dial under way should lead.
    pub fn targets(&self) -> Vec<SocketAddr> {
        let state = self.lock();
        let dial = state.dial.as_ref();
        dial.map(|dial| dial.targets.clone()).unwrap_or_default()
    }

    /// Ends the dial under way; false if there is somewhere left to try meanwhile.
    pub fn give_up(&self, is_tried: impl Fn(&SocketAddr) -> bool) -> bool {
        let mut state = self.lock();
        let targets = state.dial.iter().flat_map(|dial| &dial.targets);
        let is_over = targets.into_iter().all(is_tried);
        if is_over {
            state.dial = None;
        }
        is_over
    }

    /// The dial under way is over: the peer is connected, or need not be.
    pub fn end_dial(&self) {
        self.lock().dial = None;
    }

    pub fn close(&self, reason: &[u8]) {
        for open in self.lock().connections.drain(..) {
            open.connection.close(endpoint::BYE, reason);
        }
    }

    /// Ends the stream and waits until the peer has all of it.
    pub async fn finish(&self) {
        let Some(mut outgoing) = self.outgoing.lock().await.take() else {
            return;
        };
        if outgoing.stream.finish().is_ok() {
            let _ = outgoing.stream.stopped().await;
        }
    }

    pub fn traffic(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            sent_bytes: read(&self.counters.sent_bytes),
            sent_frames: read(&self.counters.sent_frames),
            received_bytes: read(&self.counters.received_bytes),
            received_frames: read(&self.counters.received_frames),
        }
    }

    pub fn count_received(&self, bytes: usize) {
        self.counters
            .received_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.counters
            .received_frames
            .fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_sent(&self, bytes: usize) {
        self.counters
            .sent_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.counters.sent_frames.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn newest(&self) -> Option<&Connection> {
        let open = self.connections.iter().rev().find(|open| open.is_open());
        open.map(|open| &open.connection)
    }

    /// Goes over to a later life and closes what is left of earlier ones; says whether there was
    /// something left. An earlier life that shows late changes nothing: a clock may have been set.
    fn begin(&mut self, life: u64) -> bool {
        if life <= self.life {
            return false;
        }
        self.life = life;
        self.addrs.clear();
        let mut outlived = false;
        for old in self.connections.extract_if(.., |open| open.life < life) {
            outlived |= old.is_open();
            let reason = b"you were started again";
            old.connection.close(endpoint::SUPERSEDED, reason);
        }
        outlived
    }

    /// The peer tells its addresses. A dial that began before they were known gives others up.
    fn listens_at(&mut self, addrs: &[SocketAddr]) {
        if addrs.is_empty() {
            return;
        }
        let is_first = self.addrs.is_empty();
        self.addrs = addrs.iter().take(limit::ADDRS).copied().collect();
        let Some(dial) = &mut self.dial else { return };
        match is_first {
            true => dial.targets.clone_from(&self.addrs),
            false => dial.add(addrs),
        }
    }
}

impl Open {
    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

impl Outgoing {
    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

impl Dial {
    fn is_carried_out(&self) -> bool {
        self.outcome.has_changed().is_ok()
    }

    fn add(&mut self, addrs: &[SocketAddr]) {
        for addr in addrs {
            if self.targets.len() < MAX_TARGETS && !self.targets.contains(addr) {
                self.targets.push(*addr);
            }
        }
    }
}
