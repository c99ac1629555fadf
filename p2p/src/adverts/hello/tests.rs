//! Peers that do not answer greetings: one that has the pre-shared key and never says who it is, and
//! one that takes a while to listen.

use std::io;

use accel_swarm::SwarmOptions;
use cid::Cid;
use libp2p::StreamProtocol;
use libp2p::identity::Keypair;
use rust_ipfs::Ipfs;

use super::*;
use crate::bitswap::BlockStore;
use crate::clock::unix_ms;
use crate::membership::{SwarmKey, SwarmMembership};
use crate::network::{Network, NetworkConfig, NetworkEvent};

/// Less than a greeting that nobody answers takes with all its repeats.
const PATIENCE: Duration = Duration::from_secs(30);

struct Nothing;

impl BlockStore for Nothing {
    fn get(&self, _: &Cid) -> io::Result<Option<Bytes>> {
        Ok(None)
    }

    fn has(&self, _: &Cid) -> io::Result<bool> {
        Ok(false)
    }
}

/// A peer of which nothing runs but its swarm, and the greetings that reach it.
async fn bare(swarm: &SwarmMembership) -> (Ipfs, IncomingStreams) {
    let options = SwarmOptions {
        keypair: Keypair::generate_ed25519(),
        pre_shared_key: swarm.psk(),
        agent: "bare".into(),
        max_gossip_bytes: 64 * 1024,
        on_connection: Box::new(|_| {}),
    };
    let bare = accel_swarm::start(options).await.unwrap();
    let mut control = bare.stream_control().await.unwrap();
    let greetings = control.accept(StreamProtocol::new(protocol::ADVERT));
    (bare, greetings.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_is_said_until_it_is_heard() {
    let swarm = SwarmMembership::public("home");
    let (deaf, mut greetings) = bare(&swarm).await;
    let config = NetworkConfig::loopback(rand::random(), swarm);
    let (network, _events) = Network::start(config, Arc::new(Nothing)).await.unwrap();
    let addr = network.listen_addrs().remove(0);
    deaf.connect(addr).await.unwrap();
    let hearing = async {
        for _ in RETRY_PAUSES {
            drop(greetings.next().await);
        }
        let (_, mut stream) = greetings.next().await.unwrap();
        while !read_frame(&mut stream).await.unwrap().is_empty() {}
    };
    let heard = tokio::time::timeout(PATIENCE, hearing).await;
    heard.expect("it is said again, later too");
    network.shutdown().await;
    deaf.exit_daemon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hears_greetings_and_shows_no_certificate_is_disconnected() {
    let key = SwarmKey::generate("home").unwrap();
    let seed = rand::random();
    let keypair = Keypair::ed25519_from_bytes(seed).unwrap();
    let swarm = SwarmMembership::from_key(&key, keypair.public().to_peer_id(), unix_ms());
    let (stranger, mut greetings) = bare(&swarm).await;
    // Taken and never answered.
    let hearing = tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Some((_, stream)) = greetings.next().await {
            taken.push(stream);
        }
    });

    let config = NetworkConfig::loopback(seed, swarm);
    let (network, mut events) = Network::start(config, Arc::new(Nothing)).await.unwrap();
    let addr = network.listen_addrs().remove(0);
    stranger.connect(addr).await.unwrap();
    let stranger_id = stranger.keypair().public().to_peer_id();
    let leaving = async {
        while let Some(event) = events.recv().await {
            if matches!(event, NetworkEvent::PeerDisconnected(peer) if peer == stranger_id) {
                return;
            }
        }
        panic!("the network stopped");
    };
    let left = tokio::time::timeout(PATIENCE, leaving).await;
    left.expect("the stranger is sent away");
    network.shutdown().await;
    hearing.abort();
    stranger.exit_daemon().await;
}
