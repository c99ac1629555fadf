//! What the cross-crate tests share: real `accel` processes, real models, real clients.
//!
//! The tests themselves are in `tests/tests/`. Nothing here is simulated: a [`Cluster`] starts the
//! binary that a person would run, on loopback, on ports that the system picks, in temporary
//! directories, in a private swarm of its own; dropping it kills every process group that it started.
//! A test that fails prints the tail of each node's log.
//!
//! - [`binaries`]: finds `accel` beside the test executable, and has cargo build it when it is missing or stale
//! - [`brake`]: a node that others slow down
//! - [`process`]: one child in a process group of its own, with its output kept in a file
//! - [`node`]: one node: how to start it, its ready file, its command line
//! - [`cluster`]: several nodes in one swarm
//! - [`client`]: what a test asks over HTTP
//! - [`run`]: `accel run`, undisturbed and in mid-answer
//! - [`listener`]: a client that comes back for the rest of its answer
//! - [`models`]: small generated GGUFs, and the real SmolLM2 where this machine has it
//! - [`chaos`]: seeded trials in which nodes are killed, stopped and cut off
//! - [`python`]: a virtual environment with the official `openai` client

pub mod binaries;
pub mod brake;
pub mod chaos;
pub mod client;
pub mod cluster;
pub mod listener;
pub mod models;
pub mod node;
pub mod process;
pub mod python;
pub mod run;

pub use brake::Brake;
pub use client::{Answer, ChatRequest, Client};
pub use cluster::Cluster;
pub use listener::Listener;
pub use node::{Node, NodeOptions};

use std::time::Duration;

/// How long a test waits for something that normally takes a moment. It only turns a hang into a
/// failure: no test measures time against it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Says on the terminal, past the test's captured output, that something was not tested and why.
pub fn skip_loudly(what: &str, why: &str) {
    use std::io::Write as _;
    let line = format!("\n*** SKIPPED: {what}: {why}\n");
    // The macros would be captured; a lost notice must not fail a test.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
