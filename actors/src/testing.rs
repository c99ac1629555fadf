//! Several nodes in one process, without a network: stage servers that reach each other over a
//! [`Hub`], and observers that stand in for coordinators.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use accel_inference::KvFormat;
use accel_inference::synthetic::{SyntheticArch, SyntheticSpec, generate};
use accel_p2p::wire::{
    ControlReply, ControlRequest, HardwareAdvert, LoadAdvert, PeerEndpoint, TensorFrame,
};
use accel_p2p::{AdvertBody, Keypair, PeerId};
use accel_storage::{BlockSource, BlockSourceError, DataDir, Store};
use actix::Actor;
use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::directory::Directory;
use crate::error::Failure;
use crate::models::Models;
use crate::peers::{Peers, Replies, finish};
use crate::session::link::Link;
use crate::session::table::SessionTable;
use crate::stage::{Shelf, StageDeps, StageServer};
use crate::supervisor::{ActorRef, RestartPolicy, Unit};
use crate::telemetry::Telemetry;

/// Longer than any test waits for anything that happens at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A small model in a file.
pub(crate) fn synthetic_model(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("small.gguf");
    let spec = SyntheticSpec {
        hidden: 256,
        ..SyntheticSpec::small(SyntheticArch::Llama)
    };
    generate(&spec, &path).unwrap();
    path
}

/// Who can be reached, and by what.
#[derive(Default)]
pub(crate) struct Hub {
    links: Mutex<HashMap<PeerId, Link>>,
    observers: Mutex<HashMap<PeerId, mpsc::Sender<TensorFrame>>>,
    seeder: Mutex<Option<Store>>,
}

impl Hub {
    /// Everybody fetches blocks from this store.
    pub(crate) fn seed_from(&self, store: Store) {
        *self.seeder.lock().unwrap() = Some(store);
    }

    /// A coordinator that is only watched: frames for it come out of the receiver.
    pub(crate) fn observer(&self) -> (PeerId, mpsc::Receiver<TensorFrame>) {
        let (peer, (sender, frames)) = (PeerId::random(), mpsc::channel(64));
        self.observers.lock().unwrap().insert(peer, sender);
        (peer, frames)
    }
}

/// The other nodes, as `own` reaches them.
pub(crate) fn peers_of(hub: &Arc<Hub>, own: PeerId) -> Arc<dyn Peers> {
    Arc::new(HubPeers {
        own,
        hub: Arc::clone(hub),
    })
}

struct HubPeers {
    own: PeerId,
    hub: Arc<Hub>,
}

#[async_trait]
impl Peers for HubPeers {
    fn endpoint(&self) -> PeerEndpoint {
        PeerEndpoint {
            peer: self.own,
            tensor_addrs: Vec::new(),
        }
    }

    async fn control(&self, _: PeerId, _: ControlRequest) -> Result<Replies, Failure> {
        Err(Failure::internal("stages do not place other stages"))
    }

    async fn send(&self, to: &PeerEndpoint, frame: TensorFrame) -> Result<(), Failure> {
        let observer = self.hub.observers.lock().unwrap().get(&to.peer).cloned();
        if let Some(observer) = observer {
            return observer
                .send(frame)
                .await
                .map_err(|_| Failure::internal("nobody watches"));
        }
        let link = self.hub.links.lock().unwrap().get(&to.peer).cloned();
        let link = link.ok_or_else(|| Failure::internal("no such peer"))?;
        let step = crate::stage::Step {
            from: self.own,
            frame,
        };
        link.stage
            .ask(step, PATIENCE)
            .await
            .map_err(|e| Failure::internal(e.to_string()))
    }

    fn blocks(&self, _: Vec<PeerId>) -> Box<dyn BlockSource> {
        Box::new(Seeded(self.hub.seeder.lock().unwrap().clone()))
    }

    fn connected(&self) -> usize {
        self.hub.links.lock().unwrap().len()
    }

    fn plane_bytes_s(&self) -> u64 {
        0
    }
}

struct Seeded(Option<Store>);

#[async_trait]
impl BlockSource for Seeded {
    async fn block(&self, cid: &Cid) -> Result<Bytes, BlockSourceError> {
        let store = self.0.as_ref().ok_or(BlockSourceError::NotFound)?;
        let block = store
            .get_block(cid)
            .map_err(|e| BlockSourceError::Other(e.to_string()))?;
        block.ok_or(BlockSourceError::NotFound)
    }
}

/// A stage server with a store of its own.
pub(crate) struct TestNode {
    pub(crate) peer: PeerId,
    pub(crate) store: Store,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) stage: ActorRef<StageServer>,
    pub(crate) deps: Arc<StageDeps>,
    _dir: TempDir,
}

impl TestNode {
    /// A node with this much memory for models.
    pub(crate) fn start(hub: &Arc<Hub>, memory: u64, max_layers: Option<u32>) -> Self {
        Self::start_with_kv(hub, memory, max_layers, KvFormat::default())
    }

    pub(crate) fn start_with_kv(
        hub: &Arc<Hub>,
        memory: u64,
        max_layers: Option<u32>,
        kv: KvFormat,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&DataDir::open(dir.path()).unwrap()).unwrap();
        let identity = Keypair::generate_ed25519();
        let peer = identity.public().to_peer_id();
        let peers = peers_of(hub, peer);
        let (shelf, telemetry) = (Arc::new(Shelf::new(memory)), Telemetry::new());

        let mut unit = Unit::new("test node", RestartPolicy::default());
        let directory = unit.member("directory", move || {
            Directory::new((peer, Arc::new(advert_body())), Vec::new()).start()
        });
        let models = Models::new(
            store.clone(),
            Arc::clone(&peers),
            directory,
            Duration::from_secs(30),
            telemetry.clone(),
        );
        let deps = Arc::new(StageDeps {
            store: store.clone(),
            models: Arc::new(models),
            peers: Arc::clone(&peers),
            shelf: Arc::clone(&shelf),
            sessions: Arc::new(SessionTable::new(8)),
            max_layers,
            threads: Some(1),
            warm_stand_ins: true,
            kv,
            identity,
            telemetry,
        });
        let own = Arc::clone(&deps);
        let stage = unit.member("stage server", move || {
            StageServer::new(Arc::clone(&own)).start()
        });
        unit.start();
        let link = Link {
            peers,
            stage: stage.clone(),
        };
        hub.links.lock().unwrap().insert(peer, link);
        Self {
            peer,
            store,
            shelf,
            stage,
            deps,
            _dir: dir,
        }
    }

    /// A control request in the name of `from`, up to its final reply.
    pub(crate) async fn control(
        &self,
        from: PeerId,
        request: ControlRequest,
    ) -> Result<ControlReply, Failure> {
        use futures::StreamExt;

        let (replies, mut receiver) = mpsc::channel(16);
        let message = crate::stage::Control {
            from,
            request,
            replies,
        };
        self.stage.ask(message, PATIENCE).await.unwrap();
        let replies = futures::stream::poll_fn(move |task| receiver.poll_recv(task));
        finish(replies.map(Ok).boxed(), PATIENCE, |_, _| {}).await
    }
}

/// An advert that says as little as possible.
pub(crate) fn advert_body() -> AdvertBody {
    AdvertBody {
        addrs: Vec::new(),
        tensor_addrs: Vec::new(),
        api: None,
        version: "test".into(),
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
