//! A running node: the way in for the binary, the HTTP API and tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::NodeConfig;
use crate::error::{Failure, GenerateError, StartError};
use crate::models::ModelsError;
use crate::request::{GenerateRequest, Generation};
use crate::views::{ModelDetail, ModelView, PeerView, PlanView, SessionView};

/// A running node. Clones lead to the same node.
#[derive(Clone)]
pub struct NodeHandle {}

/// Told with bytes done and bytes in all.
pub type Progress = std::sync::Arc<dyn Fn(u64, u64) + Send + Sync>;

impl NodeHandle {
    /// Starts a node. Must run within an actix system.
    pub async fn start(_config: NodeConfig) -> Result<Self, StartError> {
        unimplemented!()
    }
    /// Takes on a request.
    pub async fn generate(&self, _request: GenerateRequest) -> Result<Generation, GenerateError> {
        unimplemented!()
    }
    /// The nodes of the swarm, this one first.
    pub async fn peers(&self) -> Result<Vec<PeerView>, Failure> {
        unimplemented!()
    }
    /// Who would hold what, for `tokens` tokens of context.
    pub async fn plan(
        &self,
        _model: &str,
        _tokens: Option<u32>,
    ) -> Result<PlanView, GenerateError> {
        unimplemented!()
    }
    /// The models of this node and of its peers.
    pub async fn models(&self) -> Result<Vec<ModelView>, ModelsError> {
        unimplemented!()
    }
    /// Adds a GGUF file to the store; its name is the file's unless given.
    pub async fn model_add(
        &self,
        _path: PathBuf,
        _name: Option<String>,
        _progress: Progress,
    ) -> Result<ModelView, ModelsError> {
        unimplemented!()
    }
    /// A model in detail: name, CID or path.
    pub async fn model_show(&self, _model: &str) -> Result<ModelDetail, ModelsError> {
        unimplemented!()
    }
    /// The sessions that run here and the last that ended, newest first.
    pub fn sessions(&self) -> Vec<SessionView> {
        unimplemented!()
    }
    /// One session.
    pub fn session(&self, _id: &str) -> Option<SessionView> {
        unimplemented!()
    }
    /// An invite to this node's swarm, good for `ttl`.
    pub async fn invite(&self, _ttl: Duration) -> Result<String, Failure> {
        unimplemented!()
    }
    /// The swarm's name, and whether it is private.
    pub fn swarm(&self) -> (String, bool) {
        unimplemented!()
    }
    /// This node's id.
    pub fn peer_id(&self) -> String {
        unimplemented!()
    }
    /// Where it listens, with `/p2p/ID`.
    pub fn addrs(&self) -> Vec<String> {
        unimplemented!()
    }
    /// Tells the swarm where the HTTP API listens.
    pub fn set_api(&self, _api: SocketAddr) {
        unimplemented!()
    }
    /// The metrics in Prometheus' text format.
    pub fn metrics(&self) -> String {
        unimplemented!()
    }
    /// The registry, for further metrics of the caller.
    pub fn registry(&self) -> &prometheus::Registry {
        unimplemented!()
    }
    /// Whether requests can be taken on; if not, why.
    pub fn ready(&self) -> Result<(), String> {
        unimplemented!()
    }
    /// Ends running sessions, says goodbye to the swarm and stops.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
