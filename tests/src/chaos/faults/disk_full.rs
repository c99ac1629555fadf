//! The peer's disk, a small one in memory, is filled to the last byte: the system answers its writes
//! with `ENOSPC`. It shows where the peer has to fetch layers; what it holds already stays mapped.

use anyhow::Result;
use async_trait::async_trait;

use super::Fault;
use crate::chaos::swarm::Swarm;

pub(super) struct DiskFull;

#[async_trait]
impl Fault for DiskFull {
    fn name(&self) -> &'static str {
        "disk-full"
    }

    fn about(&self) -> &'static str {
        "for a while the node's disk has no byte left"
    }

    fn needs_namespaces(&self) -> bool {
        true
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.disk()?.fill()
    }

    async fn undo(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.disk()?.clear()
    }
}
