//! SIGKILL: the process is gone, and so is its disk. A fresh node takes its place after the trial.

use anyhow::Result;
use async_trait::async_trait;

use super::Fault;
use crate::chaos::swarm::Swarm;

pub(super) struct Kill;

#[async_trait]
impl Fault for Kill {
    fn name(&self) -> &'static str {
        "kill"
    }

    fn about(&self) -> &'static str {
        "SIGKILL; the node does not come back"
    }

    fn for_good(&self) -> bool {
        true
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.kill();
        Ok(())
    }
}
