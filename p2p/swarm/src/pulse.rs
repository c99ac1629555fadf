//! Pings every connection and closes those that are silent.
//!
//! A connection can be dead while both ends have it open. The length in front of a message of Noise is
//! not authenticated: when bits of it change on the way, the receiver waits for up to 64 KiB as one
//! message, and takes in all that follows without a word. Streams are still opened over it, and nobody
//! answers. libp2p's own ping tells of that and keeps the connection.
//!
//! A node that did not run itself for a while (stopped, or short of processors) knows nothing of the
//! silence of others, and listens anew.

use std::collections::HashMap;
use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, ping};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

const PING_INTERVAL: Duration = Duration::from_secs(2);
/// A connection over which no ping came back for so long is closed. An answer waits behind what is under
/// way: 4 MiB, as much as a socket's buffer usually takes, need that long at 3 Mbit/s.
const SILENCE: Duration = Duration::from_secs(12);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Who looks so long after the last time did not run, and may have missed what came.
const ABSENCE: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Pulse {
    ping: ping::Behaviour,
    looks: Interval,
    connections: Heard,
}

impl Pulse {
    /// Must be called on a runtime, whose clock it uses.
    pub(crate) fn new() -> Self {
        let config = ping::Config::new()
            .with_interval(PING_INTERVAL)
            .with_timeout(SILENCE);
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            ping: ping::Behaviour::new(config),
            looks,
            connections: Heard::new(Instant::now()),
        }
    }
}

impl NetworkBehaviour for Pulse {
    type ConnectionHandler = <ping::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.ping
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.ping
            .handle_established_outbound_connection(connection, peer, remote, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                ..
            }) => self
                .connections
                .open(connection_id, peer_id, Instant::now()),
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.connections.close(&connection_id);
            }
            _ => {}
        }
        self.ping.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        result: THandlerOutEvent<Self>,
    ) {
        match result {
            Ok(_) => self.connections.hear(connection, Instant::now()),
            Err(ping::Failure::Unsupported) => self.connections.excuse(&connection),
            // Not every failure is silence: that is for the time to tell.
            Err(error) => {
                tracing::debug!(%peer, %connection, %error, "a ping did not come back");
            }
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        while self.looks.poll_tick(cx).is_ready() {
            self.connections.look(Instant::now());
        }
        let Some((connection, peer_id)) = self.connections.silent.pop() else {
            return Poll::Pending;
        };
        tracing::info!(peer = %peer_id, %connection, "a connection is silent and is closed");
        Poll::Ready(ToSwarm::CloseConnection {
            peer_id,
            connection: CloseConnection::One(connection),
        })
    }
}

/// An open connection.
struct Open {
    peer: PeerId,
    /// When a ping came back last, or when it was opened.
    heard: Instant,
    /// Whether one ever came back.
    answers: bool,
}

/// When each connection was heard last.
struct Heard {
    looked: Instant,
    open: HashMap<ConnectionId, Open>,
    /// To be closed.
    silent: Vec<(ConnectionId, PeerId)>,
}

impl Heard {
    fn new(now: Instant) -> Self {
        Self {
            looked: now,
            open: HashMap::new(),
            silent: Vec::new(),
        }
    }

    fn open(&mut self, connection: ConnectionId, peer: PeerId, now: Instant) {
        let open = Open {
            peer,
            heard: now,
            answers: false,
        };
        self.open.insert(connection, open);
    }

    /// It is gone.
    fn close(&mut self, connection: &ConnectionId) {
        self.open.remove(connection);
    }

    /// Its peer knows no ping, or broke off before it could say so: who answered before knows it.
    fn excuse(&mut self, connection: &ConnectionId) {
        if self.open.get(connection).is_some_and(|open| !open.answers) {
            self.open.remove(connection);
        }
    }

    fn hear(&mut self, connection: ConnectionId, now: Instant) {
        if let Some(open) = self.open.get_mut(&connection) {
            (open.heard, open.answers) = (now, true);
        }
    }

    /// Finds those that are silent.
    fn look(&mut self, now: Instant) {
        let was_absent = now.duration_since(self.looked) >= ABSENCE;
        self.looked = now;
        if was_absent {
            self.open.values_mut().for_each(|open| open.heard = now);
        }
        let is_silent =
            |_: &ConnectionId, open: &mut Open| now.duration_since(open.heard) >= SILENCE;
        let silent = self.open.extract_if(is_silent);
        self.silent
            .extend(silent.map(|(connection, open)| (connection, open.peer)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTION: fn(usize) -> ConnectionId = ConnectionId::new_unchecked;

    /// Looks twice a second from second to second; who is silent then.
    fn look(heard: &mut Heard, start: Instant, from: u64, to: u64) -> Vec<ConnectionId> {
        for half in 2 * from..=2 * to {
            heard.look(start + half as u32 * LOOK_INTERVAL);
        }
        heard
            .silent
            .drain(..)
            .map(|(connection, _)| connection)
            .collect()
    }

    #[test]
    fn a_silent_connection_is_found_and_one_that_answers_is_not() {
        let (start, peer) = (Instant::now(), PeerId::random());
        let mut heard = Heard::new(start);
        heard.open(CONNECTION(1), peer, start);
        heard.open(CONNECTION(2), peer, start);
        assert_eq!(look(&mut heard, start, 0, 11), []);
        heard.hear(CONNECTION(2), start + Duration::from_secs(11));
        assert_eq!(look(&mut heard, start, 11, 13), [CONNECTION(1)]);
        assert_eq!(look(&mut heard, start, 13, 22), []);
        assert_eq!(look(&mut heard, start, 22, 23), [CONNECTION(2)]);
        heard.hear(CONNECTION(2), start + Duration::from_secs(23));
        assert_eq!(look(&mut heard, start, 23, 60), []);
    }

    #[test]
    fn who_did_not_look_for_a_while_blames_nobody() {
        let (start, peer) = (Instant::now(), PeerId::random());
        let mut heard = Heard::new(start);
        heard.open(CONNECTION(1), peer, start);
        assert_eq!(look(&mut heard, start, 0, 10), []);
        assert_eq!(look(&mut heard, start, 100, 111), []);
        assert_eq!(look(&mut heard, start, 111, 112), [CONNECTION(1)]);
    }

    #[test]
    fn nothing_is_expected_of_who_is_gone_or_never_knew_a_ping() {
        let (start, peer) = (Instant::now(), PeerId::random());
        let mut heard = Heard::new(start);
        for connection in 1..=3 {
            heard.open(CONNECTION(connection), peer, start);
        }
        heard.close(&CONNECTION(1));
        heard.hear(CONNECTION(1), start);
        heard.excuse(&CONNECTION(2));
        heard.hear(CONNECTION(3), start);
        heard.excuse(&CONNECTION(3));
        assert_eq!(look(&mut heard, start, 0, 60), [CONNECTION(3)]);
    }
}
