//! The settings of a node, as the actor system needs them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use accel_inference::KvFormat;

use crate::health::BreakerLimits;
use crate::tolerance::FaultTolerance;

/// Of a hundred sessions, how many are audited unless it is said: it costs as much again.
pub const DEFAULT_AUDIT_SHARE: u32 = 1;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Identity, blocks, catalogue and journal.
    pub data_dir: PathBuf,
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Multiaddresses of nodes and invites to join by.
    pub join: Vec<String>,
    /// Public swarm to belong to; absent with no key either means the one that the data directory
    /// remembers, else the public default.
    pub swarm: Option<String>,
    /// Key file of a private swarm.
    pub swarm_key: Option<PathBuf>,
    /// Where the HTTP API listens, for the adverts; tell it later with
    /// [`crate::NodeHandle::set_api`] when the port is not known yet.
    pub api: Option<SocketAddr>,
    /// Threads that compute; one per core when absent.
    pub threads: Option<usize>,
    /// How the KV caches are kept. Nodes that differ in it share no session.
    pub kv: KvFormat,
    /// Memory that models may take; a share of the machine's when absent.
    pub memory_limit: Option<u64>,
    /// The most layers of one model that this node takes.
    pub max_layers: Option<u32>,
    /// How much a request survives that does not say so itself.
    pub fault_tolerance: FaultTolerance,
    /// Whether stages are made ready for the loss of a peer: here for others, and elsewhere for
    /// the sessions of this node.
    pub warm_stand_ins: bool,
    /// Of a hundred sessions of this node, how many others compute again to see whether a peer lied.
    pub audit_share: u32,
    /// Bounds and times.
    pub limits: Limits,
}

impl NodeConfig {
    /// A node on `data_dir` that listens on a free port of the loopback interface.
    pub fn loopback(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: vec!["/ip4/127.0.0.1/tcp/0".into()],
            join: Vec::new(),
            swarm: None,
            swarm_key: None,
            api: None,
            threads: None,
            kv: KvFormat::default(),
            memory_limit: None,
            max_layers: None,
            fault_tolerance: FaultTolerance::default(),
            warm_stand_ins: true,
            audit_share: DEFAULT_AUDIT_SHARE,
            limits: Limits::default(),
        }
    }
}

/// What bounds a node's work.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sessions that run at once.
    pub max_sessions: usize,
    /// Requests that wait for one of them to end.
    pub max_waiting: usize,
    /// How long a session waits for memory that other sessions hold.
    pub memory_wait: Duration,
    /// How long a session that lost a peer waits for one that can take over.
    pub peer_wait: Duration,
    /// How long an advert is believed.
    pub advert_ttl: Duration,
    /// How long the header of a model may take to arrive.
    pub header_timeout: Duration,
    /// How long one block may take from one provider.
    pub block_timeout: Duration,
    /// How long a reservation lives without a sign of life of its coordinator.
    pub lease: Duration,
    /// How long a peer may be silent while it prepares a stage.
    pub prepare_silence: Duration,
    /// How long committing may take.
    pub commit_timeout: Duration,
    /// How long a decode step may take beyond what is predicted.
    pub step_timeout: Duration,
    /// How long a client may leave an answer unread.
    pub client_timeout: Duration,
    /// How long a session that was interrupted waits for its client, and one that ended stays
    /// readable.
    pub resume_window: Duration,
    /// When peers that fail are left alone, and for how long.
    pub breaker: BreakerLimits,
    /// How many ended sessions stay visible.
    pub sessions_kept: usize,
    /// The longest context that is reserved for a request without `max_tokens`.
    pub default_answer: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_sessions: 8,
            max_waiting: 32,
            memory_wait: Duration::from_secs(30),
            peer_wait: Duration::from_secs(30),
            advert_ttl: Duration::from_secs(15),
            header_timeout: Duration::from_secs(30),
            block_timeout: Duration::from_secs(5),
            lease: Duration::from_secs(15),
            prepare_silence: Duration::from_secs(30),
            commit_timeout: Duration::from_secs(10),
            step_timeout: Duration::from_secs(10),
            client_timeout: Duration::from_secs(120),
            resume_window: Duration::from_secs(600),
            breaker: BreakerLimits::default(),
            sessions_kept: 256,
            default_answer: 4096,
        }
    }
}
