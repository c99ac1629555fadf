//! `cargo run --release -p accel-tests --bin chaos`: see `docs/chaos.md`.

use std::process::ExitCode;

use accel_tests::chaos::run::{Options, run};
use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}
