//! Bringing a node up.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use accel_inference::hardware::{self, Hardware, Measured};
use accel_p2p::tensor::CONNECT_TIMEOUT;
use accel_p2p::{BlockStore, Keypair, Multiaddr, Network, NetworkConfig, NetworkEvent};
use accel_storage::{DataDir, Store};
use actix::Arbiter;
use bytes::Bytes;
use cid::Cid;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::cast::{Cast, Shared};
use super::{Inner, WatchedUnit};
use crate::config::NodeConfig;
use crate::error::StartError;
use crate::health::Health;
use crate::own::{Own, fixed_body, memory_for_models};
use crate::quarantine::Quarantine;
use crate::router::Admission;
use crate::session::table::SessionTable;
use crate::stage::Shelf;
use crate::supervisor::UnitWatch;
use crate::suspended::Suspended;
use crate::swarm;
use crate::telemetry::Telemetry;

/// Threads of the network.
const IO_THREADS: usize = 2;

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
    identity: Keypair,
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
    let identity = swarm::keypair_of(seed)?;
    let own = identity.public().to_peer_id();
    let standing = swarm::standing(&config, &data, own)?;
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
        tensor_connect_timeout: CONNECT_TIMEOUT,
        advert_ttl: config.limits.advert_ttl,
    };
    let io = IoThreads::start()?;
    let blocks = Arc::new(ServedBlocks(store.clone()));
    let network_threads = io.handle();
    let starting =
        blocking(move || network_threads.block_on(Network::start(network_config, blocks)));
    let (network, events) = starting.await??;
    swarm::remember(&data, &network.membership())?;
    let (hardware, measured) = probing.await?;
    let ground = Ground {
        config,
        identity,
        network,
        store,
        hardware,
        measured,
    };
    raise(ground, events, io).await
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

/// What the actors share with the handle.
fn share(ground: &Ground, quarantine: Quarantine) -> Shared {
    let config = &ground.config;
    let memory = memory_for_models(config, &ground.hardware);
    let shelf = Arc::new(Shelf::new(memory));
    let admission = Arc::new(Admission::new(config.limits.clone()));
    let own = Own::new(
        ground.network.clone(),
        ground.store.clone(),
        Arc::clone(&shelf),
        Arc::clone(&admission),
        fixed_body(config, ground.hardware.clone(), &ground.measured),
    );
    Shared {
        own: Arc::new(own),
        shelf,
        sessions: Arc::new(SessionTable::new(config.limits.sessions_kept)),
        admission,
        telemetry: Telemetry::new(),
        health: Arc::new(Health::new(config.limits.breaker)),
        tenures: Arc::default(),
        quarantine: Arc::new(quarantine),
    }
}

async fn raise(
    ground: Ground,
    events: mpsc::Receiver<NetworkEvent>,
    io: IoThreads,
) -> Result<Inner, StartError> {
    let records = ground.store.records();
    let quarantine = blocking(move || Quarantine::open(records)).await?;
    let quarantine = quarantine.map_err(StartError::Storage)?;
    let shared = share(&ground, quarantine);
    let suspended = Suspended {
        journal: ground.store.journal(),
        table: Arc::clone(&shared.sessions),
        tenures: Arc::clone(&shared.tenures),
        window: ground.config.limits.resume_window,
    };
    suspended.at_start().await.map_err(StartError::Storage)?;
    let Ground {
        config,
        identity,
        network,
        store,
        ..
    } = ground;
    let (default_answer, kv) = (config.limits.default_answer, config.kv);
    let resume_window = config.limits.resume_window;
    let arbiter = Arbiter::new();
    let (sender, raised) = oneshot::channel();
    let cast = Cast {
        config,
        identity,
        network: network.clone(),
        store,
        shared: shared.clone(),
    };
    arbiter.spawn_fn(move || {
        // The receiver is gone only when starting was given up.
        let _ = sender.send(cast.raise(events));
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
        tenures: shared.tenures,
        shelf: shared.shelf,
        stage_deps: raised.stage_deps,
        own: shared.own,
        telemetry: shared.telemetry,
        units: raised.units.into_iter().map(watched).collect(),
        stopping: AtomicBool::new(false),
        default_answer,
        resume_window,
        kv,
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
