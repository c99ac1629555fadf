//! The command line: one file per command and one line in `commands!`.

mod bench;
mod chat;
mod demo;
mod drain;
mod eval;
mod evidence;
mod generation;
mod key;
mod local;
mod model;
mod peers;
mod plan;
mod run;
mod swarm;
mod up;

use std::future::Future;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

use crate::failure::Failure;
use crate::signals;

pub use local::obtain;
pub use model::add_file;
pub use swarm::write_new_key;

/// Run language models together on the machines you have
#[derive(Debug, Parser)]
#[command(
    name = "accel",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Does what the command says.
    pub fn run(self) -> Result<(), Failure> {
        self.command.run(self.output)
    }
}

/// How results are written.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Output {
    /// Write results as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

macro_rules! commands {
    ($($name:ident($command:ty)),* $(,)?) => {
        #[derive(Debug, Subcommand)]
        enum Command {
            $($name($command),)*
        }

        impl Command {
            fn run(self, output: Output) -> Result<(), Failure> {
                match self {
                    $(Self::$name(command) => command.run(output),)*
                }
            }
        }
    };
}

commands! {
    Demo(demo::Demo),
    Up(up::Up),
    Model(model::Model),
    Run(run::Run),
    Chat(chat::Chat),
    Peers(peers::Peers),
    Drain(drain::Drain),
    Evidence(evidence::Evidence),
    Plan(plan::Plan),
    Swarm(swarm::Swarm),
    Key(key::Key),
    Bench(bench::Bench),
    Eval(eval::Eval),
}

/// Runs a command that waits for others. Ctrl-C drops it, so that what it began is cleaned up.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = work => result,
            stopped = signals::stop_requested() => {
                stopped?;
                Err(Failure::new("interrupted"))
            }
        }
    });
    // A thread that waits for a line of stdin would never end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

#[cfg(test)]
mod tests;
