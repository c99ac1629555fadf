//! The kinds of fault, behind one small trait. A new one is a file and a line in [`ALL`].

mod coordinator_cut;
mod coordinator_kill;
mod coordinator_pause;
mod coordinator_restart;
mod coordinator_stop;
mod corrupt;
mod cut;
mod disk_full;
mod kill;
mod partition;
mod pause;
mod restart;
mod stop;

use anyhow::{Result, bail};
use async_trait::async_trait;

use super::{
    plan::{Kind, Target},
    swarm::Swarm,
};

/// Every kind that there is.
pub const ALL: [&dyn Fault; 13] = [
    &kill::Kill,
    &restart::Restart,
    &stop::Stop,
    &pause::Pause,
    &cut::Cut,
    &partition::Partition,
    &corrupt::Corrupt,
    &disk_full::DiskFull,
    &coordinator_kill::CoordinatorKill,
    &coordinator_restart::CoordinatorRestart,
    &coordinator_stop::CoordinatorStop,
    &coordinator_pause::CoordinatorPause,
    &coordinator_cut::CoordinatorCut,
];

/// Something that happens to a node.
#[async_trait]
pub trait Fault: Sync {
    /// What the plan and the command line call it.
    fn name(&self) -> &'static str;

    /// What it is, for the report.
    fn about(&self) -> &'static str;

    /// Whom it hits.
    fn target(&self) -> Target {
        Target::Peer
    }

    /// Whether a coordinator gives its answers time to end, and hands over those that do not.
    fn hands_over(&self) -> bool {
        false
    }

    /// Whether a coordinator goes on afterwards as if nothing had happened: its answer may, too.
    fn leaves_it_running(&self) -> bool {
        false
    }

    /// Whether sessions may move away from a peer before it is gone.
    fn lets_move(&self) -> bool {
        false
    }

    /// Whether the node is gone for the rest of the trial. Otherwise [`Fault::undo`] ends it.
    fn for_good(&self) -> bool {
        false
    }

    /// Whether nodes must have networks and disks of their own.
    fn needs_namespaces(&self) -> bool {
        false
    }

    /// What is missing here for it, beside namespaces.
    fn obstacle(&self) -> Option<String> {
        None
    }

    /// Does it to the node in this seat. `variant` chooses among its forms.
    async fn strike(&self, swarm: &mut Swarm, seat: usize, variant: u32) -> Result<()>;

    /// Ends it.
    async fn undo(&self, _swarm: &mut Swarm, _seat: usize, _variant: u32) -> Result<()> {
        Ok(())
    }
}

/// The kind of this name.
pub fn named(name: &str) -> Result<&'static dyn Fault> {
    match ALL.into_iter().find(|fault| fault.name() == name) {
        Some(fault) => Ok(fault),
        None => bail!(
            "no fault is called {name}; there are {}",
            names().join(", ")
        ),
    }
}

/// The names of all kinds.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|fault| fault.name()).collect()
}

/// What a plan needs to know of a kind.
pub fn kind(fault: &dyn Fault) -> Kind {
    Kind {
        name: fault.name(),
        target: fault.target(),
        for_good: fault.for_good(),
        hands_over: fault.hands_over(),
    }
}
