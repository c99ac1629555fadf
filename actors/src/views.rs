//! What a node shows of itself: plain values for JSON and tables. Layers are inclusive here.

use std::collections::BTreeMap;

use serde::Serialize;

/// A node of the swarm, as this node knows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerView {
    /// Its id.
    pub peer_id: String,
    /// Whether it is this node.
    pub is_self: bool,
    /// Whether a connection is open.
    pub connected: bool,
    /// Where libp2p listens.
    pub addrs: Vec<String>,
    /// Where its HTTP API listens, if it says so.
    pub api: Option<String>,
    /// Version of its software.
    pub version: String,
    /// Cores that its engine may use.
    pub cores: u32,
    /// Instruction set of its kernels.
    pub isa: String,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Memory that it gives to models.
    pub memory_for_models: u64,
    /// Memory for models that is taken.
    pub reserved_bytes: u64,
    /// How long its stages take for a token now, in percent of what they take at best.
    pub toil_percent: u32,
    /// Graphics adapters, as wgpu sees them.
    pub gpus: Vec<GpuView>,
    /// Speed of its engine in GB/s of weights; measured by the peer itself.
    pub measured_gb_s: f32,
    /// Its numerics class.
    pub numerics: String,
    /// The most layers of one model that it takes.
    pub max_layers: Option<u32>,
    /// Whether it takes no more layers.
    pub draining: bool,
    /// Sessions that run on it.
    pub sessions: u32,
    /// What it holds.
    pub models: Vec<OfferView>,
    /// How well it does its part in this node's sessions, from 0 to 100.
    pub health: u8,
    /// Whether this node places sessions on it: `closed` yes, `open` only where nobody else can,
    /// `half_open` a few to see.
    pub breaker: String,
    /// Whether it gets no work from this node because it lied.
    pub quarantined: bool,
    /// How long it takes to answer a small request, once one was made.
    pub ping_ms: Option<Figure>,
    /// Age of its newest advert.
    pub seen_ms_ago: u64,
}

/// A graphics adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuView {
    /// As the driver calls it.
    pub name: String,
    /// Vulkan, Metal, …
    pub backend: String,
    /// Discrete, integrated, cpu, …
    pub kind: String,
}

/// A model that a peer holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OfferView {
    /// Its CID.
    pub cid: String,
    /// Its name.
    pub name: String,
    /// Size of the whole model.
    pub bytes: u64,
    /// How much of it the peer has.
    pub present_bytes: u64,
    /// Whether it has all of it.
    pub complete: bool,
}

/// A number with its origin.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The number.
    pub value: f64,
    /// Where it comes from.
    pub tag: Tag,
}

impl Figure {
    /// A measured number.
    pub fn measured(value: f64) -> Self {
        Self {
            value,
            tag: Tag::Measured,
        }
    }

    /// A predicted number.
    pub fn predicted(value: f64) -> Self {
        Self {
            value,
            tag: Tag::Predicted,
        }
    }
}

/// Where a number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tag {
    /// Somebody measured it.
    Measured,
    /// It was computed from measured numbers.
    Predicted,
}

/// Who would hold what, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanView {
    /// The model's name.
    pub model: String,
    /// Its CID.
    pub cid: String,
    /// Layers of the model.
    pub layers: u32,
    /// Tokens that are planned for.
    pub context: u32,
    /// The numerics class of every stage.
    pub numerics: String,
    /// The stages in the order of their layers.
    pub stages: Vec<PlanStageView>,
    /// Milliseconds per token.
    pub token_ms: Figure,
    /// Why this plan.
    pub why: String,
}

/// One stage of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanStageView {
    /// Who would serve it.
    pub peer_id: String,
    /// Whether that is this node.
    pub is_self: bool,
    /// First layer.
    pub first_layer: u32,
    /// Last layer, inclusive.
    pub last_layer: u32,
    /// Memory that the weights take.
    pub weights_bytes: u64,
    /// Memory that the KV cache takes.
    pub kv_bytes: u64,
    /// The speed it is planned with, in GB/s.
    pub gb_s: Figure,
    /// Milliseconds per token in this stage.
    pub token_ms: Figure,
    /// Why this peer and these layers.
    pub why: String,
}

/// A model that this node knows: kept here, or offered by a peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelView {
    /// Its CID.
    pub cid: String,
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// How much of it is on this node.
    pub present_bytes: u64,
    /// Whether all of it is on this node.
    pub complete: bool,
    /// Whether it is never evicted here.
    pub pinned: bool,
    /// When it was added here, in seconds since 1970; absent for models of peers.
    pub added_unix: Option<u64>,
    /// How many peers offer it, besides this node.
    pub peers: usize,
}

/// A model in detail.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelDetail {
    /// What the list shows of it.
    #[serde(flatten)]
    pub summary: ModelView,
    /// `general.architecture`.
    pub architecture: String,
    /// What people call the quantisation.
    pub quantisation: String,
    /// Layers.
    pub layers: u32,
    /// Width of the activations.
    pub hidden: u32,
    /// Number of tokens.
    pub vocab: u32,
    /// Longest sequence.
    pub context: u32,
    /// Memory that all weights take once loaded.
    pub weights_bytes: u64,
    /// Memory that one token takes in the KV caches of all layers.
    pub kv_bytes_per_token: u64,
    /// Whether it has a chat template.
    pub chat_template: bool,
}

/// A session of this node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionView {
    /// Its id.
    pub id: String,
    /// `placing`, `prefill`, `decoding`, `recovering`, `suspended`, `moved`, `done`, `failed` or
    /// `cancelled`.
    pub state: String,
    /// The model's name.
    pub model: String,
    /// The model's CID.
    pub cid: String,
    /// The newest plan.
    pub epoch: u64,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Tokens emitted so far.
    pub tokens: u64,
    /// Who computes which layers.
    pub route: Vec<RouteView>,
    /// How much it survives: `none`, `low`, `medium` or `high`.
    pub fault_tolerance: &'static str,
    /// The other peers that keep its journal.
    pub replicas: Vec<ReplicaView>,
    /// How often it went on after a fault.
    pub recoveries: u64,
    /// The newest of these.
    pub recovery_log: Vec<RecoveryView>,
    /// Its newest planned moves to other peers.
    pub moves: Vec<MoveView>,
    /// Bytes that all stages fetched from peers for this session.
    pub bytes_fetched: u64,
    /// Milliseconds that the placement took: fetch, load and commit.
    pub prepare_ms: Option<Figure>,
    /// Milliseconds from the placement to the first token.
    pub first_token_ms: Option<Figure>,
    /// Tokens per second after the first.
    pub tokens_per_s: Option<Figure>,
    /// Why it failed.
    pub error: Option<SessionErrorView>,
}

/// A planned move of a session to other peers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MoveView {
    /// `draining`: a peer of the route wants to leave; `faster`: another route is.
    pub why: &'static str,
    /// Tokens before it.
    pub after_tokens: u64,
    /// Milliseconds for which the new peers got ready, while the answer went on.
    pub ready_ms: Figure,
    /// Milliseconds between the last token before the move and the first one after it.
    pub gap_ms: Option<Figure>,
}

/// A peer that keeps the journal of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicaView {
    /// Who it is.
    pub peer_id: String,
    /// Where its HTTP API listens, if it says so: a client may come back there.
    pub api: Option<String>,
}

/// One stage of a session's route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteView {
    /// Who computes it.
    pub peer_id: String,
    /// First layer.
    pub first_layer: u32,
    /// Last layer, inclusive.
    pub last_layer: u32,
    /// Bytes that this peer fetched from others for it.
    pub bytes_fetched: u64,
    /// Blocks that this peer fetched from others for it.
    pub blocks_fetched: u64,
}

/// How a session went on after a fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecoveryView {
    /// `peer_lost`, `step_failed`, `step_timeout`, `placement_failed` or `interrupted`.
    pub fault: String,
    /// The fault in words.
    pub reason: String,
    /// The strategy that decided, or to which the route belongs that was the cheaper one.
    pub strategy: String,
    /// `resume`, `restart`, `race`, `fail_over` or `replan`.
    pub remedy: String,
    /// Tokens of the answer that were there already.
    pub after_tokens: u64,
    /// Positions that stages had been given and some compute again.
    pub tokens_replayed: u64,
    /// How stages got KV caches back that they lacked: `keep`, `replay`, `copy` or `prefill`; absent until
    /// that is decided, and where the same stages went on.
    pub rebuild: Option<&'static str>,
    /// What the rest of the answer was priced at over a route that keeps what is loaded (`fail_over`) and
    /// over the best one (`replan`); empty where they were not weighed.
    pub route_prices_ms: BTreeMap<&'static str, Figure>,
    /// What was expected to be lost, behind a step that was not answered in time, by only asking again
    /// (`resume`: the wait in vain) and by having stand-ins get ready meanwhile (`race`: their work); empty where
    /// nobody could stand in.
    pub timeout_prices_ms: BTreeMap<&'static str, Figure>,
    /// What each way was priced at that was possible: milliseconds until the next token.
    pub prices_ms: BTreeMap<&'static str, Figure>,
    /// Milliseconds from the last token, or from the fault before, until this one was noticed.
    pub detect_ms: Option<Figure>,
    /// Milliseconds from there until stages were ready: planned, fetched, loaded, committed.
    pub place_ms: Option<Figure>,
    /// Milliseconds from there to the next token: KV caches are rebuilt.
    pub rebuild_ms: Option<Figure>,
    /// Milliseconds from the last token before the fault to the first after it; absent while that
    /// has not come, and where another recovery followed.
    pub stall_ms: Option<Figure>,
}

/// Why a session failed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionErrorView {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl SessionView {
    /// The route as `x-accel-route` has it: `12D3…:0-9,12D3…:10-19`.
    pub fn route_header(&self) -> String {
        let hops: Vec<String> = self
            .route
            .iter()
            .map(|hop| format!("{}:{}-{}", hop.peer_id, hop.first_layer, hop.last_layer))
            .collect();
        hops.join(",")
    }

    /// Who keeps the journal, as `x-accel-replicas` has it: `12D3…=127.0.0.1:8421,12D3…`.
    pub fn replicas_header(&self) -> String {
        let replica = |replica: &ReplicaView| match &replica.api {
            Some(api) => format!("{}={api}", replica.peer_id),
            None => replica.peer_id.clone(),
        };
        let replicas: Vec<String> = self.replicas.iter().map(replica).collect();
        replicas.join(",")
    }
}

/// A piece of evidence that a peer lied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvidenceView {
    /// Names it.
    pub id: String,
    /// Who lied.
    pub peer_id: String,
    /// What was computed.
    pub model: String,
    /// The first layer that the peer computed.
    pub first_layer: u32,
    /// The last one.
    pub last_layer: u32,
    /// Positions that are to be computed again.
    pub tokens: usize,
    /// When it was found out.
    pub found_unix_ms: u64,
    /// Whether the peer gets no work from this node.
    pub quarantined: bool,
}

/// What came of checking evidence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckView {
    /// Names the evidence.
    pub id: String,
    /// Who is said to have lied.
    pub peer_id: String,
    /// `confirmed`, `refuted`, or `not_proven` where the peer was given something else already.
    pub verdict: String,
    /// Whether the peer gets no work from this node.
    pub quarantined: bool,
}
