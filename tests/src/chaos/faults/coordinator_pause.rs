//! SIGSTOP of the coordinator, then SIGCONT: clients that wait for too long go elsewhere, and the node goes on
//! with a session that others have by then.

use anyhow::Result;
use async_trait::async_trait;

use super::{Fault, pause::Pause};
use crate::chaos::{plan::Target, swarm::Swarm};

pub(super) struct CoordinatorPause;

#[async_trait]
impl Fault for CoordinatorPause {
    fn name(&self) -> &'static str {
        "coordinator-pause"
    }

    fn about(&self) -> &'static str {
        "SIGSTOP of the node that coordinates the answer; after a while SIGCONT"
    }

    fn target(&self) -> Target {
        Target::Coordinator
    }

    fn leaves_it_running(&self) -> bool {
        true
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, variant: u32) -> Result<()> {
        Pause.strike(swarm, seat, variant).await
    }

    async fn undo(&self, swarm: &mut Swarm, seat: usize, variant: u32) -> Result<()> {
        Pause.undo(swarm, seat, variant).await
    }
}
