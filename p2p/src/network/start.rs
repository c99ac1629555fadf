//! Starting a network: listen, speak the protocols, join. Whatever fails takes all of it down.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use accel_swarm::SwarmOptions;
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use rust_ipfs::Ipfs;
use tokio::sync::mpsc;

use super::connections::Connections;
use super::dial::{Dialler, Found, dial_known, peer_of, tcp_socket};
use super::error::NetworkError;
use super::local::{LocalAddrs, keep_fresh};
use super::members::Members;
use super::streams::Streams;
use super::tasks::Tasks;
use super::{Inner, Network, NetworkConfig, NetworkEvent, watch};
use crate::adverts::{Adverts, AdvertsDeps, gossip, hello};
use crate::bitswap::{Bitswap, BlockStore};
use crate::clock::unix_ms;
use crate::tensor::{PlaneConfig, TensorPlane};
use crate::wire::{TensorFrame, limit, protocol};
use crate::{control, join, replica};

const EVENT_QUEUE: usize = 256;
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
const INTERFACES_PAUSE: Duration = Duration::from_millis(100);

/// Starts a network and joins its swarm.
pub(super) async fn start(
    config: NetworkConfig,
    store: Arc<dyn BlockStore>,
) -> Result<(Network, mpsc::Receiver<NetworkEvent>), NetworkError> {
    let is_private = config.swarm.is_private();
    for addr in &config.listen {
        check_listen_addr(addr, is_private)?;
    }
    let (events, received) = mpsc::channel(EVENT_QUEUE);
    let network = Network {
        inner: Arc::new(build(&config, store, events).await?),
    };
    if let Err(error) = network.begin(&config).await {
        network.shutdown().await;
        return Err(error);
    }
    Ok((network, received))
}

/// Makes all the parts; none of them runs yet but the swarm and the tensor plane's endpoint.
async fn build(
    config: &NetworkConfig,
    store: Arc<dyn BlockStore>,
    events: mpsc::Sender<NetworkEvent>,
) -> Result<Inner, NetworkError> {
    let keypair = Keypair::ed25519_from_bytes(config.seed)
        .map_err(|error| NetworkError::Swarm(error.to_string()))?;
    let peer = keypair.public().to_peer_id();
    let members = Arc::new(Members::new(peer, config.swarm.clone()));
    let connections = Arc::new(Connections::default());
    let ipfs = start_swarm(&keypair, config, Arc::clone(&connections)).await?;
    let control = ipfs.stream_control().await.map_err(swarm_error)?;
    let streams = Streams::new(control, Arc::clone(&connections));
    let tasks = Tasks::here();
    let bitswap = Bitswap::new(streams.clone(), Arc::clone(&members), store, tasks.clone());
    let life = unix_ms();
    let (tensor, frames) = bind_tensor(&keypair, config, life, &members)?;
    let addrs = Arc::new(LocalAddrs::new(peer, tensor.local_addrs()));
    let known = AdvertsDeps {
        members: Arc::clone(&members),
        addrs: Arc::clone(&addrs),
        connections: Arc::clone(&connections),
        plane: tensor.clone(),
        events: events.clone(),
    };
    let adverts = Arc::new(Adverts::new(keypair, life, config.advert_ttl, known));
    let dialler = Dialler::new(
        ipfs.clone(),
        peer,
        Arc::clone(&connections),
        Arc::clone(&members),
    );
    let topic_name = format!(
        "{}{}",
        protocol::ADVERT_TOPIC_PREFIX,
        config.swarm.swarm_id()
    );
    let (topic, heard) = gossip::Topic::subscribe(&ipfs, topic_name).await?;
    tasks.spawn(gossip::listen(Arc::clone(&adverts), heard));
    tasks.spawn(watch::tensor(tensor.clone(), frames, events.clone()));
    Ok(Inner {
        peer,
        addrs,
        ipfs,
        streams,
        connections,
        members,
        adverts,
        topic,
        bitswap,
        dialler,
        tensor,
        found: Found::default(),
        tasks,
        events,
    })
}

async fn start_swarm(
    keypair: &Keypair,
    config: &NetworkConfig,
    connections: Arc<Connections>,
) -> Result<Ipfs, NetworkError> {
    let options = SwarmOptions {
        keypair: keypair.clone(),
        pre_shared_key: config.swarm.psk(),
        agent: concat!("accel/", env!("CARGO_PKG_VERSION")).to_owned(),
        max_gossip_bytes: 2 * limit::GOSSIP_ENVELOPE,
        on_connection: Box::new(move |change| connections.apply(change)),
    };
    accel_swarm::start(options)
        .await
        .map_err(|error| NetworkError::Swarm(error.to_string()))
}

type Frames = mpsc::Receiver<(libp2p::PeerId, TensorFrame)>;

fn bind_tensor(
    keypair: &Keypair,
    config: &NetworkConfig,
    life: u64,
    members: &Arc<Members>,
) -> Result<(TensorPlane, Frames), NetworkError> {
    let addr = config.tensor_listen;
    let plane = PlaneConfig {
        listen: addr,
        started_unix_ms: life,
        connect_timeout: config.tensor_connect_timeout,
    };
    TensorPlane::bind(keypair, &plane, members.clone()).map_err(|error| {
        let source = Box::new(error);
        NetworkError::TensorListen { addr, source }
    })
}

impl Network {
    /// Listens, serves and joins.
    async fn begin(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        let inner = &self.inner;
        self.serve_streams()?;
        for addr in &config.listen {
            listen(&inner.ipfs, addr).await?;
        }
        inner.addrs.refresh(&inner.ipfs).await;
        let addrs = Arc::clone(&inner.addrs);
        inner.tasks.spawn(keep_fresh(addrs, inner.ipfs.clone()));
        self.serve_joins()?;
        let greetings = watch::Greetings::new(
            inner.ipfs.clone(),
            inner.streams.clone(),
            Arc::clone(&inner.adverts),
            inner.tasks.clone(),
        );
        inner.tasks.spawn(watch::peers(
            Arc::clone(&inner.connections),
            greetings,
            inner.bitswap.clone(),
            inner.events.clone(),
        ));
        self.join_all(&config.join).await?;
        inner.members.may_take_part()?;
        self.advertise();
        Ok(())
    }

    fn serve_streams(&self) -> Result<(), NetworkError> {
        let inner = &self.inner;
        let tasks = &inner.tasks;
        tasks.spawn(control::serve(
            inner.streams.accept(protocol::CONTROL)?,
            Arc::clone(&inner.members),
            Arc::clone(&inner.connections),
            tasks.clone(),
            inner.events.clone(),
        ));
        tasks.spawn(replica::serve(
            inner.streams.accept(protocol::REPLICA)?,
            Arc::clone(&inner.members),
            tasks.clone(),
            inner.events.clone(),
        ));
        tasks.spawn(hello::serve(
            inner.streams.accept(protocol::ADVERT)?,
            Arc::clone(&inner.adverts),
            tasks.clone(),
        ));
        let blocks = inner.streams.accept(protocol::BITSWAP)?;
        tasks.spawn(inner.bitswap.clone().serve(blocks));
        Ok(())
    }

    /// Only a holder of the authority key can let others in.
    fn serve_joins(&self) -> Result<(), NetworkError> {
        let inner = &self.inner;
        if !inner.members.membership().holds_authority() {
            return Ok(());
        }
        inner.tasks.spawn(join::serve(
            inner.streams.accept(protocol::JOIN)?,
            Arc::clone(&inner.members),
            Arc::clone(&inner.addrs),
            inner.tasks.clone(),
        ));
        Ok(())
    }

    /// Starts to speak about this node, and to dial whom the others speak of.
    fn advertise(&self) {
        let inner = &self.inner;
        let adverts = &inner.adverts;
        let tasks = &inner.tasks;
        tasks.spawn(gossip::publish(Arc::clone(adverts), inner.topic.clone()));
        let sweeper = Arc::clone(adverts);
        tasks.spawn(async move { sweeper.sweep().await });
        tasks.spawn(dial_known(
            inner.dialler.clone(),
            Arc::clone(adverts),
            Arc::clone(&inner.found),
            tasks.clone(),
        ));
    }
}

fn swarm_error(error: impl std::fmt::Display) -> NetworkError {
    NetworkError::Swarm(error.to_string())
}

/// Refuses what this swarm does not listen on, before anything is started.
fn check_listen_addr(addr: &Multiaddr, is_private: bool) -> Result<(), NetworkError> {
    let refuse = |reason: &str| {
        Err(NetworkError::BadAddress {
            addr: addr.clone(),
            reason: reason.into(),
        })
    };
    if peer_of(addr).is_some() {
        return refuse("an address to listen on has no /p2p/ part");
    }
    let parts: Vec<Protocol<'_>> = addr.iter().collect();
    match parts.as_slice() {
        [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(_)] => Ok(()),
        [
            Protocol::Ip4(_) | Protocol::Ip6(_),
            Protocol::Udp(_),
            Protocol::QuicV1,
        ] if is_private => refuse("a private swarm speaks TCP only: its key does not guard QUIC"),
        [
            Protocol::Ip4(_) | Protocol::Ip6(_),
            Protocol::Udp(_),
            Protocol::QuicV1,
        ] => Ok(()),
        _ => refuse("listen on /ip4/ADDRESS/tcp/PORT, or the same with /ip6"),
    }
}

async fn listen(ipfs: &Ipfs, addr: &Multiaddr) -> Result<(), NetworkError> {
    if let Some(socket) = tcp_socket(addr) {
        probe_port(addr, socket)?;
    }
    let listening = ipfs.add_listening_address(addr.clone());
    let reason = match tokio::time::timeout(LISTEN_TIMEOUT, listening).await {
        Ok(Ok(_)) => {
            settle(addr).await;
            return Ok(());
        }
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("nothing came of it within {LISTEN_TIMEOUT:?}"),
    };
    let addr = addr.clone();
    if reason.to_lowercase().contains("in use") {
        return Err(NetworkError::AddressInUse { addr });
    }
    Err(NetworkError::Listen { addr, reason })
}

/// Listening "everywhere" becomes one address for each interface, which come one after the other.
async fn settle(addr: &Multiaddr) {
    let everywhere = match addr.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => ip.is_unspecified(),
        _ => false,
    };
    if everywhere {
        tokio::time::sleep(INTERFACES_PAUSE).await;
    }
}

/// libp2p lets two programs of one user listen on the same port (SO_REUSEPORT); a plain bind does
/// not, and so tells that the port is taken.
fn probe_port(addr: &Multiaddr, socket: SocketAddr) -> Result<(), NetworkError> {
    let addr = addr.clone();
    match TcpListener::bind(socket) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(NetworkError::AddressInUse { addr })
        }
        Err(error) => Err(NetworkError::Listen {
            addr,
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_swarms_transports_are_listened_on() {
        let peer = libp2p::PeerId::random();
        let with_peer = format!("/ip4/127.0.0.1/tcp/0/p2p/{peer}");
        // Address, accepted in a public swarm, accepted in a private one.
        let cases = [
            ("/ip4/127.0.0.1/tcp/0", true, true),
            ("/ip6/::1/tcp/4001", true, true),
            ("/ip4/127.0.0.1/udp/0/quic-v1", true, false),
            ("/ip4/127.0.0.1/udp/0", false, false),
            ("/ip4/127.0.0.1", false, false),
            ("/dns4/localhost/tcp/0", false, false),
            ("/ip4/127.0.0.1/tcp/0/ws", false, false),
            (with_peer.as_str(), false, false),
        ];
        for (text, public, private) in cases {
            let addr: Multiaddr = text.parse().unwrap();
            assert_eq!(check_listen_addr(&addr, false).is_ok(), public, "{text}");
            assert_eq!(check_listen_addr(&addr, true).is_ok(), private, "{text}");
        }
    }
}
