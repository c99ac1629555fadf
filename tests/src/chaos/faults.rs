//! The kinds of fault, behind one small trait. A new one is a file and a line in [`ALL`].
//!
//! A fault of the coordinator belongs here as well, once a client can go on with its answer at another
//! node (`Last-Event-ID`): until then the asked node is not hit, because its sessions end with it.

mod cut;
mod disk_full;
mod kill;
mod partition;
mod pause;
mod restart;

use anyhow::{Result, bail};
use async_trait::async_trait;

use super::{plan::Kind, swarm::Swarm};

/// Every kind that there is.
pub const ALL: [&dyn Fault; 6] = [
    &kill::Kill,
    &restart::Restart,
    &pause::Pause,
    &cut::Cut,
    &partition::Partition,
    &disk_full::DiskFull,
];

/// Something that happens to a peer.
#[async_trait]
pub trait Fault: Sync {
    /// What the plan and the command line call it.
    fn name(&self) -> &'static str;

    /// What it is, for the report.
    fn about(&self) -> &'static str;

    /// Whether the peer is gone for the rest of the trial. Otherwise [`Fault::undo`] ends it.
    fn for_good(&self) -> bool {
        false
    }

    /// Whether nodes must have networks and disks of their own.
    fn needs_namespaces(&self) -> bool {
        false
    }

    /// Does it to the peer in this seat. `variant` chooses among its forms.
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
        for_good: fault.for_good(),
    }
}
