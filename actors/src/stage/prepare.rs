//! Phase one of a placement, off the actor's thread: header, memory, blocks, weights, KV cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use accel_inference::{LayerRange, LoadOptions, SeqId, load_stage};
use accel_p2p::PeerId;
use accel_p2p::wire::{ControlReply, SessionId};
use accel_storage::{FetchProgress, FetchReport, Want};
use cid::Cid;
use tokio::sync::mpsc;

use super::engine::Engine;
use super::ledger::{Shortage, StageKey};
use super::server::StageDeps;
use crate::error::{ErrorKind, Failure, MEMORY_IN_USE};
use crate::models::Header;
use crate::planner::human_bytes;

/// How often the coordinator hears how far it is.
const PROGRESS: Duration = Duration::from_millis(250);

/// What is asked of this node.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) session: SessionId,
    pub(super) model: Cid,
    pub(super) model_bytes: u64,
    pub(super) layers: LayerRange,
    pub(super) total_layers: u32,
    pub(super) max_tokens: u32,
    pub(super) providers: Vec<PeerId>,
}

/// A stage with a KV cache for the session.
pub(super) struct Prepared {
    pub(super) engine: Arc<Engine>,
    pub(super) seq: SeqId,
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
        deps.telemetry.prepared(started.elapsed());
    } else {
        let key = StageKey {
            model: order.model,
            layers: order.layers,
        };
        deps.shelf.release(order.session, &key);
    }
    result
}

async fn prepare(
    deps: &Arc<StageDeps>,
    order: &Order,
    meter: Arc<Meter>,
) -> Result<Prepared, Failure> {
    let (header, mut fetched) = deps
        .models
        .header(&order.model, order.providers.clone())
        .await
        .map_err(|error| refusal(&error))?;
    check(order, &header)?;

    let key = StageKey {
        model: order.model,
        layers: order.layers,
    };
    let weights = header.shape.stage_bytes(&order.layers);
    let kv = header
        .shape
        .kv_bytes_per_token_layer(deps.kv)
        .saturating_mul(u64::from(order.layers.len()))
        .saturating_mul(u64::from(order.max_tokens));
    let cell = deps.shelf.reserve(order.session, key, weights, kv);
    let cell = cell.map_err(short_of_memory)?;

    let engine = cell
        .get_or_try_init(|| async {
            let report = fetch(deps, order, &header, meter).await?;
            fetched.blocks_fetched += report.blocks_fetched;
            fetched.bytes_fetched += report.bytes_fetched;
            load(deps, order, &header).await
        })
        .await?;
    let engine = Arc::clone(engine);
    let seq = deps.shelf.next_seq();
    let opened = engine.open(seq, order.max_tokens as usize).await;
    opened
        .map_err(|reason| Failure::unavailable("load_failed", reason, "send the request again"))?;
    let reply = ControlReply::Ready {
        bytes_fetched: fetched.bytes_fetched,
        blocks_fetched: fetched.blocks_fetched,
        weights_bytes: engine.weights_bytes(),
        numerics: engine.numerics().to_owned(),
    };
    Ok(Prepared { engine, seq, reply })
}

/// Memory that sessions hold comes free; memory that the node does not give at all never does.
fn short_of_memory(shortage: Shortage) -> Failure {
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

fn refusal(error: &crate::models::ModelsError) -> Failure {
    Failure::new(error.kind(), error.code(), error.to_string(), error.hint())
}

/// The order fits the model, whatever its sender believes.
fn check(order: &Order, header: &Header) -> Result<(), Failure> {
    let shape = &header.shape;
    let problem = if order.total_layers != shape.layers {
        format!(
            "the model has {} layers, not {}",
            shape.layers, order.total_layers
        )
    } else if header.file_len != order.model_bytes {
        format!(
            "the model has {} bytes, not {}",
            header.file_len, order.model_bytes
        )
    } else if order.max_tokens == 0 || order.max_tokens > shape.context {
        format!(
            "{} tokens are outside the context of {}",
            order.max_tokens, shape.context
        )
    } else {
        return Ok(());
    };
    let hint = "update accel on all nodes; they disagree about the model";
    Err(Failure::new(
        ErrorKind::BadRequest,
        "bad_request",
        problem,
        hint,
    ))
}

/// Fetches what the layers need; resumes where an earlier attempt stopped.
async fn fetch(
    deps: &Arc<StageDeps>,
    order: &Order,
    header: &Header,
    meter: Arc<Meter>,
) -> Result<FetchReport, Failure> {
    let ranges = header.shape.byte_ranges(&header.gguf, &order.layers);
    let source = deps.peers.blocks(order.providers.clone());
    let progress = move |now: FetchProgress| {
        meter.done.store(now.done_bytes, Ordering::Relaxed);
        meter.total.store(now.total_bytes, Ordering::Relaxed);
    };
    let report = deps
        .store
        .fetch(
            &order.model,
            Want::Ranges(ranges),
            source.as_ref(),
            &progress,
        )
        .await
        .map_err(|error| {
            let hint = "check that a node with the model is connected (`accel peers`)";
            Failure::unavailable("fetch_failed", error.to_string(), hint)
        })?;
    deps.telemetry
        .fetched(report.bytes_fetched, report.blocks_fetched);
    deps.models.keep_record(&order.model, header.file_len).await;
    Ok(report)
}

async fn load(
    deps: &Arc<StageDeps>,
    order: &Order,
    header: &Header,
) -> Result<Arc<Engine>, Failure> {
    let failed = |reason: String| {
        Failure::unavailable(
            "load_failed",
            reason,
            "the log of the node that loads says more",
        )
    };
    let path = deps
        .store
        .model_path(&order.model)
        .map_err(|error| failed(error.to_string()))?;
    let (gguf, layers) = (Arc::clone(&header.gguf), order.layers);
    let options = LoadOptions {
        threads: deps.threads,
        kv: deps.kv,
        // A second line of defence: what is reserved for sessions stays below it.
        kv_bytes: Some(deps.shelf.limit()),
        ..LoadOptions::default()
    };
    let leave = deps.shelf.leave_to_load().await;
    let loading = tokio::task::spawn_blocking(move || {
        let _leave = leave;
        load_stage(&path, &gguf, layers, &options)
    });
    let stage = match loading.await {
        Ok(Ok(stage)) => stage,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed("loading the layers panicked".to_owned())),
    };
    let engine = Engine::spawn(stage, deps.telemetry.clone());
    engine
        .map(Arc::new)
        .map_err(|error| failed(format!("cannot start a thread: {error}")))
}
