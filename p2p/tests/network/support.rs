//! Nodes to test with.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use accel_p2p::{
    Advert, AdvertBody, BlockStore, HardwareAdvert, Invite, JoinTarget, LoadAdvert, Multiaddr,
    Network, NetworkConfig, NetworkError, NetworkEvent, PeerId, SwarmKey, SwarmMembership, unix_ms,
};
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};
use tokio::sync::mpsc;

/// Nothing in these tests takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Blocks in memory; may hold bytes under a CID that is not theirs.
#[derive(Default)]
pub struct MemoryStore {
    blocks: Mutex<HashMap<Cid, Bytes>>,
    pub asked: Mutex<HashMap<Cid, u32>>,
}

impl MemoryStore {
    pub fn put(&self, data: impl Into<Bytes>) -> Cid {
        let data = data.into();
        let cid = cid_of(&data);
        self.put_as(cid, data);
        cid
    }

    pub fn put_as(&self, cid: Cid, data: impl Into<Bytes>) {
        self.blocks.lock().unwrap().insert(cid, data.into());
    }

    pub fn times_asked(&self, cid: &Cid) -> u32 {
        self.asked.lock().unwrap().get(cid).copied().unwrap_or(0)
    }
}

impl BlockStore for MemoryStore {
    fn get(&self, cid: &Cid) -> io::Result<Option<Bytes>> {
        *self.asked.lock().unwrap().entry(*cid).or_default() += 1;
        Ok(self.blocks.lock().unwrap().get(cid).cloned())
    }

    fn has(&self, cid: &Cid) -> io::Result<bool> {
        Ok(self.blocks.lock().unwrap().contains_key(cid))
    }
}

pub fn cid_of(data: &[u8]) -> Cid {
    const RAW: u64 = 0x55;
    Cid::new_v1(RAW, Code::Sha2_256.digest(data))
}

/// A running node, and what its owner hears.
pub struct Node {
    pub config: NetworkConfig,
    pub network: Network,
    pub store: Arc<MemoryStore>,
    pub events: mpsc::Receiver<NetworkEvent>,
}

impl Node {
    pub async fn start(config: NetworkConfig) -> Self {
        Self::try_start(config).await.expect("the node starts")
    }

    pub async fn try_start(config: NetworkConfig) -> Result<Self, NetworkError> {
        let store = Arc::new(MemoryStore::default());
        let (network, events) = Network::start(config.clone(), store.clone()).await?;
        Ok(Self {
            config,
            network,
            store,
            events,
        })
    }

    /// A node of a public swarm that joins `others` and advertises itself.
    pub async fn public(others: &[&Node]) -> Self {
        let mut config = public_config();
        config.join = others.iter().map(|node| node.as_target()).collect();
        let node = Self::start(config).await;
        node.network.set_advert(advert_body("test"));
        node
    }

    pub fn peer(&self) -> PeerId {
        self.network.peer_id()
    }

    pub fn addr(&self) -> Multiaddr {
        self.network.listen_addrs().remove(0)
    }

    pub fn as_target(&self) -> JoinTarget {
        JoinTarget::Addr(self.addr())
    }

    /// Waits for an event that `wanted` makes something of.
    pub async fn hears<T>(&mut self, wanted: impl Fn(NetworkEvent) -> Option<T>) -> T {
        let listening = async {
            loop {
                let event = self.events.recv().await.expect("the network runs");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        let heard = tokio::time::timeout(PATIENCE, listening).await;
        heard.expect("the event comes")
    }

    pub async fn hears_advert_of(&mut self, peer: PeerId) -> Advert {
        self.hears(|event| match event {
            NetworkEvent::Advert(advert) if advert.peer == peer => Some(*advert),
            _ => None,
        })
        .await
    }

    pub async fn hears_expiry_of(&mut self, peer: PeerId) {
        self.hears(|event| {
            matches!(event, NetworkEvent::PeerExpired(gone) if gone == peer).then_some(())
        })
        .await;
    }

    /// When `peer` says that it was started.
    pub async fn hears_greeting_of(&mut self, peer: PeerId) -> u64 {
        self.hears(|event| match event {
            NetworkEvent::PeerGreeted {
                peer: found,
                started_unix_ms,
            } if found == peer => Some(started_unix_ms),
            _ => None,
        })
        .await
    }

    pub async fn sees_connected(&mut self, peer: PeerId) {
        if self.network.is_connected(&peer) {
            return;
        }
        self.hears(|event| {
            matches!(event, NetworkEvent::PeerConnected(new) if new == peer).then_some(())
        })
        .await;
    }

    pub async fn sees_disconnected(&mut self, peer: PeerId) {
        self.hears(|event| {
            matches!(event, NetworkEvent::PeerDisconnected(gone) if gone == peer).then_some(())
        })
        .await;
    }

    /// Waits until `peer` is not connected, also if it came and went between two looks at the
    /// table of connections, which no event tells.
    pub async fn is_without(&self, peer: PeerId) {
        self.becomes(false, peer).await;
    }

    /// Waits until `peer` is connected, whatever events of earlier connections are still unread.
    pub async fn is_with(&self, peer: PeerId) {
        self.becomes(true, peer).await;
    }

    async fn becomes(&self, connected: bool, peer: PeerId) {
        let changing = async {
            while self.network.is_connected(&peer) != connected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let changed = tokio::time::timeout(PATIENCE, changing).await;
        changed.expect("the peer comes or leaves");
    }
}

/// A private swarm to test with.
pub struct PrivateSwarm {
    pub key: SwarmKey,
}

impl PrivateSwarm {
    pub fn new() -> Self {
        let key = SwarmKey::generate("tests").unwrap();
        Self { key }
    }

    /// For a node that was given the swarm key file.
    pub fn config(&self) -> NetworkConfig {
        let seed = rand::random();
        let swarm = SwarmMembership::from_key(&self.key, peer_of(seed), unix_ms());
        NetworkConfig::loopback(seed, swarm)
    }

    pub async fn node(&self, others: &[&Node]) -> Node {
        let mut config = self.config();
        config.join = others.iter().map(|node| node.as_target()).collect();
        let node = Node::start(config).await;
        node.network.set_advert(advert_body("private"));
        node
    }
}

/// For a node that was given nothing but an invite.
pub fn invited_config(invite: &Invite) -> NetworkConfig {
    let swarm = SwarmMembership::from_invite(invite);
    let mut config = NetworkConfig::loopback(rand::random(), swarm);
    config.join = vec![JoinTarget::Invite(Box::new(invite.clone()))];
    config
}

pub fn public_config() -> NetworkConfig {
    NetworkConfig::loopback(rand::random(), SwarmMembership::public("tests"))
}

pub fn peer_of(seed: [u8; 32]) -> PeerId {
    let keypair = accel_p2p::Keypair::ed25519_from_bytes(seed).unwrap();
    keypair.public().to_peer_id()
}

pub fn advert_body(version: &str) -> AdvertBody {
    AdvertBody {
        addrs: Vec::new(),
        tensor_addrs: Vec::new(),
        api: None,
        version: version.into(),
        hardware: HardwareAdvert::default(),
        measured_gb_s: 1.0,
        numerics: "test".into(),
        max_layers: None,
        draining: false,
        load: LoadAdvert::default(),
        models: Vec::new(),
        membership: None,
    }
}
