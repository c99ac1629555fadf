//! A running node: the way in for the binary, the HTTP API and tests.
//!
//! [`NodeHandle::start`] brings things up in the order in which they need each other: data
//! directory, hardware, network, actors, events. [`NodeHandle::shutdown`] takes them down in the
//! reverse order. The network lives on threads of its own, so that block traffic never delays a
//! token; the actors share one arbiter, because none of them ever blocks.

mod cast;
mod evidence;
mod start;
#[cfg(test)]
mod tests;
mod views;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use accel_inference::KvFormat;
use accel_p2p::{Network, SessionId};
use actix::ArbiterHandle;
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::directory::{Directory, PeerRecord, snapshot};
use crate::error::{ErrorKind, Failure, GenerateError, StartError};
use crate::models::{Models, ModelsError};
use crate::own::Own;
use crate::placement::{Placer, Wanted};
use crate::replica::NetworkReplicas;
use crate::replica::tenure::Tenures;
use crate::request::{GenerateRequest, Generation, Resumption};
use crate::resume::{Resume, Returns};
use crate::router::{Admission, Generate, Router};
use crate::session::table::SessionTable;
use crate::stage::{Shelf, StageDeps};
use crate::supervisor::{ActorRef, UnitState, UnitWatch};
use crate::telemetry::{Observed, Telemetry};
use crate::views::{ModelDetail, ModelView, PeerView, PlanView, SessionView};

pub use crate::models::Progress;

/// How long a request may wait for its model's header and its placement.
const GENERATE_WITHIN: Duration = Duration::from_secs(600);
/// How long every running session may end by itself when the node stops.
const GRACE: Duration = Duration::from_secs(2);
/// How long those that peers can go on with may then take to be handed over, and the others to end.
const HAND_OVER: Duration = Duration::from_secs(3);
/// How long sessions of other nodes may take to move their layers away, from the beginning of all this.
const MOVE_AWAY: Duration = Duration::from_secs(10);
/// How long cancelled sessions may take to end.
const CANCEL: Duration = Duration::from_secs(2);

/// A running node. Clones lead to the same node.
#[derive(Clone)]
pub struct NodeHandle {
    inner: Arc<Inner>,
}

/// What is watched of a unit, and what stops it.
struct WatchedUnit {
    state: watch::Receiver<UnitState>,
    restarts: Arc<AtomicU64>,
    watch: Mutex<Option<UnitWatch>>,
}

struct Inner {
    network: Network,
    models: Arc<Models>,
    directory: ActorRef<Directory>,
    router: ActorRef<Router>,
    placer: Placer,
    sessions: Arc<SessionTable>,
    admission: Arc<Admission>,
    tenures: Arc<Tenures>,
    shelf: Arc<Shelf>,
    stage_deps: Arc<StageDeps>,
    own: Arc<Own>,
    telemetry: Telemetry,
    units: Vec<WatchedUnit>,
    stopping: AtomicBool,
    default_answer: u32,
    resume_window: Duration,
    kv: KvFormat,
    actors: ArbiterHandle,
    io: start::IoThreads,
}

impl NodeHandle {
    /// Starts a node. Must run within an actix system.
    pub async fn start(config: NodeConfig) -> Result<Self, StartError> {
        let inner = start::start(config).await?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Takes on a request.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        if self.inner.stopping.load(Ordering::Relaxed) {
            return Err(GenerateError::ShuttingDown);
        }
        let permit = self.inner.admission.admit().await;
        let permit = permit.inspect_err(|error| self.inner.telemetry.request(error.code()))?;
        let message = Generate { request, permit };
        let answer = self.inner.router.ask(message, GENERATE_WITHIN).await;
        answer.map_err(|error| GenerateError::Internal(error.to_string()))?
    }

    /// Goes on with a session for a client that has its answer up to token `after`; that has
    /// nothing of it when absent.
    pub async fn resume(
        &self,
        session: &str,
        after: Option<u64>,
    ) -> Result<Resumption, GenerateError> {
        let inner = &self.inner;
        if inner.stopping.load(Ordering::Relaxed) {
            return Err(GenerateError::ShuttingDown);
        }
        let sessions = Returns {
            journal: inner.models.store().journal(),
            table: Arc::clone(&inner.sessions),
            replicas: NetworkReplicas::new(inner.network.clone()),
            tenures: Arc::clone(&inner.tenures),
            window: inner.resume_window,
        };
        let found = sessions.find(session, after).await?;
        let permit = inner.admission.admit().await?;
        let message = Resume { found, permit };
        let answer = inner.router.ask(message, GENERATE_WITHIN).await;
        answer.map_err(|error| GenerateError::Internal(error.to_string()))?
    }

    /// The nodes of the swarm, this one first.
    pub async fn peers(&self) -> Result<Vec<PeerView>, Failure> {
        let records = snapshot(&self.inner.directory).await;
        let (health, now) = (&self.inner.placer.health, Instant::now());
        let quarantine = &self.inner.placer.quarantine;
        let view = |record: &PeerRecord| {
            let diagnosis = health.diagnosis(record.peer, now);
            views::peer(record, &diagnosis, quarantine.holds(record.peer))
        };
        Ok(records.iter().map(view).collect())
    }

    /// Who would hold what, for `tokens` tokens of context.
    pub async fn plan(&self, model: &str, tokens: Option<u32>) -> Result<PlanView, GenerateError> {
        let card = self.inner.models.card(model).await?;
        let shape = &card.header.shape;
        let tokens = tokens
            .unwrap_or(self.inner.default_answer)
            .clamp(1, shape.context);
        let placement = self
            .inner
            .placer
            .place(&card.model, shape, tokens, &Wanted::default())
            .await?;
        Ok(views::plan(
            &card.model,
            shape.layers,
            tokens,
            &placement.plan,
        ))
    }

    /// The models of this node and of its peers.
    pub async fn models(&self) -> Result<Vec<ModelView>, ModelsError> {
        let records = self.inner.models.store().models()?;
        let peers = snapshot(&self.inner.directory).await;
        Ok(views::models(records, &peers))
    }

    /// Adds a GGUF file to the store; its name is the file's unless given.
    pub async fn model_add(
        &self,
        path: PathBuf,
        name: Option<String>,
        progress: Progress,
    ) -> Result<ModelView, ModelsError> {
        let record = self.inner.models.add(path, name, progress).await?;
        self.inner.own.models_changed();
        Ok(views::kept(record, 0))
    }

    /// Fetches all of a model that peers offer: by name or CID.
    pub async fn model_pull(
        &self,
        model: &str,
        name: Option<String>,
        progress: Progress,
    ) -> Result<ModelView, ModelsError> {
        let record = self.inner.models.pull(model, name, progress).await?;
        self.inner.own.models_changed();
        Ok(views::kept(record, 0))
    }

    /// Keeps a model when room is needed, or no longer.
    pub async fn model_pin(&self, model: &str, pinned: bool) -> Result<ModelView, ModelsError> {
        let store = self.inner.models.store();
        let unknown = || ModelsError::Unknown(model.to_owned());
        let record = store.resolve(model)?.ok_or_else(unknown)?;
        store.pin(&record.cid, pinned)?;
        let record = store
            .resolve(&record.cid.to_string())?
            .ok_or_else(unknown)?;
        Ok(views::kept(record, 0))
    }

    /// Removes a model's bytes from this node.
    pub async fn model_remove(&self, model: &str) -> Result<(), ModelsError> {
        let store = self.inner.models.store();
        let record = store.resolve(model)?;
        let record = record.ok_or_else(|| ModelsError::Unknown(model.to_owned()))?;
        store.remove(&record.cid)?;
        self.inner.models.forget(&record.cid);
        self.inner.own.models_changed();
        Ok(())
    }

    /// A model in detail: name, CID or path.
    pub async fn model_show(&self, model: &str) -> Result<ModelDetail, ModelsError> {
        let card = self.inner.models.card(model).await?;
        let all = self.models().await?;
        let cid = card.model.cid.to_string();
        let summary = all.into_iter().find(|view| view.cid == cid);
        Ok(views::detail(&card, summary, self.inner.kv))
    }

    /// The sessions that run here and the last that ended, newest first.
    pub fn sessions(&self) -> Vec<SessionView> {
        self.inner.sessions.views()
    }

    /// One session.
    pub fn session(&self, id: &str) -> Option<SessionView> {
        let session = id.parse::<SessionId>().ok()?;
        self.inner.sessions.view(session)
    }

    /// An invite to this node's swarm, good for `ttl`.
    pub async fn invite(&self, ttl: Duration) -> Result<String, Failure> {
        let invite = self.inner.network.create_invite(ttl);
        let invite = invite.map_err(|error| {
            let hint = "invites are made on a node that was started with --swarm-key";
            Failure::new(
                ErrorKind::BadRequest,
                "cannot_invite",
                error.to_string(),
                hint,
            )
        })?;
        Ok(invite.to_string())
    }

    /// The swarm's name, and whether it is private.
    pub fn swarm(&self) -> (String, bool) {
        let membership = self.inner.network.membership();
        (membership.name().to_owned(), membership.is_private())
    }

    /// Says whether this node is to take layers of sessions. Those that it has may move to other nodes,
    /// while their answers go on; what it coordinates itself is computed elsewhere as well.
    pub fn set_draining(&self, draining: bool) {
        self.inner.own.set_draining(draining);
    }

    /// Whether it takes none, and how many sessions have layers here still.
    pub fn draining(&self) -> (bool, usize) {
        let shelf = &self.inner.shelf;
        (shelf.is_draining(), shelf.sessions())
    }

    /// This node's id.
    pub fn peer_id(&self) -> String {
        self.inner.network.peer_id().to_string()
    }

    /// Where it listens, with `/p2p/ID`.
    pub fn addrs(&self) -> Vec<String> {
        let addrs = self.inner.network.listen_addrs();
        addrs.iter().map(ToString::to_string).collect()
    }

    /// Tells the swarm where the HTTP API listens.
    pub fn set_api(&self, api: SocketAddr) {
        self.inner.own.set_api(api);
    }

    /// The metrics in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.inner.observe();
        self.inner.telemetry.text()
    }

    /// The registry, for further metrics of the caller.
    pub fn registry(&self) -> &prometheus::Registry {
        self.inner.telemetry.registry()
    }

    /// Whether requests can be taken on; if not, why.
    pub fn ready(&self) -> Result<(), String> {
        if self.inner.stopping.load(Ordering::Relaxed) {
            return Err("the node is shutting down".to_owned());
        }
        let states = self.inner.units.iter().map(|unit| *unit.state.borrow());
        match states
            .into_iter()
            .find(|state| *state != UnitState::Running)
        {
            Some(UnitState::GivenUp) => Err("actors failed too often; restart the node".to_owned()),
            Some(_) => Err("actors are being restarted".to_owned()),
            None => Ok(()),
        }
    }

    /// Takes no more requests and no more layers, lets running sessions end for a moment, hands over to
    /// peers what they can go on with, suspends or cancels the rest, waits for sessions of others to move
    /// away, says goodbye to the swarm and stops.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        if inner.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        let begun = Instant::now();
        inner.admission.close();
        inner.own.set_draining(true);
        inner.wait_for_sessions(GRACE).await;
        inner.sessions.hand_over();
        inner.wait_for_sessions(HAND_OVER).await;
        inner.sessions.shut_down();
        inner.wait_for_sessions(CANCEL).await;
        inner.wait_for_stages(begun + MOVE_AWAY).await;
        let network = inner.network.clone();
        let leaving = inner.io.spawn(async move { network.shutdown().await });
        if leaving.await.is_err() {
            tracing::warn!("the network did not stop in good order");
        }
        for unit in &inner.units {
            let watch = unit
                .watch
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(watch) = watch {
                watch.stop().await;
            }
        }
        inner.actors.stop();
    }
}

impl Inner {
    async fn wait_for_sessions(&self, at_most: Duration) {
        let ended = async {
            while self.sessions.running() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(at_most, ended).await.is_err() {
            tracing::info!("some sessions still run");
        }
    }

    /// Sessions of other nodes that nobody else can take are lost to their coordinators, and fail over.
    async fn wait_for_stages(&self, until: Instant) {
        while self.shelf.sessions() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        match self.shelf.sessions() {
            0 => {}
            stay => tracing::info!(stay, "sessions of other nodes did not move away"),
        }
    }

    fn observe(&self) {
        let restarts = self
            .units
            .iter()
            .map(|unit| unit.restarts.load(Ordering::Relaxed));
        let traffic = self.network.tensor_plane().all_traffic();
        self.telemetry.observe(&Observed {
            sessions: self.sessions.running() as u64,
            kept: self.tenures.live() as u64,
            quarantined: self.placer.quarantine.count() as u64,
            restarts: restarts.sum(),
            peers: self.network.connected().len() as u64,
            memory_used: self.shelf.memory().0,
            tensor_in: traffic
                .iter()
                .map(|(_, traffic)| traffic.received_bytes)
                .sum(),
            tensor_out: traffic.iter().map(|(_, traffic)| traffic.sent_bytes).sum(),
        });
    }
}
