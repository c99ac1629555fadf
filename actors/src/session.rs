//! A session: one request from its placement to its last token.
//!
//! The machine ([`machine`]) is pure: events in, commands out, no clock and no IO. The actor
//! ([`actor`]) carries its commands out: it journals through the store, places stages and forwards
//! steps over the network (or to the stage server in this process), and tells the client.
//!
//! The rules that the machine keeps, whatever happens around it:
//! - a token is journaled, durably, before it is emitted; in order, once, and never taken back;
//! - at most one epoch is live, and it only grows;
//! - every stage that was asked to prepare is told to commit, and released in the end;
//! - the session ends exactly once: done, failed or cancelled; or it is suspended, and whoever goes
//!   on with it begins under a higher claim than everyone before.
//!
//! | File | Holds |
//! |---|---|
//! | `machine.rs` | the machine: journal before emission, endings |
//! | `machine/placement.rs` | two-phase placement |
//! | `machine/steps.rs` | steps and their answers |
//! | `machine/recovering.rs` | going on after a fault |
//! | `machine/replicating.rs` | which peers keep the journal, and what may be emitted |
//! | `machine/rebuilding.rs` | getting the stages of a new epoch the KV caches that they lack |
//! | `machine/distrusting.rs` | going on without those who are not believed |
//! | `machine/resuming.rs` | going on with what is in the journal |
//! | `event.rs` | its vocabulary: events, commands, outcomes |
//! | `text.rs` | from tokens to clean text, with stop texts |
//! | `actor.rs` | the actor: executes commands, feeds events |
//! | `placing.rs` | the actor's part in a placement |
//! | `sending.rs` | the actor's part in steps: frames for stages, and their connections |
//! | `telling.rs` | the actor's part in journaling and emitting |
//! | `noting.rs` | the actor's part in logging and counting recoveries |
//! | `moving.rs` | the actor's part in planned moves |
//! | `replicator.rs` | the actor's part in keeping the journal on other peers |
//! | `pump.rs` | tasks beside the actor: journal, client, stages |
//! | `incoming.rs` | what a frame of a peer means |
//! | `link.rs` | calls and frames to the stages of the route, near or far |
//! | `stand_ins.rs` | whoever would take over is asked to have its layers ready |
//! | `show.rs` | how it looks from outside |
//! | `recovery.rs` | what to do about a fault: strategies, one file each |
//! | `rebuild.rs` | how KV caches are rebuilt: ways, one file each, and their prices |
//! | `record.rs` | what the journal holds of a session |
//! | `verdicts.rs` | what its events say about the peers' health |
//! | `jury.rs` | of a witnessed session: who is right when two lanes differ; pure |
//! | `bench.rs` | its lanes, and what becomes of what the jury rules |
//! | `testifying.rs` | the actor's part in that |
//! | `table.rs` | all sessions of this node, for views and for incoming frames |

pub(crate) mod actor;
pub(crate) mod bench;
pub(crate) mod event;
mod incoming;
pub(crate) mod jury;
pub(crate) mod link;
pub(crate) mod machine;
mod moving;
mod noting;
mod placing;
mod pump;
pub(crate) mod rebuild;
pub(crate) mod record;
pub(crate) mod recovery;
mod replicator;
mod sending;
pub(crate) mod show;
pub(crate) mod stand_ins;
pub(crate) mod table;
mod telling;
mod testifying;
pub(crate) mod text;
mod timing;
mod verdicts;
