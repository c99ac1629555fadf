//! SIGKILL, and the same node is started again with its disk. With `medium` its clients wait for it; with
//! `high` they go to a peer that has a copy, and the node comes back to a session that has moved.

use anyhow::Result;
use async_trait::async_trait;

use super::Fault;
use crate::chaos::{plan::Target, swarm::Swarm};

pub(super) struct CoordinatorRestart;

#[async_trait]
impl Fault for CoordinatorRestart {
    fn name(&self) -> &'static str {
        "coordinator-restart"
    }

    fn about(&self) -> &'static str {
        "SIGKILL of the node that coordinates the answer; after a while it is started again with its disk"
    }

    fn target(&self) -> Target {
        Target::Coordinator
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.kill();
        Ok(())
    }

    async fn undo(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.start_again(seat).await
    }
}
