//! The coordinator's cable is pulled: neither peers nor clients reach it, and it does not know. It comes back to
//! sessions that others may have gone on with.

use anyhow::Result;
use async_trait::async_trait;

use super::{Fault, cut::Cut};
use crate::chaos::{plan::Target, swarm::Swarm};

pub(super) struct CoordinatorCut;

#[async_trait]
impl Fault for CoordinatorCut {
    fn name(&self) -> &'static str {
        "coordinator-cut"
    }

    fn about(&self) -> &'static str {
        "the link of the node that coordinates the answer goes down for a while, for its clients, too; half of the time \
         its TCP connections are reset as well"
    }

    fn target(&self) -> Target {
        Target::Coordinator
    }

    fn leaves_it_running(&self) -> bool {
        true
    }

    fn needs_namespaces(&self) -> bool {
        true
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, variant: u32) -> Result<()> {
        Cut.strike(swarm, seat, variant).await
    }

    async fn undo(&self, swarm: &mut Swarm, seat: usize, variant: u32) -> Result<()> {
        Cut.undo(swarm, seat, variant).await
    }
}
