//! Phase one of a placement, off the actor's thread: header, memory, blocks, weights, KV cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use accel_p2p::wire::{ControlReply, HeldWire, Keep, SessionId};
use accel_storage::FetchProgress;
use tokio::sync::mpsc;

use super::ledger::Shortage;
use super::obtain::{Layers, bad_request};
use super::outputs::Outputs;
use super::seat::Cache;
use super::server::StageDeps;
use crate::error::{ErrorKind, Failure, MEMORY_IN_USE};
use crate::models::{Fetched, Header};
use crate::planner::human_bytes;

/// How often the coordinator hears how far it is.
const PROGRESS: Duration = Duration::from_millis(250);

/// What is asked of this node.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// In whose name memory is reserved.
    pub(super) tenant: SessionId,
    pub(super) layers: Layers,
    pub(super) max_tokens: u32,
    pub(super) keep: Keep,
}

/// A stage with a KV cache for the session.
pub(super) struct Prepared {
    pub(super) cache: Cache,
    /// Positions that it holds.
    pub(super) length: u64,
    pub(super) reply: ControlReply,
}

/// How far the fetch is, for the task that tells the coordinator.
#[derive(Default)]
struct Meter {
    done: AtomicU64,
    total: AtomicU64,
}

/// Carries out the order and tells the coordinator how far it is. When the coordinator no longer
/// waits, the work is dropped and what was reserved is given back.
pub(super) async fn run(
    deps: Arc<StageDeps>,
    order: Order,
    replies: mpsc::Sender<ControlReply>,
) -> Result<Prepared, Failure> {
    let meter = Arc::new(Meter::default());
    let started = Instant::now();
    let work = prepare(&deps, &order, Arc::clone(&meter));
    let mut tick = tokio::time::interval(PROGRESS);
    let work = std::pin::pin!(work);
    let result = tokio::select! {
        result = work => result,
        () = async {
            loop {
                tick.tick().await;
                let done = meter.done.load(Ordering::Relaxed);
                let total = meter.total.load(Ordering::Relaxed);
                // A full queue means that the coordinator has news enough.
                let _ = replies.try_send(ControlReply::Progress { done, total });
                if replies.is_closed() {
                    return;
                }
            }
        } => Err(Failure::unavailable("cancelled", "the coordinator no longer waits", "")),
    };
    if result.is_ok() {
        deps.telemetry.stages().prepared(started.elapsed());
    } else {
        deps.shelf.release(order.tenant, &order.layers.key());
    }
    result
}

/// The stage is there, with a KV cache of the session: only how much it holds is asked, once what
/// is under way has come to its end.
pub(super) async fn again(deps: Arc<StageDeps>, cache: Cache) -> Result<Prepared, Failure> {
    let length = cache.engine.hold(cache.seq).await.map_err(not_opened)? as u64;
    Ok(ready(&deps, cache, length, &Fetched::default()))
}

fn ready(deps: &StageDeps, cache: Cache, length: u64, fetched: &Fetched) -> Prepared {
    let engine = &cache.engine;
    let outputs = cache.outputs.as_ref().map_or(0, |outputs| outputs.len());
    let reply = ControlReply::Ready {
        bytes_fetched: fetched.bytes_fetched,
        blocks_fetched: fetched.blocks_fetched,
        weights_bytes: engine.weights_bytes(),
        numerics: engine.numerics().to_owned(),
        held: HeldWire {
            cached: length,
            outputs: outputs.min(length),
            prefill_ns: engine.prefill_ns(),
            plane_bytes_s: deps.peers.plane_bytes_s(),
        },
    };
    Prepared {
        cache,
        length,
        reply,
    }
}

fn not_opened(reason: String) -> Failure {
    Failure::unavailable("load_failed", reason, "send the request again")
}

async fn prepare(
    deps: &Arc<StageDeps>,
    order: &Order,
    meter: Arc<Meter>,
) -> Result<Prepared, Failure> {
    let (header, mut fetched) = order.layers.header(deps).await?;
    check(order, &header)?;

    let key = order.layers.key();
    let weights = header.shape.stage_bytes(&key.layers);
    let kv = header
        .shape
        .kv_bytes_per_token_layer(deps.kv)
        .saturating_mul(u64::from(key.layers.len()))
        .saturating_mul(u64::from(order.max_tokens));
    let cell = deps.shelf.reserve(order.tenant, key, weights, kv);
    let cell = cell.map_err(short_of_memory)?;

    let engine = cell
        .get_or_try_init(|| async {
            let progress = move |now: FetchProgress| {
                meter.done.store(now.done_bytes, Ordering::Relaxed);
                meter.total.store(now.total_bytes, Ordering::Relaxed);
            };
            let report = order.layers.fetch(deps, &header, &progress).await?;
            fetched.blocks_fetched += report.blocks_fetched;
            fetched.bytes_fetched += report.bytes_fetched;
            order.layers.load(deps, &header).await
        })
        .await?;
    let engine = Arc::clone(engine);
    let seq = deps.shelf.next_seq();
    let opened = engine.open(seq, order.max_tokens as usize).await;
    opened.map_err(not_opened)?;
    let cache = Cache {
        engine,
        seq,
        outputs: outputs(deps, order, &header),
        account: None,
    };
    Ok(ready(deps, cache, 0, &fetched))
}

/// Room for the outputs of a stage that has another one behind it, if they are wanted and there is
/// memory that nobody needs.
fn outputs(deps: &StageDeps, order: &Order, header: &Header) -> Option<Arc<Outputs>> {
    let shape = &header.shape;
    if !order.keep.outputs || order.layers.layers.is_last(shape.layers) {
        return None;
    }
    let row_bytes = shape.hidden as usize * size_of::<f32>();
    let limit = u64::from(order.max_tokens);
    let bytes = limit.saturating_mul(row_bytes as u64);
    let fits = deps.shelf.reserve_spare(order.tenant, bytes);
    fits.then(|| Arc::new(Outputs::new(row_bytes, limit)))
}

/// Memory that sessions hold comes free; memory that the node does not give at all never does.
pub(super) fn short_of_memory(shortage: Shortage) -> Failure {
    let (needed, free) = (human_bytes(shortage.needed), human_bytes(shortage.free));
    let message = format!("a node needs {needed} more for the stage and has {free} free");
    if shortage.passing {
        let hint =
            "try again when other sessions have ended, ask for fewer tokens, or raise --memory";
        return Failure::new(ErrorKind::Overloaded, MEMORY_IN_USE, message, hint);
    }
    let hint = "ask for fewer tokens, raise --memory, or join another node";
    Failure::unavailable("insufficient_memory", message, hint)
}

/// The session's context is one that the model has.
fn check(order: &Order, header: &Header) -> Result<(), Failure> {
    let (tokens, context) = (order.max_tokens, header.shape.context);
    if tokens == 0 || tokens > context {
        return Err(bad_request(format!(
            "{tokens} tokens are outside the context of {context}"
        )));
    }
    Ok(())
}
