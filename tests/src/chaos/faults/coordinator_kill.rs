//! SIGKILL, and its disk is deleted at once: the session lives on in the copies that two peers have, and
//! the client goes to one of them.

use anyhow::Result;
use async_trait::async_trait;

use super::Fault;
use crate::chaos::{plan::Target, swarm::Swarm};

pub(super) struct CoordinatorKill;

#[async_trait]
impl Fault for CoordinatorKill {
    fn name(&self) -> &'static str {
        "coordinator-kill"
    }

    fn about(&self) -> &'static str {
        "SIGKILL of the node that coordinates the answer; its disk is deleted, and it does not come back"
    }

    fn target(&self) -> Target {
        Target::Coordinator
    }

    fn for_good(&self) -> bool {
        true
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.destroy()
    }
}
