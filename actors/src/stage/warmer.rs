//! Layers that this node may have to compute soon, because another peer may be lost: they are
//! fetched ahead of time, and loaded where there is memory that nobody uses. One order is carried
//! out at a time, in the background. What comes of it is a cache: nothing is reserved, a session
//! that needs the memory gets it, and an order that fails is only counted and logged.

use std::sync::Arc;

use accel_p2p::wire::WarmOrder;
use tokio::sync::mpsc;

use super::obtain::Layers;
use super::server::StageDeps;
use crate::error::Failure;

/// Orders that may wait; whoever asks for more has to do without.
const QUEUE: usize = 16;

/// What became of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Warmed {
    /// The layers are in memory.
    Loaded,
    /// They are on disk; there was no memory to spare.
    Fetched,
}

impl Warmed {
    fn name(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Fetched => "fetched",
        }
    }
}

/// See the module.
pub(super) struct Warmer {
    orders: mpsc::Sender<Layers>,
    deps: Arc<StageDeps>,
}

impl Warmer {
    /// Starts the task that carries orders out; it ends when this is dropped.
    pub(super) fn start(deps: &Arc<StageDeps>) -> Self {
        let (orders, waiting) = mpsc::channel(QUEUE);
        actix::spawn(carry_out(Arc::clone(deps), waiting));
        Self {
            orders,
            deps: Arc::clone(deps),
        }
    }

    /// Takes an order; it is carried out later, or refused now.
    pub(super) fn take(&self, order: WarmOrder) -> Result<(), Failure> {
        if !self.deps.warm_stand_ins {
            return Err(refused("warming_off", "this node warms no stages"));
        }
        if self.deps.shelf.is_draining() {
            return Err(refused("draining", "this node takes no more layers"));
        }
        let layers = Layers::from(order);
        let most = self.deps.max_layers;
        if most.is_some_and(|most| layers.layers.len() > most) {
            return Err(refused("layer_limits", "this node takes fewer layers"));
        }
        let taken = self.orders.try_send(layers);
        taken.map_err(|_| refused("busy", "this node has enough to warm"))
    }
}

fn refused(code: &str, message: &str) -> Failure {
    Failure::unavailable(code, message, "nothing is to be done: it is a help at most")
}

async fn carry_out(deps: Arc<StageDeps>, mut orders: mpsc::Receiver<Layers>) {
    while let Some(order) = orders.recv().await {
        let (model, layers) = (order.model, order.layers);
        match warm(&deps, &order).await {
            Ok(warmed) => {
                let result = warmed.name();
                tracing::info!(%model, %layers, result, "layers are ready for a session that may need them");
                deps.telemetry.stages().warmed(result);
            }
            Err(failure) => {
                tracing::info!(%model, %layers, %failure, "layers could not be made ready");
                deps.telemetry.stages().warmed("failed");
            }
        }
    }
}

async fn warm(deps: &StageDeps, order: &Layers) -> Result<Warmed, Failure> {
    let (header, _) = order.header(deps).await?;
    let key = order.key();
    let weights = header.shape.stage_bytes(&order.layers);
    if !deps.shelf.has(&key) {
        order.fetch(deps, &header, &|_| {}).await?;
    }
    let Some(cell) = deps.shelf.spare(key, weights) else {
        return Ok(Warmed::Fetched);
    };
    let loaded = cell.get_or_try_init(|| order.load(deps, &header)).await;
    if let Err(failure) = loaded {
        deps.shelf.forget(&key);
        return Err(failure);
    }
    Ok(Warmed::Loaded)
}
