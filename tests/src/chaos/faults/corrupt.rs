//! The peer has a bad cable: bits change in what it sends and what it is sent. QUIC drops a packet that does
//! not authenticate, a stream over TCP ends. No changed byte may come into an answer.

use anyhow::{Context as _, Result};
use async_trait::async_trait;

use super::Fault;
use crate::chaos::{
    net::{self, Damage},
    swarm::Swarm,
};

/// One of so many frames is damaged.
const RATES: [u64; 4] = [3, 10, 30, 100];

pub(super) struct Corrupt;

#[async_trait]
impl Fault for Corrupt {
    fn name(&self) -> &'static str {
        "corrupt"
    }

    fn about(&self) -> &'static str {
        "for a while bits change in one of 3 to 100 frames on the node's link, half of the time so that checksums hold"
    }

    fn needs_namespaces(&self) -> bool {
        true
    }

    fn obstacle(&self) -> Option<String> {
        net::cable_obstacle()
    }

    async fn strike(&self, swarm: &mut Swarm, seat: usize, variant: u32) -> Result<()> {
        let seat = swarm.seat(seat)?;
        let api = seat.node()?.api.rsplit(':').next();
        let spared = api.and_then(|port| port.parse().ok());
        let rate = RATES.get(variant as usize % RATES.len());
        seat.port_mut()?.scramble(Damage {
            one_of: *rate.context("a rate")?,
            seed: u64::from(variant),
            spared: spared.context("the port of an API")?,
        })
    }

    async fn undo(&self, swarm: &mut Swarm, seat: usize, _variant: u32) -> Result<()> {
        swarm.seat(seat)?.port_mut()?.repair().await
    }
}
