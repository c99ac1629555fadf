//! Bringing a node up.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use accel_inference::hardware::{self, Hardware, Measured};
use accel_p2p::{BlockStore, Multiaddr, Network, NetworkConfig, NetworkEvent};
use accel_storage::{DataDir, Journal, Store};
use actix::{Actor, Arbiter};
use bytes::Bytes;
use cid::Cid;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Inner, WatchedUnit};
use crate::config::NodeConfig;
use crate::directory::Directory;
use crate::error::StartError;
use crate::events::Pump;
use crate::models::Models;
use crate::own::{Own, fixed_body, memory_for_models};
use crate::peers::{NetworkPeers, Peers};
use crate::placement::Placer;
use crate::router::{Admission, Router, RouterDeps};
use crate::session::actor::SessionDeps;
use crate::session::link::Link;
use crate::session::table::SessionTable;
use crate::stage::{Shelf, StageDeps, StageServer};
use crate::supervisor::{ActorRef, RestartPolicy, Unit, UnitWatch};
use crate::swarm;
use crate::telemetry::Telemetry;

/// Threads of the network.
const IO_THREADS: usize = 2;
/// Closed sessions that the journal keeps.
const JOURNAL_KEEPS: usize = 1000;
/// How often older ones are forgotten.
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// The network's threads; they end when this is dropped.
pub(super) struct IoThreads(Option<Runtime>);

impl IoThreads {
    fn start() -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("accel-io")
            .enable_all()
            .build();
        runtime
            .map(|runtime| Self(Some(runtime)))
            .map_err(StartError::Threads)
    }

    /// Enters the runtime, for what starts tasks on it.
    fn handle(&self) -> Handle {
        let runtime = self
            .0
            .as_ref()
            .expect("the runtime is there until this is dropped");
        runtime.handle().clone()
    }

    pub(super) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle().spawn(task)
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        // A plain drop would wait, which is not allowed within another runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves blocks out of the store.
struct ServedBlocks(Store);

impl BlockStore for ServedBlocks {
    fn get(&self, cid: &Cid) -> io::Result<Option<Bytes>> {
        self.0.get_block(cid).map_err(io::Error::other)
    }

    fn has(&self, cid: &Cid) -> io::Result<bool> {
        self.0.has_block(cid).map_err(io::Error::other)
    }
}

/// What the actors stand on.
struct Ground {
    config: NodeConfig,
    network: Network,
    store: Store,
    hardware: Hardware,
    measured: Measured,
}

pub(super) async fn start(config: NodeConfig) -> Result<Inner, StartError> {
    let dir = config.data_dir.clone();
    let opened = blocking(move || {
        let data = DataDir::open(&dir)?;
        let store = Store::open(&data)?;
        Ok::<_, StartError>((data, store))
    });
    let (data, store) = opened.await??;
    let threads = config.threads;
    let probing = blocking(move || (hardware::probe(), hardware::measure(threads)));

    let seed = data.identity_seed()?;
    let standing = swarm::standing(&config, &data, swarm::peer_of(seed)?)?;
    let listen = config
        .listen
        .iter()
        .map(|text| swarm::multiaddr("listen address", text));
    let listen = listen.collect::<Result<Vec<_>, _>>()?;
    let network_config = NetworkConfig {
        seed,
        tensor_listen: tensor_listen(&listen),
        listen,
        join: standing.join,
        swarm: standing.membership,
        advert_ttl: config.limits.advert_ttl,
    };
    let io = IoThreads::start()?;
    let blocks = Arc::new(ServedBlocks(store.clone()));
    let network_threads = io.handle();
    let starting =
        blocking(move || network_threads.block_on(Network::start(network_config, blocks)));
    let (network, events) = starting.await??;
    swarm::remember(&data, &network.membership())?;
    close_interrupted(&store.journal()).await?;
    let (hardware, measured) = probing.await?;
    let ground = Ground {
        config,
        network,
        store,
        hardware,
        measured,
    };
    raise(ground, events, io).await
}

/// Sessions that a crash cut off have an outcome, too.
async fn close_interrupted(journal: &Journal) -> Result<(), StartError> {
    for session in journal.sessions()? {
        if session.closed_unix_ms.is_none() {
            journal
                .close(session.key, b"failed: interrupted: the node stopped")
                .await?;
        }
    }
    Ok(())
}

/// Keeps the journal from growing without end.
async fn keep_pruning(journal: Journal) {
    loop {
        if let Err(error) = journal.prune(JOURNAL_KEEPS).await {
            tracing::warn!(%error, "old sessions stay in the journal");
        }
        tokio::time::sleep(PRUNE_EVERY).await;
    }
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| crashed(&error))
}

fn crashed(error: &tokio::task::JoinError) -> StartError {
    StartError::Threads(io::Error::other(error.to_string()))
}

/// The tensor plane listens on the IP of the first address, on a port of its own.
fn tensor_listen(listen: &[Multiaddr]) -> SocketAddr {
    let first = listen.iter().find_map(|addr| {
        let text = addr.to_string();
        let mut parts = text.split('/').skip(1);
        let protocol = parts.next()?;
        let ip = parts.next()?.parse::<IpAddr>().ok()?;
        matches!(protocol, "ip4" | "ip6").then_some(ip)
    });
    SocketAddr::new(first.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), 0)
}

/// What comes back from the arbiter on which the actors live.
struct Raised {
    units: Vec<UnitWatch>,
    directory: ActorRef<Directory>,
    router: ActorRef<Router>,
    models: Arc<Models>,
    placer: Placer,
}

/// What the actors share with the handle.
#[derive(Clone)]
struct Shared {
    own: Arc<Own>,
    shelf: Arc<Shelf>,
    sessions: Arc<SessionTable>,
    admission: Arc<Admission>,
    telemetry: Telemetry,
}

async fn raise(
    ground: Ground,
    events: mpsc::Receiver<NetworkEvent>,
    io: IoThreads,
) -> Result<Inner, StartError> {
    let Ground {
        config,
        network,
        store,
        hardware,
        measured,
    } = ground;
    let shelf = Arc::new(Shelf::new(memory_for_models(&config, &hardware)));
    let sessions = Arc::new(SessionTable::new(config.limits.sessions_kept));
    let admission = Arc::new(Admission::new(config.limits.clone()));
    let own = Own::new(
        network.clone(),
        store.clone(),
        Arc::clone(&shelf),
        Arc::clone(&admission),
        fixed_body(&config, hardware, &measured),
    );
    let shared = Shared {
        own: Arc::new(own),
        shelf,
        sessions,
        admission,
        telemetry: Telemetry::new(),
    };
    let default_answer = config.limits.default_answer;
    let arbiter = Arbiter::new();
    let (sender, raised) = oneshot::channel();
    let (for_actors, for_network) = (shared.clone(), network.clone());
    arbiter.spawn_fn(move || {
        let raised = raise_actors(&config, &for_network, store, &for_actors, events);
        // The receiver is gone only when starting was given up.
        let _ = sender.send(raised);
    });
    let no_arbiter = |_| StartError::Threads(io::Error::other("the actors' thread ended"));
    let raised = raised.await.map_err(no_arbiter)?;
    Ok(Inner {
        network,
        models: raised.models,
        directory: raised.directory,
        router: raised.router,
        placer: raised.placer,
        sessions: shared.sessions,
        admission: shared.admission,
        shelf: shared.shelf,
        own: shared.own,
        telemetry: shared.telemetry,
        units: raised.units.into_iter().map(watched).collect(),
        stopping: AtomicBool::new(false),
        default_answer,
        actors: arbiter.handle(),
        io,
    })
}

fn watched(watch: UnitWatch) -> WatchedUnit {
    WatchedUnit {
        state: watch.subscribe(),
        restarts: watch.restarts(),
        watch: Mutex::new(Some(watch)),
    }
}

/// Starts the actors, on their arbiter. Directory and router restart as one: a router with a
/// fresh directory would refuse what the old one knew how to place.
fn raise_actors(
    config: &NodeConfig,
    network: &Network,
    store: Store,
    shared: &Shared,
    events: mpsc::Receiver<NetworkEvent>,
) -> Raised {
    let limits = config.limits.clone();
    let peers: Arc<dyn Peers> = NetworkPeers::new(network.clone(), limits.block_timeout);
    let mut front = Unit::new("front", RestartPolicy::default());
    let mut stages = Unit::new("stages", RestartPolicy::default());

    let directory = front.member("directory", {
        let (network, own) = (network.clone(), Arc::clone(&shared.own));
        move || {
            let body = Arc::new(own.body());
            Directory::new((network.peer_id(), body), network.connected()).start()
        }
    });
    let models = Arc::new(Models::new(
        store.clone(),
        Arc::clone(&peers),
        directory.clone(),
        limits.header_timeout,
        shared.telemetry.clone(),
    ));
    let stage = stages.member("stage server", {
        let deps = Arc::new(StageDeps {
            store: store.clone(),
            models: Arc::clone(&models),
            peers: Arc::clone(&peers),
            shelf: Arc::clone(&shared.shelf),
            sessions: Arc::clone(&shared.sessions),
            max_layers: config.max_layers,
            threads: config.threads,
            telemetry: shared.telemetry.clone(),
        });
        move || StageServer::new(Arc::clone(&deps)).start()
    });
    let placer = Placer {
        directory: directory.clone(),
    };
    let session = Arc::new(SessionDeps {
        link: Link {
            peers,
            stage: stage.clone(),
        },
        journal: store.journal(),
        placer: placer.clone(),
        table: Arc::clone(&shared.sessions),
        limits: limits.clone(),
        telemetry: shared.telemetry.clone(),
    });
    let router = front.member("router", {
        let deps = Arc::new(RouterDeps {
            models: Arc::clone(&models),
            session,
            telemetry: shared.telemetry.clone(),
        });
        move || Router::new(Arc::clone(&deps)).start()
    });

    let units = vec![front.start(), stages.start()];
    let pump = Pump {
        directory: directory.clone(),
        stage,
        sessions: Arc::clone(&shared.sessions),
    };
    actix::spawn(pump.run(events));
    actix::spawn(keep_pruning(store.journal()));
    let telling = Arc::clone(&shared.own);
    actix::spawn(telling.keep_telling(directory.clone(), limits.advert_ttl / 3));
    Raised {
        units,
        directory,
        router,
        models,
        placer,
    }
}
