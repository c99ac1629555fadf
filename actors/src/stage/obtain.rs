//! Getting layers of a model onto this node and into memory, for whoever needs them: a session's
//! stage, or one that may be needed soon.

use std::sync::Arc;

use accel_inference::{LayerRange, LoadOptions, load_stage};
use accel_p2p::PeerId;
use accel_p2p::wire::WarmOrder;
use accel_storage::{FetchProgress, FetchReport, Want};
use cid::Cid;

use super::engine::Engine;
use super::ledger::StageKey;
use super::server::StageDeps;
use crate::error::{ErrorKind, Failure};
use crate::models::{Fetched, Header};

/// Layers that are wanted, and where they may be had.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    pub(super) model: Cid,
    pub(super) model_bytes: u64,
    pub(super) layers: LayerRange,
    pub(super) total_layers: u32,
    pub(super) providers: Vec<PeerId>,
}

impl Layers {
    pub(super) fn key(&self) -> StageKey {
        StageKey {
            model: self.model,
            layers: self.layers,
        }
    }

    /// The header of the model, which these layers fit, whatever their sender believes.
    pub(super) async fn header(&self, deps: &StageDeps) -> Result<(Arc<Header>, Fetched), Failure> {
        let header = deps.models.header(&self.model, self.providers.clone());
        let (header, fetched) = header.await.map_err(|error| refusal(&error))?;
        self.check(&header)?;
        Ok((header, fetched))
    }

    fn check(&self, header: &Header) -> Result<(), Failure> {
        let shape = &header.shape;
        if self.total_layers != shape.layers {
            let (ours, theirs) = (shape.layers, self.total_layers);
            return Err(bad_request(format!(
                "the model has {ours} layers, not {theirs}"
            )));
        }
        if header.file_len != self.model_bytes {
            let (ours, theirs) = (header.file_len, self.model_bytes);
            return Err(bad_request(format!(
                "the model has {ours} bytes, not {theirs}"
            )));
        }
        Ok(())
    }

    /// Fetches what the layers need; resumes where an earlier attempt stopped.
    pub(super) async fn fetch(
        &self,
        deps: &StageDeps,
        header: &Header,
        progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<FetchReport, Failure> {
        let ranges = header.shape.byte_ranges(&header.gguf, &self.layers);
        let source = deps.peers.blocks(self.providers.clone());
        let want = Want::Ranges(ranges);
        let fetching = deps
            .store
            .fetch(&self.model, want, source.as_ref(), progress);
        let report = fetching.await.map_err(|error| {
            let hint = "check that a node with the model is connected (`accel peers`)";
            Failure::unavailable("fetch_failed", error.to_string(), hint)
        })?;
        deps.telemetry
            .stages()
            .fetched(report.bytes_fetched, report.blocks_fetched);
        deps.models.keep_record(&self.model, header.file_len).await;
        Ok(report)
    }

    /// Loads the layers, which are here, and gives them a thread.
    pub(super) async fn load(
        &self,
        deps: &StageDeps,
        header: &Header,
    ) -> Result<Arc<Engine>, Failure> {
        let path = deps.store.model_path(&self.model);
        let path = path.map_err(|error| not_loaded(error.to_string()))?;
        let (gguf, layers) = (Arc::clone(&header.gguf), self.layers);
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
            Ok(Err(error)) => return Err(not_loaded(error.to_string())),
            Err(_) => return Err(not_loaded("loading the layers panicked".to_owned())),
        };
        let engine = Engine::spawn(stage, deps.telemetry.clone());
        engine
            .map(Arc::new)
            .map_err(|error| not_loaded(format!("cannot start a thread: {error}")))
    }
}

impl From<WarmOrder> for Layers {
    fn from(order: WarmOrder) -> Self {
        let (first, end) = order.layers;
        Self {
            model: order.model,
            model_bytes: order.model_bytes,
            layers: LayerRange::new(first, end),
            total_layers: order.total_layers,
            providers: order.providers,
        }
    }
}

fn refusal(error: &crate::models::ModelsError) -> Failure {
    Failure::new(error.kind(), error.code(), error.to_string(), error.hint())
}

pub(super) fn bad_request(problem: String) -> Failure {
    let hint = "update accel on all nodes; they disagree about the model";
    Failure::new(ErrorKind::BadRequest, "bad_request", problem, hint)
}

fn not_loaded(reason: String) -> Failure {
    let hint = "the log of the node that loads says more";
    Failure::unavailable("load_failed", reason, hint)
}
