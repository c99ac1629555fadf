//! The peer's cable is pulled, and its TCP connections are reset or left to find out.

use anyhow::Result;
use async_trait::async_trait;

use super::Fault;
use crate::chaos::swarm::Swarm;

pub(super) struct Cut;

#[async_trait]
impl Fault for Cut {
    fn name(&self) -> &'static str {
        "cut"
    }

    fn about(&self) -> &'static str {
        "the node's link goes down for a while; half of the time its TCP connections are reset as well"
    }

    fn needs_namespaces(&self) -> bool {
        true
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, variant: u32) -> Result<()> {
        let port = swarm.seat(seat)?.port()?;
        if variant.is_multiple_of(2) {
            port.reset()?;
        }
        port.unplug()
    }

    async fn undo(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.port()?.plug()
    }
}
