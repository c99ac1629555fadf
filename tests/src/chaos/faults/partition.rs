//! The network falls apart: the peer loses some of the others, or is heard by none of them while it
//! still hears them. Packets are lost silently, as they are in a network that is broken somewhere else.

use anyhow::{Context as _, Result};
use async_trait::async_trait;

use super::Fault;
use crate::chaos::swarm::Swarm;

pub(super) struct Partition;

/// Who no longer hears whom, of the peer and the others.
struct Form {
    coordinator: bool,
    peers: bool,
    outwards: bool,
    inwards: bool,
}

const FORMS: [Form; 4] = [
    // Not the coordinator, but the other stages.
    Form {
        coordinator: true,
        peers: false,
        outwards: true,
        inwards: true,
    },
    // Not the other stages, but the coordinator.
    Form {
        coordinator: false,
        peers: true,
        outwards: true,
        inwards: true,
    },
    // One way: nobody hears it.
    Form {
        coordinator: true,
        peers: true,
        outwards: true,
        inwards: false,
    },
    // One way: it hears nobody.
    Form {
        coordinator: true,
        peers: true,
        outwards: false,
        inwards: true,
    },
];

#[async_trait]
impl Fault for Partition {
    fn name(&self) -> &'static str {
        "partition"
    }

    fn about(&self) -> &'static str {
        "for a while packets are lost between the node and the coordinator, the other peers, or all in one direction"
    }

    fn needs_namespaces(&self) -> bool {
        true
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, variant: u32) -> Result<()> {
        apply(swarm, seat, variant, true)
    }

    async fn undo(&self, swarm: &mut Swarm, seat: usize, variant: u32) -> Result<()> {
        apply(swarm, seat, variant, false)
    }
}

fn apply(swarm: &mut Swarm, seat: usize, variant: u32, lose: bool) -> Result<()> {
    let form = FORMS
        .get(variant as usize % FORMS.len())
        .context("a form of partition")?;
    let coordinator = swarm.coordinator;
    for other in 0..swarm.count() {
        // Its end is for all: there may be another coordinator by then.
        let is_meant = match other == coordinator {
            true => form.coordinator || !lose,
            false => form.peers || !lose,
        };
        if other == seat || !is_meant {
            continue;
        }
        if form.outwards {
            between(swarm, seat, other, lose)?;
        }
        if form.inwards {
            between(swarm, other, seat, lose)?;
        }
    }
    Ok(())
}

fn between(swarm: &mut Swarm, from: usize, to: usize, lose: bool) -> Result<()> {
    let address = swarm.seat(to)?.port()?.address();
    let port = swarm.seat(from)?.port()?;
    if lose {
        port.lose(&address)
    } else {
        port.reach(&address)
    }
}
