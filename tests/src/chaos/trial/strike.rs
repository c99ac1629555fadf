//! Strikes when the plan says so, and ends what is to pass.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Landed;
use crate::{
    Answer,
    chaos::{
        faults::{self, Fault},
        plan::{Blow, Plan, When},
        swarm::Swarm,
    },
};

/// A recovery can be over before it is seen; behind so many thousandths of the answer a fault that
/// waits for one comes anyway.
const LATEST: usize = 950;

/// Tokens that stages may have computed before they are shown: they wait for the journal meanwhile.
const UNDER_WAY: usize = 16;

/// A fault that is to end.
struct Passing {
    fault: &'static dyn Fault,
    seat: usize,
    variant: u32,
    ends: Instant,
}

/// See the module.
pub(super) struct Striker {
    /// The watched session.
    pub session: Option<String>,
    /// What was done so far.
    pub landed: Vec<Landed>,
    /// What went wrong with a fault itself.
    pub problems: Vec<String>,
    blows: std::vec::IntoIter<Blow>,
    next: Option<Blow>,
    passing: Vec<Passing>,
    expected: usize,
}

impl Striker {
    pub(super) fn new(plan: &Plan, expected: &Answer) -> Self {
        let mut blows = plan.blows.clone().into_iter();
        Self {
            session: None,
            landed: Vec::new(),
            problems: Vec::new(),
            next: blows.next(),
            blows,
            passing: Vec::new(),
            expected: expected.tokens.len(),
        }
    }

    /// Does what is due after so many tokens of the watched answer.
    pub(super) async fn tick(&mut self, swarm: &mut Swarm, heard: usize) -> Result<()> {
        self.undo_until(swarm, Instant::now()).await?;
        let Some(blow) = self.next.clone() else {
            return Ok(());
        };
        if let When::Answer(mark) = blow.when
            && heard < self.tokens_at(mark as usize)
        {
            return Ok(());
        }
        let session = self.session.as_deref().context("a watched session")?;
        let view = swarm.asked.client.session(session).await?;
        if !self.is_time(&blow, heard, &view) {
            return Ok(());
        }
        self.next = self.blows.next();
        let landed = self.strike(swarm, &blow, heard, &view).await?;
        self.landed.push(landed);
        Ok(())
    }

    /// Ends everything that has not ended yet.
    pub(super) async fn undo_all(&mut self, swarm: &mut Swarm) -> Result<()> {
        while let Some(last) = self.passing.iter().map(|passing| passing.ends).max() {
            self.undo_until(swarm, last).await?;
        }
        Ok(())
    }

    fn is_time(&self, blow: &Blow, heard: usize, view: &Value) -> bool {
        let state = view["state"].as_str().unwrap_or_default();
        let late = heard >= self.tokens_at(LATEST) || is_over(state);
        match blow.when {
            When::Answer(_) => true,
            When::Prefill => late || ["prefill", "decoding"].contains(&state),
            When::Recovery => late || state == "recovering",
        }
    }

    /// How many tokens of the watched answer a mark means; the first at least.
    fn tokens_at(&self, mark: usize) -> usize {
        1 + self.expected.saturating_sub(2) * mark / 1000
    }

    async fn strike(
        &mut self,
        swarm: &mut Swarm,
        blow: &Blow,
        heard: usize,
        view: &Value,
    ) -> Result<Landed> {
        let state = view["state"].as_str().unwrap_or_default();
        let mut landed = Landed {
            fault: blow.fault,
            peer_id: None,
            on_route: false,
            state: state.to_owned(),
            after_tokens: heard,
            must_recover: false,
            at: None,
        };
        let Some((seat, peer, on_route)) = victim(swarm, blow, view).filter(|_| !is_over(state))
        else {
            return Ok(landed);
        };
        let fault = faults::named(blow.fault)?;
        swarm.seat(seat)?.afflicted = Some(blow.fault);
        landed.at = Some(Instant::now());
        if let Err(error) = fault.strike(swarm, seat, blow.pick).await {
            self.problems
                .push(format!("{} failed: {error:#}", blow.fault));
        }
        if !fault.for_good() {
            self.passing.push(Passing {
                fault,
                seat,
                variant: blow.pick,
                ends: Instant::now() + Duration::from_millis(blow.lasts_ms),
            });
        }
        landed.must_recover = on_route && fault.for_good() && self.has_more(swarm).await?;
        landed.peer_id = Some(peer);
        landed.on_route = on_route;
        Ok(landed)
    }

    /// Whether tokens are to come that no stage can have computed yet.
    async fn has_more(&self, swarm: &Swarm) -> Result<bool> {
        let session = self.session.as_deref().context("a watched session")?;
        let view = swarm.asked.client.session(session).await?;
        let tokens = view["tokens"].as_u64().unwrap_or_default() as usize;
        Ok(tokens + UNDER_WAY.max(self.expected / 4) <= self.expected)
    }

    async fn undo_until(&mut self, swarm: &mut Swarm, now: Instant) -> Result<()> {
        while let Some(index) = self.passing.iter().position(|passing| passing.ends <= now) {
            let Passing {
                fault,
                seat,
                variant,
                ..
            } = self.passing.swap_remove(index);
            if let Err(error) = fault.undo(swarm, seat, variant).await {
                self.problems
                    .push(format!("{} did not end: {error:#}", fault.name()));
            }
            swarm.seat(seat)?.afflicted = None;
        }
        Ok(())
    }
}

fn is_over(state: &str) -> bool {
    ["done", "failed", "cancelled"].contains(&state)
}

/// Whom a blow hits: a seat, its PeerId, and whether it computes for the watched session. Where
/// nobody on the route can be hit, another peer is.
fn victim(swarm: &Swarm, blow: &Blow, view: &Value) -> Option<(usize, String, bool)> {
    let hops = view["route"].as_array();
    let route: Vec<&str> = hops
        .into_iter()
        .flatten()
        .filter_map(|hop| hop["peer_id"].as_str())
        .collect();
    let healthy = swarm.healthy();
    let is_on_route = |peer: &str| route.contains(&peer);
    let mut among: Vec<&(usize, String)> = healthy
        .iter()
        .filter(|(_, peer)| !blow.on_route || is_on_route(peer))
        .collect();
    if among.is_empty() {
        among = healthy.iter().collect();
    }
    let index = blow.pick as usize % among.len().max(1);
    let (seat, peer) = among.get(index)?;
    Some((*seat, peer.clone(), is_on_route(peer)))
}
