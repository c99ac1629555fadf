//! SIGSTOP, then SIGCONT: a machine that hangs and goes on as if nothing had happened.

use anyhow::Result;
use async_trait::async_trait;

use super::Fault;
use crate::chaos::swarm::Swarm;

pub(super) struct Pause;

#[async_trait]
impl Fault for Pause {
    fn name(&self) -> &'static str {
        "pause"
    }

    fn about(&self) -> &'static str {
        "SIGSTOP; after a while SIGCONT"
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.node()?.process.pause()
    }

    async fn undo(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.node()?.process.resume()
    }
}
