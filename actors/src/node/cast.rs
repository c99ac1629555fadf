//! The actors of a node and how they are wired, on the arbiter where they live. Directory and
//! router restart as one: a router with a fresh directory would refuse what the old one knew how
//! to place.

use std::sync::Arc;
use std::time::Duration;

use accel_p2p::{Keypair, Network, NetworkEvent};
use accel_storage::{Journal, Store};
use actix::Actor;
use tokio::sync::mpsc;

use crate::config::NodeConfig;
use crate::directory::Directory;
use crate::events::Pump;
use crate::health::Health;
use crate::models::Models;
use crate::own::Own;
use crate::peers::{NetworkPeers, Peers};
use crate::placement::Placer;
use crate::quarantine::Quarantine;
use crate::replica::NetworkReplicas;
use crate::replica::keeper::Keeper;
use crate::replica::tenure::Tenures;
use crate::router::{Admission, Router, RouterDeps};
use crate::session::actor::SessionDeps;
use crate::session::bench::audit::Audits;
use crate::session::link::Link;
use crate::session::rebuild;
use crate::session::stand_ins::StandIns;
use crate::session::table::SessionTable;
use crate::stage::{Shelf, StageDeps, StageServer};
use crate::supervisor::{ActorRef, RestartPolicy, Unit, UnitWatch};
use crate::suspended::Suspended;
use crate::telemetry::Telemetry;

/// Closed sessions that the journal keeps.
const JOURNAL_KEEPS: usize = 1000;
/// How often older ones are forgotten.
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// What comes back from the arbiter on which the actors live.
pub(super) struct Raised {
    pub(super) units: Vec<UnitWatch>,
    pub(super) directory: ActorRef<Directory>,
    pub(super) router: ActorRef<Router>,
    pub(super) models: Arc<Models>,
    pub(super) placer: Placer,
    pub(super) stage_deps: Arc<StageDeps>,
}

/// What the actors share with the handle.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) own: Arc<Own>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) sessions: Arc<SessionTable>,
    pub(super) admission: Arc<Admission>,
    pub(super) telemetry: Telemetry,
    pub(super) health: Arc<Health>,
    pub(super) tenures: Arc<Tenures>,
    pub(super) quarantine: Arc<Quarantine>,
}

/// What the actors are made of.
pub(super) struct Cast {
    pub(super) config: NodeConfig,
    pub(super) identity: Keypair,
    pub(super) network: Network,
    pub(super) store: Store,
    pub(super) shared: Shared,
}

impl Cast {
    /// Starts the actors and what feeds them.
    pub(super) fn raise(self, events: mpsc::Receiver<NetworkEvent>) -> Raised {
        let limits = &self.config.limits;
        let peers: Arc<dyn Peers> = NetworkPeers::new(self.network.clone(), limits.block_timeout);
        let mut front = Unit::new("front", RestartPolicy::default());
        let mut stages = Unit::new("stages", RestartPolicy::default());

        let directory = self.directory(&mut front);
        let models = Arc::new(Models::new(
            self.store.clone(),
            Arc::clone(&peers),
            directory.clone(),
            limits.header_timeout,
            self.shared.telemetry.clone(),
        ));
        let stage_deps = self.stage_deps(&models, &peers);
        let stage = {
            let deps = Arc::clone(&stage_deps);
            stages.member("stage server", move || {
                StageServer::new(Arc::clone(&deps)).start()
            })
        };
        let placer = Placer {
            directory: directory.clone(),
            health: Arc::clone(&self.shared.health),
            quarantine: Arc::clone(&self.shared.quarantine),
        };
        let link = Link {
            peers,
            stage: stage.clone(),
        };
        let stand_ins = self.config.warm_stand_ins.then(Arc::<StandIns>::default);
        let router = self.router(&mut front, &models, &placer, link, stand_ins.clone());

        let units = vec![front.start(), stages.start()];
        let pump = Pump {
            directory: directory.clone(),
            stage,
            sessions: Arc::clone(&self.shared.sessions),
            stand_ins,
            health: Arc::clone(&self.shared.health),
            keeper: self.keeper(),
            telemetry: self.shared.telemetry.clone(),
        };
        actix::spawn(pump.run(events));
        actix::spawn(keep_pruning(self.store.journal()));
        let suspended = Suspended {
            journal: self.store.journal(),
            table: Arc::clone(&self.shared.sessions),
            tenures: Arc::clone(&self.shared.tenures),
            window: limits.resume_window,
        };
        actix::spawn(suspended.keep_closing());
        let telling = Arc::clone(&self.shared.own);
        actix::spawn(telling.keep_telling(directory.clone(), limits.advert_ttl / 3));
        Raised {
            units,
            directory,
            router,
            models,
            placer,
            stage_deps,
        }
    }

    fn keeper(&self) -> Arc<Keeper> {
        Keeper::new(
            self.store.journal(),
            Arc::clone(&self.shared.sessions),
            Arc::clone(&self.shared.tenures),
        )
    }

    fn directory(&self, unit: &mut Unit) -> ActorRef<Directory> {
        let (network, own) = (self.network.clone(), Arc::clone(&self.shared.own));
        unit.member("directory", move || {
            let body = Arc::new(own.body());
            Directory::new((network.peer_id(), body), network.connected_lives()).start()
        })
    }

    fn stage_deps(&self, models: &Arc<Models>, peers: &Arc<dyn Peers>) -> Arc<StageDeps> {
        Arc::new(StageDeps {
            store: self.store.clone(),
            models: Arc::clone(models),
            peers: Arc::clone(peers),
            shelf: Arc::clone(&self.shared.shelf),
            sessions: Arc::clone(&self.shared.sessions),
            max_layers: self.config.max_layers,
            threads: self.config.threads,
            warm_stand_ins: self.config.warm_stand_ins,
            kv: self.config.kv,
            identity: self.identity.clone(),
            telemetry: self.shared.telemetry.clone(),
        })
    }

    fn router(
        &self,
        unit: &mut Unit,
        models: &Arc<Models>,
        placer: &Placer,
        link: Link,
        stand_ins: Option<Arc<StandIns>>,
    ) -> ActorRef<Router> {
        let session = SessionDeps {
            rebuild: rebuild::asked_for(),
            link,
            replicas: NetworkReplicas::new(self.network.clone()),
            journal: self.store.journal(),
            placer: placer.clone(),
            table: Arc::clone(&self.shared.sessions),
            limits: self.config.limits.clone(),
            fault_tolerance: self.config.fault_tolerance,
            telemetry: self.shared.telemetry.clone(),
            audits: Audits::new(self.config.audit_share),
            stand_ins,
        };
        let deps = Arc::new(RouterDeps {
            models: Arc::clone(models),
            session: Arc::new(session),
            telemetry: self.shared.telemetry.clone(),
        });
        unit.member("router", move || Router::new(Arc::clone(&deps)).start())
    }
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
