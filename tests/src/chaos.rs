//! Chaos on real processes: seeded trials in which nodes are killed, stopped, cut off and run out of
//! disk while they compute answers, which must be byte for byte those of one undisturbed node.
//!
//! `docs/chaos.md` says how to run it and what came of it.
//!
//! - [`plan`]: from a seed and a number to a trial; pure
//! - [`dice`]: what plans are drawn with
//! - [`faults`]: one file per kind of fault; a new one is a file and a line in the registry
//! - [`net`]: a network namespace per node, where this system allows it
//! - [`swarm`]: the nodes that trials are played on, kept from trial to trial while they are whole
//! - [`baseline`]: the answers of one undisturbed node
//! - [`listen`]: the clients, with the time of every token
//! - [`trial`]: plays one trial and judges it
//! - [`report`]: Markdown and JSON
//! - [`run`]: the command
//! - [`rpc_peers`]: the same kill done to llama.cpp over its RPC

pub mod baseline;
pub mod dice;
pub mod faults;
pub mod listen;
pub mod net;
pub mod plan;
pub mod report;
pub mod rpc_peers;
pub mod run;
pub mod swarm;
pub mod trial;
