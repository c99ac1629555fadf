//! Strikes when the plan says so, and ends what is to pass.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

use super::{Landed, Meter};
use crate::{
    Answer,
    chaos::{
        faults::{self, Fault},
        listen::{Heard, Listener},
        plan::{Blow, HIGH, Plan, Target, When},
        swarm::Swarm,
    },
};

const RECOVERING: &str = "recovering";
/// The state of a session whose coordinator is not there, while its client looks for it.
const AWAY: &str = "away";
/// How a coordinator says the same.
const HAS_LEFT: [&str; 2] = ["moved", "suspended"];

/// A recovery can be over before it is seen; behind so many thousandths of the answer a fault that
/// waits for one comes anyway.
const LATEST: usize = 950;

/// Tokens that stages may have computed before they are shown: they wait for the journal meanwhile.
const UNDER_WAY: usize = 16;

/// A coordinator that takes longer to answer hangs or is cut off.
const PROMPT: Duration = Duration::from_secs(2);

/// A fault that is to end.
struct Passing {
    fault: &'static dyn Fault,
    seat: usize,
    variant: u32,
    ends: Instant,
}

/// See the module.
pub(super) struct Striker {
    /// The watched session, as the asked node has it.
    pub session: Option<String>,
    /// What was done so far.
    pub landed: Vec<Landed>,
    /// What went wrong with a fault itself.
    pub problems: Vec<String>,
    /// What nodes told of their recoveries before they were struck: sessions, and a log of each.
    pub told: Vec<(String, Vec<Value>)>,
    /// What the nodes move.
    pub meter: Meter,
    fault_tolerance: &'static str,
    blows: std::vec::IntoIter<Blow>,
    next: Option<Blow>,
    passing: Vec<Passing>,
    expected: usize,
    /// What the coordinator of the watched session told when it was asked last.
    view: Value,
}

impl Striker {
    pub(super) fn new(plan: &Plan, expected: &Answer, meter: Meter) -> Self {
        let mut blows = plan.blows.clone().into_iter();
        Self {
            session: None,
            landed: Vec::new(),
            problems: Vec::new(),
            told: Vec::new(),
            meter,
            fault_tolerance: plan.fault_tolerance,
            next: blows.next(),
            blows,
            passing: Vec::new(),
            expected: expected.tokens.len(),
            view: Value::Null,
        }
    }

    /// Does what is due.
    pub(super) async fn tick(&mut self, swarm: &mut Swarm, listeners: &[Listener]) -> Result<()> {
        self.undo_until(swarm, Instant::now()).await?;
        let Some(blow) = self.next.clone() else {
            return Ok(());
        };
        let watched = listeners.first().context("a watched answer")?.heard();
        if let When::Answer(mark) = blow.when
            && watched.tokens.len() < self.tokens_at(mark as usize)
        {
            return Ok(());
        }
        self.look(swarm, &watched).await?;
        if !self.is_time(swarm, &blow, &watched) {
            return Ok(());
        }
        self.next = self.blows.next();
        let heard: Vec<Heard> = listeners.iter().map(Listener::heard).collect();
        let landed = self.strike(swarm, &blow, &heard).await?;
        self.landed.push(landed);
        Ok(())
    }

    /// Asks the coordinator of the watched session for its view. One that was struck may not answer, or
    /// not have it any more: then the session is away until its client has come back.
    async fn look(&mut self, swarm: &mut Swarm, watched: &Heard) -> Result<()> {
        if let Some(seat) = swarm.seat_of(&watched.at) {
            swarm.coordinator = seat;
        }
        let session = match watched.came_back {
            0 => watched.session.as_ref().or(self.session.as_ref()),
            _ => watched.session.as_ref(),
        };
        let view = match (session, swarm.directory().client(&watched.at)) {
            (Some(session), Some(client)) => {
                let asked = tokio::time::timeout(PROMPT, client.session(session)).await;
                asked
                    .map_err(|_| anyhow!("the coordinator does not answer"))
                    .flatten()
            }
            _ => Err(anyhow!("the watched session is nowhere")),
        };
        match view {
            Ok(view) if HAS_LEFT.contains(&view["state"].as_str().unwrap_or_default()) => {
                self.view["state"] = AWAY.into();
            }
            Ok(view) => self.view = view,
            Err(_) if self.has_hit_coordinator() => self.view["state"] = AWAY.into(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn has_hit_coordinator(&self) -> bool {
        let mut landed = self.landed.iter();
        landed.any(|landed| landed.target == Target::Coordinator && landed.peer_id.is_some())
    }

    /// Ends everything that has not ended yet.
    pub(super) async fn undo_all(&mut self, swarm: &mut Swarm) -> Result<()> {
        while let Some(last) = self.passing.iter().map(|passing| passing.ends).max() {
            self.undo_until(swarm, last).await?;
        }
        Ok(())
    }

    fn is_time(&self, swarm: &mut Swarm, blow: &Blow, watched: &Heard) -> bool {
        let state = self.state();
        let is_late = watched.tokens.len() >= self.tokens_at(LATEST) || is_over(state);
        let is_now = match blow.when {
            When::Answer(_) => true,
            When::Prefill => is_late || ["prefill", "decoding"].contains(&state),
            When::Recovery => is_late || [RECOVERING, AWAY].contains(&state),
        };
        // A coordinator that is struck already is waited for, or its successor.
        let is_there = swarm.seat_of(&watched.at).is_some_and(|seat| {
            let seat = swarm.seat(seat);
            seat.is_ok_and(|seat| seat.afflicted.is_none())
        });
        is_now && (blow.target == Target::Peer || is_there)
    }

    fn state(&self) -> &str {
        self.view["state"].as_str().unwrap_or_default()
    }

    /// How many tokens of the watched answer a mark means; the first at least.
    fn tokens_at(&self, mark: usize) -> usize {
        1 + self.expected.saturating_sub(2) * mark / 1000
    }

    async fn strike(&mut self, swarm: &mut Swarm, blow: &Blow, heard: &[Heard]) -> Result<Landed> {
        let watched = heard.first().context("a watched answer")?;
        let mut landed = Landed {
            fault: blow.fault,
            target: blow.target,
            peer_id: None,
            on_route: false,
            state: self.state().to_owned(),
            after_tokens: watched.tokens.len(),
            must_recover: false,
            lets_move: false,
            at: None,
        };
        let fault = faults::named(blow.fault)?;
        landed.lets_move = fault.lets_move();
        let victim = self.victim(swarm, blow, fault, heard);
        let Some((seat, peer)) = victim.filter(|_| !is_over(self.state())) else {
            return Ok(landed);
        };
        landed.on_route = self.route().contains(&peer.as_str());
        let is_needed = match blow.target {
            Target::Peer => landed.on_route && fault.for_good(),
            Target::Coordinator => !fault.hands_over() && !fault.leaves_it_running(),
        };
        // A peer may do its part until it is struck, and a coordinator nothing afterwards.
        let had_more = self.has_more(swarm, watched).await?;
        self.prepare(swarm, seat, &peer, heard).await?;
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
        landed.must_recover = is_needed
            && match blow.target {
                Target::Peer => self.has_more(swarm, watched).await?,
                Target::Coordinator => had_more,
            };
        landed.peer_id = Some(peer);
        Ok(landed)
    }

    /// Asks a node that is to be struck for what only it knows.
    async fn prepare(
        &mut self,
        swarm: &mut Swarm,
        seat: usize,
        peer: &str,
        heard: &[Heard],
    ) -> Result<()> {
        let node = swarm.seat(seat)?.node()?;
        self.meter.read(node).await;
        for heard in heard.iter().filter(|heard| heard.at == peer) {
            let Some(session) = &heard.session else {
                continue;
            };
            if let Ok(view) = node.client.session(session).await {
                let log = view["recovery_log"].as_array().cloned();
                self.told.push((session.clone(), log.unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// Whether tokens are to come that no stage can have computed yet.
    async fn has_more(&mut self, swarm: &mut Swarm, watched: &Heard) -> Result<bool> {
        self.look(swarm, watched).await?;
        let tokens = self.view["tokens"].as_u64().unwrap_or_default() as usize;
        let is_there = ![AWAY, ""].contains(&self.state()) && !is_over(self.state());
        Ok(is_there && tokens + UNDER_WAY.max(self.expected / 4) <= self.expected)
    }

    /// Whom a blow hits: a seat and its PeerId. Where nobody on the route can be hit, another peer is.
    fn victim(
        &self,
        swarm: &Swarm,
        blow: &Blow,
        fault: &dyn Fault,
        heard: &[Heard],
    ) -> Option<(usize, String)> {
        let watched = heard.first()?;
        let mut healthy = swarm.healthy();
        if blow.target == Target::Coordinator {
            return healthy.into_iter().find(|(_, peer)| *peer == watched.at);
        }
        // With `medium` a peer that coordinates one of the answers must come back, and stays unhurt.
        let coordinates = |peer: &str| match self.fault_tolerance {
            HIGH => peer == watched.at,
            _ => heard.iter().any(|heard| heard.at == peer),
        };
        let must_stay = |seat| fault.for_good() && swarm.is_spare(seat);
        healthy.retain(|(seat, peer)| !coordinates(peer) && !must_stay(*seat));
        let route = self.route();
        let on_route = |(_, peer): &&(usize, String)| route.contains(&peer.as_str());
        let mut among: Vec<&(usize, String)> = healthy
            .iter()
            .filter(|candidate| !blow.on_route || on_route(candidate))
            .collect();
        if among.is_empty() {
            among = healthy.iter().collect();
        }
        let index = blow.pick as usize % among.len().max(1);
        among.get(index).map(|found| (*found).clone())
    }

    /// Who computes for the watched session, or did when its coordinator was there.
    fn route(&self) -> Vec<&str> {
        let hops = self.view["route"].as_array().into_iter().flatten();
        hops.filter_map(|hop| hop["peer_id"].as_str()).collect()
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
