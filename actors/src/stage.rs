//! The stage server: the layers that this node computes, for its own sessions and for others'.
//!
//! ```text
//! Prepare ─► header ─► reserve memory ─► fetch blocks ─► load ─► open KV ─► Ready
//! Commit  ─► the route is known: where steps come from, where results go
//! Step    ─► fence (epoch, position) ─► batch ─► compute thread ─► outlet ─► next stage or coordinator
//! Release, an expired lease ─► KV freed; the weights stay until memory is needed
//! Abort   ─► the same, but a KV cache with something in it stays for the next plan
//! ```
//!
//! | File | Holds |
//! |---|---|
//! | `server.rs` | the actor: leases, steps; `server/placing.rs`: placement messages |
//! | `seat.rs` | what one session has here |
//! | `prepare.rs` | phase one, off the actor's thread |
//! | `obtain.rs` | getting layers onto this node and into memory |
//! | `warmer.rs` | layers that may be needed soon, made ready ahead of time |
//! | `shelf.rs` | loaded stages, shared by sessions, least recently used out first |
//! | `ledger.rs` | the memory they and their KV caches take; pure |
//! | `fence.rs` | which steps may be applied; pure |
//! | `engine.rs` | one compute thread per loaded stage, which computes batches |
//! | `queue.rs` | what waits for it; bounded |
//! | `batch.rs` | which steps of which sessions are computed together; pure |
//! | `complaints.rs` | answers to steps for sessions that are not here |
//! | `outputs.rs` | outputs that are kept to be sent again |
//! | `recompute.rs` | computing again what a peer signed, to see whether it lied |
//! | `scribe.rs` | of witnessed sessions: what was given and made of it, signed |
//! | `outlet.rs` | where the results of a session's steps go, and what is kept for repeats |

mod batch;
mod complaints;
mod engine;
pub(crate) mod fence;
mod ledger;
mod obtain;
mod outlet;
pub(crate) mod outputs;
mod prepare;
mod queue;
mod recompute;
mod scribe;
mod seat;
mod seats;
mod server;
mod shelf;
mod warmer;

#[cfg(test)]
mod tests;

pub(crate) use outlet::NEXT_STAGE_LOST;
pub(crate) use recompute::recompute;
pub(crate) use scribe::{BOUNDARY_DISPUTED, are_theirs};
pub(crate) use server::{Control, NextLost, StageDeps, StageServer, Step};
pub(crate) use shelf::Shelf;
