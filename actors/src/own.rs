//! What this node says of itself: hardware and measured speed from the start, models and load as
//! they are when the advert is renewed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use accel_inference::hardware::{Hardware, Measured};
use accel_p2p::wire::limit;
use accel_p2p::{AdvertBody, GpuAdvert, HardwareAdvert, LoadAdvert, ModelOffer, Network};
use accel_storage::{ModelRecord, Store};
use tokio::sync::Notify;

use crate::config::NodeConfig;
use crate::directory::{Directory, Heard, tell};
use crate::router::Admission;
use crate::stage::Shelf;
use crate::supervisor::ActorRef;

/// Share of the free memory that models may take unless told otherwise, in percent.
const MEMORY_SHARE: u64 = 80;

/// Memory that a node gives to models.
pub(crate) fn memory_for_models(config: &NodeConfig, hardware: &Hardware) -> u64 {
    let share = hardware.memory_available_bytes / 100 * MEMORY_SHARE;
    config.memory_limit.unwrap_or(share)
}

/// What the advert is made of.
pub(crate) struct Own {
    pub(crate) network: Network,
    pub(crate) store: Store,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) admission: Arc<Admission>,
    /// Wakes the renewal before its time.
    changed: Notify,
    body: Mutex<AdvertBody>,
}

impl Own {
    pub(crate) fn new(
        network: Network,
        store: Store,
        shelf: Arc<Shelf>,
        admission: Arc<Admission>,
        body: AdvertBody,
    ) -> Self {
        Self {
            network,
            store,
            shelf,
            admission,
            changed: Notify::new(),
            body: Mutex::new(body),
        }
    }

    /// The advert as of now.
    pub(crate) fn body(&self) -> AdvertBody {
        let mut body = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        body.addrs = self.network.listen_addrs();
        body.tensor_addrs = self.network.tensor_addrs();
        body.models = self.offers();
        body.draining = self.shelf.is_draining();
        body.load = LoadAdvert {
            sessions: self.shelf.sessions() as u32,
            queued: self.admission.waiting() as u32,
            reserved_bytes: self.shelf.memory().1,
            toil_percent: self.shelf.toil(),
        };
        body.clone()
    }

    fn offers(&self) -> Vec<ModelOffer> {
        let records = self.store.models().unwrap_or_else(|error| {
            tracing::warn!(%error, "the catalogue cannot be read");
            Vec::new()
        });
        let present = records
            .into_iter()
            .filter(|record| record.present_bytes > 0);
        present.take(limit::MODELS).map(offer).collect()
    }

    /// Says where the HTTP API listens.
    pub(crate) fn set_api(&self, api: SocketAddr) {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).api = Some(api);
        self.changed.notify_one();
    }

    /// Says whether this node takes layers of more sessions; those that it has may move away.
    pub(crate) fn set_draining(&self, draining: bool) {
        self.shelf.set_draining(draining);
        self.changed.notify_one();
    }

    /// The catalogue has changed: the swarm should know at once.
    pub(crate) fn models_changed(&self) {
        self.changed.notify_one();
    }

    /// Tells swarm and directory, now and whenever something changes or time has passed.
    pub(crate) async fn keep_telling(
        self: Arc<Self>,
        directory: ActorRef<Directory>,
        every: std::time::Duration,
    ) {
        loop {
            let body = self.body();
            self.network.set_advert(body.clone());
            let heard = Heard::Own(self.network.peer_id(), Arc::new(body));
            tell(&directory, heard).await;
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(every) => {}
            }
        }
    }
}

/// What never changes of an advert.
pub(crate) fn fixed_body(
    config: &NodeConfig,
    hardware: Hardware,
    measured: &Measured,
) -> AdvertBody {
    let memory_for_models = memory_for_models(config, &hardware);
    let gpus = hardware
        .gpus
        .into_iter()
        .take(limit::GPUS)
        .map(|gpu| GpuAdvert {
            name: accel_p2p::wire::clip(&gpu.name, limit::NAME),
            backend: gpu.backend,
            kind: format!("{:?}", gpu.kind).to_lowercase(),
        });
    AdvertBody {
        addrs: Vec::new(),
        tensor_addrs: Vec::new(),
        api: config.api,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hardware: HardwareAdvert {
            cores: config.threads.unwrap_or(hardware.cores) as u32,
            isa: hardware.isa,
            memory_bytes: hardware.memory_bytes,
            memory_for_models,
            gpus: gpus.collect(),
        },
        measured_gb_s: measured.matvec_gb_s,
        numerics: config.kv.numerics().to_owned(),
        max_layers: config.max_layers,
        draining: false,
        load: LoadAdvert::default(),
        models: Vec::new(),
        membership: None,
    }
}

fn offer(record: ModelRecord) -> ModelOffer {
    ModelOffer {
        cid: record.cid,
        name: accel_p2p::wire::clip(&record.name, limit::NAME),
        bytes: record.bytes,
        complete: record.complete(),
        present_bytes: record.present_bytes,
    }
}
