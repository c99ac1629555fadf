//! The actor system of a node: it joins network, storage and engine, and nothing else does.
//!
//! The data path of a request (see `docs/` for the bytes that cross each hop):
//!
//! ```text
//! HTTP → NodeHandle::generate → Router (admission) → Models (header card) → Directory (snapshot)
//!      → plan (pure) → Session machine (pure) ⇄ Session actor ⇄ StageServers of the route
//!      → journal, then emit → Generation::events
//! ```
//!
//! | Module | Is | Holds |
//! |---|---|---|
//! | [`node`] | the way in | [`NodeHandle`]: starts everything, answers the API, shuts down |
//! | `router` | actor | admission: how many sessions run and wait; starts them |
//! | `resume` | | a client comes back for the rest of its answer |
//! | `suspended` | | sessions that wait for their clients, until they are closed |
//! | `directory` | actor | what the peers say of themselves, until it expires |
//! | `health` | | how well they do their part, and whom to leave alone for a while |
//! | [`evidence`] | | that a peer lied, in a form that anybody can check |
//! | `quarantine` | | peers that lied, which get no more work |
//! | `planner` | pure | who computes which layers |
//! | `session` | pure machine + actor | one request: two-phase placement, steps, journal, emission, recovery |
//! | `account` | pure | what a stage was given and made of it, as hashes that can be compared |
//! | `stage` | actor + compute threads | the layers that this node computes, for itself and others |
//! | `models` | | from a name, CID or path to header, tokenizer and template |
//! | `supervisor` | | restarts units of actors that fail; handles that stay good |
//! | `telemetry` | | the metrics |
//!
//! Decisions are pure functions; actors only carry them out. Mailboxes, queues, retries and waits
//! are bounded everywhere; `clippy.toml` bans what is not.

mod account;
pub mod config;
mod directory;
pub mod error;
mod events;
pub mod evidence;
mod health;
pub mod models;
pub mod node;
mod own;
mod peers;
mod placement;
pub mod planner;
mod prompt;
mod quarantine;
pub mod replica;
mod request;
mod resume;
mod router;
mod session;
mod stage;
pub mod supervisor;
mod suspended;
mod swarm;
mod telemetry;
#[cfg(test)]
mod testing;
pub mod tolerance;
pub mod views;

pub use config::{DEFAULT_AUDIT_SHARE, Limits, NodeConfig};
pub use error::{ErrorKind, Failure, GenerateError, StartError};
pub use evidence::{Evidence, EvidenceError};
pub use health::BreakerLimits;
pub use models::ModelsError;
pub use node::{NodeHandle, Progress};
pub use planner::PlanError;
pub use request::{
    FinishReason, GenEvent, GenerateRequest, Generation, Input, Resumption, TopToken,
};
pub use swarm::DEFAULT_SWARM;
pub use tolerance::{FaultTolerance, ToleranceError};
pub use views::{
    CheckView, EvidenceView, Figure, GpuView, ModelDetail, ModelView, OfferView, PeerView,
    PlanStageView, PlanView, RecoveryView, ReplicaView, RouteView, SessionErrorView, SessionView,
    Tag,
};
