//! Opening and accepting libp2p streams, each bounded in time.
//!
//! A stream is always read and written by one task: yamux may lose a wake-up when two tasks share
//! one. And an accepted stream can be lost: libp2p-stream hands streams over through a queue of
//! one and drops what does not fit. Protocols that matter therefore acknowledge, or repeat.

use std::sync::Arc;
use std::time::Duration;

use libp2p::{PeerId, Stream, StreamProtocol};
use libp2p_stream::{Control, IncomingStreams, OpenStreamError};

use super::connections::Connections;
use super::error::NetworkError;

const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens streams to connected peers, and accepts theirs.
#[derive(Clone)]
pub(crate) struct Streams {
    control: Control,
    connections: Arc<Connections>,
}

impl Streams {
    pub(crate) fn new(control: Control, connections: Arc<Connections>) -> Self {
        Self {
            control,
            connections,
        }
    }

    /// The connected peers.
    pub(crate) fn connected(&self) -> Vec<PeerId> {
        self.connections.peers()
    }

    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        self.connections.is_connected(peer)
    }

    /// Opens a stream to a connected peer; it does not dial.
    pub(crate) async fn open(
        &self,
        peer: PeerId,
        protocol: &'static str,
    ) -> Result<Stream, NetworkError> {
        if !self.connections.is_connected(&peer) {
            return Err(NetworkError::NotConnected(peer));
        }
        let mut control = self.control.clone();
        let opening = control.open_stream(peer, StreamProtocol::new(protocol));
        match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(OpenStreamError::UnsupportedProtocol(protocol))) => {
                let protocol = protocol.to_string();
                Err(NetworkError::Unsupported { peer, protocol })
            }
            Ok(Err(error)) => Err(NetworkError::Broken {
                peer,
                reason: error.to_string(),
            }),
            Err(_) => Err(NetworkError::TimedOut {
                peer,
                after: OPEN_TIMEOUT,
            }),
        }
    }

    /// Accepts streams of a protocol; each protocol has one acceptor.
    pub(crate) fn accept(&self, protocol: &'static str) -> Result<IncomingStreams, NetworkError> {
        self.control
            .clone()
            .accept(StreamProtocol::new(protocol))
            .map_err(|error| NetworkError::Swarm(format!("{protocol}: {error}")))
    }
}
