//! SIGTERM: sessions move away from the node, it says goodbye, and ends. A fresh node takes its place after the trial.

use anyhow::Result;
use async_trait::async_trait;

use super::Fault;
use crate::chaos::swarm::Swarm;

pub(super) struct Stop;

#[async_trait]
impl Fault for Stop {
    fn name(&self) -> &'static str {
        "stop"
    }

    fn about(&self) -> &'static str {
        "SIGTERM; the node says goodbye and does not come back"
    }

    fn lets_move(&self) -> bool {
        true
    }

    fn for_good(&self) -> bool {
        true
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.stop()
    }
}
