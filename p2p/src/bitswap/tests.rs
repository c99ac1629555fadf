//! A peer that behaves as Kubo does: it answers every want on a stream of its own, all at once.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use accel_swarm::SwarmOptions;
use bytes::Bytes;
use cid::Cid;
use futures::{AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::{PeerId, Stream, StreamProtocol};
use libp2p_stream::Control;
use rust_ipfs::Ipfs;

use super::message::{Block, Message};
use super::{BlockStore, content, frame};
use crate::membership::SwarmMembership;
use crate::network::{JoinTarget, Network, NetworkConfig};
use crate::wire::protocol;

const PER_PROVIDER: Duration = Duration::from_secs(10);
const BLOCK: usize = 64 * 1024;

struct Nothing;

impl BlockStore for Nothing {
    fn get(&self, _: &Cid) -> io::Result<Option<Bytes>> {
        Ok(None)
    }

    fn has(&self, _: &Cid) -> io::Result<bool> {
        Ok(false)
    }
}

/// Answers on streams of their own, for as long as the test runs.
struct KuboLike {
    control: Control,
    blocks: HashMap<Cid, Bytes>,
}

impl KuboLike {
    async fn start(blocks: HashMap<Cid, Bytes>) -> (Ipfs, JoinTarget) {
        let options = SwarmOptions {
            keypair: Keypair::generate_ed25519(),
            pre_shared_key: None,
            agent: "kubo-like".into(),
            max_gossip_bytes: 64 * 1024,
            on_connection: Box::new(|_| {}),
        };
        let ipfs = accel_swarm::start(options).await.unwrap();
        let mut control = ipfs.stream_control().await.unwrap();
        let mut incoming = control
            .accept(StreamProtocol::new(protocol::BITSWAP))
            .unwrap();
        let kubo = Arc::new(Self { control, blocks });
        tokio::spawn(async move {
            while let Some((peer, stream)) = incoming.next().await {
                tokio::spawn(Arc::clone(&kubo).serve(peer, stream));
            }
        });
        let listen = "/ip4/127.0.0.1/tcp/0".parse().unwrap();
        ipfs.add_listening_address(listen).await.unwrap();
        let addr = ipfs.listening_addresses().await.unwrap().remove(0);
        (ipfs, JoinTarget::Addr(addr))
    }

    async fn serve(self: Arc<Self>, peer: PeerId, mut stream: Stream) {
        while let Ok(Some(frame)) = frame::read(&mut stream).await {
            for want in Message::decode(&frame).unwrap().wants {
                if let Some(data) = self.blocks.get(&want.cid).filter(|_| !want.cancel) {
                    tokio::spawn(Arc::clone(&self).answer(peer, want.cid, data.clone()));
                }
            }
        }
    }

    async fn answer(self: Arc<Self>, peer: PeerId, cid: Cid, data: Bytes) {
        let prefix = content::prefix_of(&cid);
        let message = Message {
            blocks: vec![Block { prefix, data }],
            ..Message::default()
        };
        let protocol = StreamProtocol::new(protocol::BITSWAP);
        let mut stream = self
            .control
            .clone()
            .open_stream(peer, protocol)
            .await
            .unwrap();
        // The other side may drop the stream: that is what this test is about.
        let _ = frame::write(&mut stream, &message.encode()).await;
        let _ = stream.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_opens_a_stream_for_every_answer_serves_all_blocks() {
    let blocks: HashMap<Cid, Bytes> = (0..48u32)
        .map(|n| {
            let data = n.to_le_bytes().repeat(BLOCK / 4);
            (content::raw_cid(&data), data.into())
        })
        .collect();
    let (kubo, target) = KuboLike::start(blocks.clone()).await;
    let mut config = NetworkConfig::loopback(rand::random(), SwarmMembership::public("kubo"));
    config.join = vec![target];
    let (network, _events) = Network::start(config, Arc::new(Nothing)).await.unwrap();
    let providers = [kubo.keypair().public().to_peer_id()];
    let fetched: Vec<_> = futures::stream::iter(blocks.keys())
        .map(|cid| network.fetch_block(cid, &providers, PER_PROVIDER))
        .buffered(32)
        .collect()
        .await;
    for (block, expected) in fetched.into_iter().zip(blocks.values()) {
        assert_eq!(block.unwrap(), *expected);
    }
    network.shutdown().await;
    kubo.exit_daemon().await;
}
