//! QUIC settings, and who is at the other end of a connection.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::pki_types::CertificateDer;
use quinn::{ConnectionError, VarInt};

use super::thread::{OnThread, PlaneThread};
use super::{IDLE_TIMEOUT, KEEP_ALIVE, PeerLoss, SILENCE, TensorError};
use crate::wire::protocol;

/// Close code: an orderly end.
pub(super) const BYE: VarInt = VarInt::from_u32(0);
/// Close code: the peer is not a member.
pub(super) const NOT_A_MEMBER: VarInt = VarInt::from_u32(1);
/// Close code: the peer sent what is no frame.
pub(super) const BAD_FRAME: VarInt = VarInt::from_u32(2);
/// Close code: another connection took over, or there are too many.
pub(super) const SUPERSEDED: VarInt = VarInt::from_u32(3);
/// Close code: nothing was heard of the peer.
pub(super) const SILENT: VarInt = VarInt::from_u32(4);

/// Streams of one peer at a time. It uses one; a second begins before the first is forgotten.
const MAX_STREAMS: VarInt = VarInt::from_u32(8);
/// Bytes of one stream that may be under way or unread.
const STREAM_WINDOW: VarInt = VarInt::from_u32(16 * 1024 * 1024);
/// Bytes of one connection that may be under way, unread or unacknowledged.
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;

/// Opens the endpoint for both directions, driven on `thread`.
pub(super) fn bind(
    keypair: &Keypair,
    addr: SocketAddr,
    thread: &PlaneThread,
) -> Result<(quinn::Endpoint, quinn::ClientConfig), TensorError> {
    let transport = Arc::new(transport());
    let mut server = server_config(keypair)?;
    server.transport_config(transport.clone());
    let mut client = client_config(keypair)?;
    client.transport_config(transport);
    let opened = UdpSocket::bind(addr).and_then(|socket| {
        let config = quinn::EndpointConfig::default();
        quinn::Endpoint::new(config, Some(server), socket, OnThread::new(thread))
    });
    let endpoint = opened.map_err(|error| TensorError::Bind {
        addr,
        reason: error.to_string(),
    })?;
    Ok((endpoint, client))
}

fn server_config(keypair: &Keypair) -> Result<quinn::ServerConfig, TensorError> {
    let mut tls = libp2p_tls::make_server_config(keypair).map_err(tls_error)?;
    tls.alpn_protocols = vec![protocol::TENSOR_ALPN.to_vec()];
    // A resumed session would repeat the identity of an older one: always prove it anew.
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(tls_error)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.migration(false);
    Ok(server)
}

fn client_config(keypair: &Keypair) -> Result<quinn::ClientConfig, TensorError> {
    // The identity is checked after the handshake, not by TLS, so that a wrong one has a name.
    let mut tls = libp2p_tls::make_client_config(keypair, None).map_err(tls_error)?;
    tls.alpn_protocols = vec![protocol::TENSOR_ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).map_err(tls_error)?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

fn tls_error(error: impl std::fmt::Display) -> TensorError {
    TensorError::Tls(error.to_string())
}

fn transport() -> quinn::TransportConfig {
    let idle = quinn::IdleTimeout::try_from(IDLE_TIMEOUT).expect("it is a few seconds");
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        // Before the first measurement: a lost first packet is sent again after thrice this.
        .initial_rtt(Duration::from_millis(100))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(MAX_STREAMS)
        .datagram_receive_buffer_size(None)
        .stream_receive_window(STREAM_WINDOW)
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW));
    transport
}

/// Whose certificate the other end proved to hold.
pub(super) fn peer_of(connection: &quinn::Connection) -> Option<PeerId> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let certificate = libp2p_tls::certificate::parse(chain.first()?).ok()?;
    Some(certificate.peer_id())
}

/// The end of a connection to a peer of which nothing is heard.
pub(super) fn silent(peer: PeerId) -> TensorError {
    let reason = format!("silent for {SILENCE:?}");
    TensorError::Lost { peer, reason }
}

/// The loss of a peer that is there again, in a later life.
pub(super) fn outlived(peer: PeerId) -> PeerLoss {
    let reason = "it was started again".to_owned();
    let error = TensorError::Lost { peer, reason };
    PeerLoss { peer, error }
}

/// The end of a connection in our words.
pub(super) fn loss(peer: PeerId, error: &ConnectionError) -> TensorError {
    let reason = match error {
        ConnectionError::ApplicationClosed(close) if close.error_code == NOT_A_MEMBER => {
            let reason = String::from_utf8_lossy(&close.reason);
            let reason = crate::wire::clip(&reason, crate::wire::limit::LABEL);
            return TensorError::Refused { peer, reason };
        }
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            let reason = crate::wire::clip(&reason, crate::wire::limit::LABEL);
            format!("it closed the connection ({reason})")
        }
        ConnectionError::TimedOut => format!("silent for {IDLE_TIMEOUT:?}"),
        ConnectionError::LocallyClosed => "the connection was closed here".to_owned(),
        other => other.to_string(),
    };
    TensorError::Lost { peer, reason }
}
