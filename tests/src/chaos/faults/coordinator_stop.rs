//! SIGTERM: answers get two seconds to end, and what is not done then is handed over to a peer. The node is
//! started again with its disk, since with `medium` that is where the session is when no peer answers.

use anyhow::Result;
use async_trait::async_trait;

use super::Fault;
use crate::chaos::{plan::Target, swarm::Swarm};

pub(super) struct CoordinatorStop;

#[async_trait]
impl Fault for CoordinatorStop {
    fn name(&self) -> &'static str {
        "coordinator-stop"
    }

    fn about(&self) -> &'static str {
        "SIGTERM to the node that coordinates the answer: it hands over; after a while it is started again with its disk"
    }

    fn target(&self) -> Target {
        Target::Coordinator
    }

    fn hands_over(&self) -> bool {
        true
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.stop()
    }

    async fn undo(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.start_again(seat).await
    }
}
