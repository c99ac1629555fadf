//! A peer that has the pre-shared key, takes every greeting and never says who it is.

use std::io;

use accel_swarm::SwarmOptions;
use cid::Cid;
use libp2p::StreamProtocol;
use libp2p::identity::Keypair;

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

#[tokio::test(flavor = "multi_thread")]
async fn who_hears_greetings_and_shows_no_certificate_is_disconnected() {
    let key = SwarmKey::generate("home").unwrap();
    let seed = rand::random();
    let keypair = Keypair::ed25519_from_bytes(seed).unwrap();
    let swarm = SwarmMembership::from_key(&key, keypair.public().to_peer_id(), unix_ms());
    let options = SwarmOptions {
        keypair: Keypair::generate_ed25519(),
        pre_shared_key: swarm.psk(),
        agent: "eavesdropper".into(),
        max_gossip_bytes: 64 * 1024,
        on_connection: Box::new(|_| {}),
    };
    let stranger = accel_swarm::start(options).await.unwrap();
    let mut control = stranger.stream_control().await.unwrap();
    let mut greetings = control
        .accept(StreamProtocol::new(protocol::ADVERT))
        .unwrap();
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
