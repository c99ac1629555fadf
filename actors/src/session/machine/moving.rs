//! The machine's part in planned moves: to another route while nothing is wrong with the present
//! one, because a peer of it wants to leave, or because another is faster. Whoever is new gets ready
//! under an epoch of its own while the session runs: it loads its layers, goes live, and is given the
//! KV cache up to a few positions, by the peer that has the same layers or as a prompt. Then, between
//! two tokens, the other stages follow into the new epoch, and all go on together.
//!
//! Until then a move may come to nothing at any time, and nobody notices; after that, what fails is
//! a fault like any other.

use std::ops::Range;

use accel_p2p::PeerId;

use super::steps::InFlight;
use super::{Machine, Phase};
use crate::planner::Progress;
use crate::session::event::{Command, RouteStage, StageReport, Timer};
use crate::session::rebuild::Source;

/// Positions that a newcomer is given at once: so few that the others hardly wait for them.
const ROWS: u64 = 64;
/// So many may be lacking when the others follow: they are computed with the next token.
const FEW: u64 = 8;
/// Tokens that must be to come.
const WORTHWHILE: u64 = 16;

/// A route that is got ready while the session runs on another.
#[derive(Debug)]
pub(super) struct Move {
    epoch: u64,
    route: Vec<RouteStage>,
    newcomers: Vec<Newcomer>,
    /// Whether they are asked to go live, and then, whether they have what they need.
    committing: bool,
    /// Whether the present route may not answer any more: then nobody waits for it.
    race: bool,
    ready: bool,
    feeding: Option<InFlight>,
}

/// A stage of the new route that is to be got ready.
#[derive(Debug)]
pub(super) struct Newcomer {
    stage: usize,
    /// The stage of the present route that has the same layers.
    giver: Option<usize>,
    report: Option<StageReport>,
    live: bool,
    /// Positions that it has.
    length: u64,
    /// Whether its peer goes on with its part of the present route meanwhile.
    beside: bool,
}

impl Move {
    pub(super) fn is_race(&self) -> bool {
        self.race
    }

    fn newcomer(&mut self, stage: usize) -> Option<&mut Newcomer> {
        let mut all = self.newcomers.iter_mut();
        all.find(|newcomer| newcomer.stage == stage)
    }

    /// The last of the newcomers, if no other stage is before them.
    fn front(&self) -> Option<usize> {
        let last = self.newcomers.len().checked_sub(1)?;
        let stages = self.newcomers.iter().map(|newcomer| newcomer.stage);
        stages.eq(0..=last).then_some(last)
    }

    fn has(&self, peer: PeerId) -> bool {
        let mut stages = self.newcomers.iter().map(|newcomer| newcomer.stage);
        stages.any(|stage| self.route.get(stage).map(|stage| stage.peer) == Some(peer))
    }
}

impl Machine {
    /// Whether a move would be worth it now, if there were somewhere to go.
    pub(crate) fn may_move(&self) -> bool {
        let is_at_rest = matches!(self.phase, Phase::Running)
            && self.feed.is_none()
            && self.moving.is_none()
            && !self.has_switched
            && !self.recovery.is_under_way();
        let is_worth_it = self.tokens() > 0 && self.progress().to_come >= WORTHWHILE;
        // Lanes are kept apart by whoever places them, and what others filled has no account.
        is_at_rest && is_worth_it && self.survives_a_loss() && !self.tolerance.witnessed
    }

    /// How far the session is.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            computed: self.opening.prompt.len() as u64 + self.tokens(),
            to_come: self.opening.max_new.saturating_sub(self.tokens()),
        }
    }

    pub(super) fn on_move_offered(&mut self, route: Vec<RouteStage>) {
        let newcomers = self.newcomers(&route).or_else(|| self.new_cut(&route));
        let newcomers = newcomers.filter(|_| self.may_move());
        if let Some(newcomers) = newcomers.filter(|newcomers| !newcomers.is_empty()) {
            self.get_ready(route, newcomers, false);
        }
    }

    /// Prepares the newcomers of a route under an epoch of their own.
    pub(super) fn get_ready(
        &mut self,
        route: Vec<RouteStage>,
        newcomers: Vec<Newcomer>,
        race: bool,
    ) {
        self.newest += 1;
        let epoch = self.newest;
        for newcomer in &newcomers {
            let Some(hop) = route.get(newcomer.stage).cloned() else {
                return;
            };
            if !newcomer.beside {
                self.hold(hop);
            }
            self.out.push(Command::Prepare {
                epoch,
                stage: newcomer.stage,
                keeps: false,
            });
        }
        self.moving = Some(Move {
            epoch,
            route,
            newcomers,
            committing: false,
            race,
            ready: false,
            feeding: None,
        });
    }

    /// Who is new in a route; none where somebody stays with other layers.
    pub(super) fn newcomers(&self, route: &[RouteStage]) -> Option<Vec<Newcomer>> {
        let mut newcomers = Vec::new();
        for (stage, hop) in route.iter().enumerate() {
            if self.route.contains(hop) {
                continue;
            }
            if self.route.iter().any(|known| known.peer == hop.peer) {
                return None;
            }
            let mut known = self.route.iter();
            newcomers.push(Newcomer {
                stage,
                giver: known.position(|known| known.layers == hop.layers),
                report: None,
                live: false,
                length: 0,
                beside: false,
            });
        }
        Some(newcomers)
    }

    /// The same where somebody stays with other layers: up to the last stage that is new, all are got ready
    /// anew, beside what their peers do for the present route, and are given the tokens.
    fn new_cut(&self, route: &[RouteStage]) -> Option<Vec<Newcomer>> {
        let last = route.iter().rposition(|hop| !self.route.contains(hop))?;
        let anew = route.iter().take(last + 1).enumerate();
        let newcomer = |(stage, hop): (usize, &RouteStage)| Newcomer {
            stage,
            giver: None,
            report: None,
            live: false,
            length: 0,
            beside: self.route.iter().any(|known| known.peer == hop.peer),
        };
        Some(anew.map(newcomer).collect())
    }

    /// Whether a peer is to have this stage beside the one that it has in the present route.
    pub(crate) fn is_beside(&self, epoch: u64, stage: usize) -> bool {
        let to = self.moving.as_ref().filter(|to| to.epoch == epoch);
        let mut newcomers = to.into_iter().flat_map(|to| &to.newcomers);
        newcomers.any(|newcomer| newcomer.stage == stage && newcomer.beside)
    }

    /// Whether a move is got ready.
    pub(crate) fn gets_ready(&self) -> bool {
        self.moving.is_some()
    }

    /// Whether an epoch is that of a move which is got ready.
    pub(super) fn moves_to(&self, epoch: u64) -> bool {
        self.moving.as_ref().is_some_and(|to| to.epoch == epoch)
    }

    pub(super) fn newcomer_prepared(&mut self, stage: usize, report: StageReport) {
        let Some(to) = self.moving.as_mut().filter(|to| !to.committing) else {
            return;
        };
        if let Some(newcomer) = to.newcomer(stage) {
            newcomer.report = Some(report);
        }
        if to
            .newcomers
            .iter()
            .any(|newcomer| newcomer.report.is_none())
        {
            return;
        }
        to.committing = true;
        let epoch = to.epoch;
        for newcomer in &to.newcomers {
            let giver = newcomer.giver.and_then(|giver| self.route.get(giver));
            self.out.push(Command::Commit {
                epoch,
                stage: newcomer.stage,
                length: 0,
                donor: giver.map(|giver| giver.peer),
            });
        }
    }

    pub(super) fn newcomer_committed(&mut self, stage: usize) {
        let Some(to) = &mut self.moving else {
            return;
        };
        if let Some(newcomer) = to.newcomer(stage) {
            newcomer.live = true;
        }
        if !to.newcomers.iter().all(|newcomer| newcomer.live) {
            return;
        }
        match to.race {
            true => {
                to.ready = true;
                self.follow();
            }
            false => self.feed_newcomers(),
        }
    }

    /// Sends newcomers the next positions that they lack, or finds that they have enough.
    fn feed_newcomers(&mut self) {
        let settled = self.settled();
        let next = self.next_feed(settled);
        let Some(to) = self.moving.as_mut().filter(|to| to.feeding.is_none()) else {
            return;
        };
        let Some((source, until, positions)) = next else {
            to.ready = true;
            return self.forward();
        };
        self.step += 1;
        let sent = InFlight::feed(self.step, positions, source, until);
        let (epoch, step) = (to.epoch, self.step);
        to.feeding = Some(sent);
        self.out.push(self.command(epoch, sent));
        self.out.push(Command::Arm(Timer::Feed { epoch, step }));
    }

    /// Positions that all stages have for good, for all that is known here.
    fn settled(&self) -> u64 {
        let oldest = self.in_flight.front();
        oldest.map_or(self.sent, InFlight::position) as u64
    }

    /// What a newcomer is to be given next, by whom, and which stage is the last to take it.
    fn next_feed(&self, settled: u64) -> Option<(Source, usize, Range<usize>)> {
        let to = self.moving.as_ref()?;
        let lacks = |newcomer: &&Newcomer| newcomer.length + FEW < settled;
        let is_given =
            self.opening.kv_bytes > 0 && to.newcomers.iter().all(|new| new.giver.is_some());
        let (newcomer, source, until, most) = match (is_given, to.front()) {
            (true, _) => {
                let newcomer = to.newcomers.iter().find(lacks)?;
                let number = to.route.len() + newcomer.giver?;
                let layers = to.route.get(newcomer.stage)?.layers.len();
                let most = self.rows_within(layers).min(ROWS);
                (newcomer, Source::Cache(number), newcomer.stage, most)
            }
            (false, Some(last)) => {
                let newcomer = to.newcomers.iter().find(lacks)?;
                (newcomer, Source::Tokens, last, ROWS)
            }
            // Those in between are given what they lack once the others have followed.
            (false, None) => return None,
        };
        let end = settled.min(newcomer.length + most);
        Some((source, until, newcomer.length as usize..end as usize))
    }

    pub(super) fn newcomer_applied(&mut self, step: u64, stage: usize) {
        let Some(to) = &mut self.moving else {
            return;
        };
        let Some(done) = to.feeding.take_if(|fed| fed.is_answer(step, stage)) else {
            return;
        };
        let is_fed = |newcomer: &&mut Newcomer| match done.feeds_one() {
            true => newcomer.stage == stage,
            false => newcomer.stage <= stage,
        };
        for newcomer in to.newcomers.iter_mut().filter(is_fed) {
            newcomer.length = done.end() as u64;
        }
        self.feed_newcomers();
    }

    pub(super) fn on_feed_timeout(&mut self, epoch: u64, step: u64) {
        let is_it =
            |to: &Move| to.epoch == epoch && to.feeding.is_some_and(|fed| fed.is_step(step));
        if self.moving.as_ref().is_some_and(is_it) {
            self.drop_move();
        }
    }

    /// It comes to nothing; whoever was got ready for it is told.
    pub(super) fn drop_move(&mut self) {
        let Some(to) = self.moving.take() else {
            return;
        };
        let epoch = to.epoch;
        for newcomer in &to.newcomers {
            let Some(stage) = to.route.get(newcomer.stage).cloned() else {
                continue;
            };
            if newcomer.beside {
                self.out.push(Command::Leave { epoch, stage });
                continue;
            }
            self.holders.retain(|holder| holder.peer != stage.peer);
            self.out.push(Command::Release { epoch, stage });
        }
        let cut_anew = to.newcomers.iter().any(|newcomer| newcomer.beside);
        self.out.push(Command::MoveDropped { cut_anew });
    }

    /// A peer is gone that a move needs.
    pub(super) fn newcomer_lost(&mut self, peer: PeerId) {
        if self.moving.as_ref().is_some_and(|to| to.has(peer)) {
            self.drop_move();
        }
    }

    /// Between two tokens, when the newcomers are ready, the others follow. Whether they do now.
    pub(super) fn follow(&mut self) -> bool {
        let runs = matches!(self.phase, Phase::Running);
        let is_between = self.in_flight.is_empty();
        let may = |to: &mut Move| to.ready && runs && (is_between || to.race);
        let Some(to) = self.moving.take_if(may) else {
            return false;
        };
        if self.sent > 0 {
            self.recovery.was_given(self.sent as u64);
        }
        self.has_switched = true;
        let before = self.route.iter().map(|stage| stage.peer).collect();
        let cuts_anew = to.newcomers.iter().any(|newcomer| newcomer.beside);
        self.out.push(Command::Switching { before, cuts_anew });
        self.leave_behind(&to);
        (self.epoch, self.route) = (to.epoch, to.route);
        self.begin_epoch();
        let mut ready = vec![false; self.route.len()];
        for newcomer in to.newcomers {
            if let Some(slot) = ready.get_mut(newcomer.stage) {
                *slot = true;
            }
            let mut report = newcomer.report.unwrap_or_default();
            report.cached = newcomer.length;
            self.reports.insert(newcomer.stage, report);
            self.arrived.insert(newcomer.stage, newcomer.length);
        }
        let epoch = self.epoch;
        for (stage, hop) in self.route.clone().into_iter().enumerate() {
            if !self.arrived.contains_key(&stage) {
                self.hold(hop);
                self.out.push(Command::Prepare {
                    epoch,
                    stage,
                    keeps: true,
                });
            }
        }
        let all_ready = ready.iter().all(|ready| *ready);
        self.phase = Phase::Placing { ready };
        if all_ready {
            self.commit();
        }
        true
    }

    /// Of peers that have two stages, the old ones are not needed once the new route runs.
    fn leave_behind(&mut self, to: &Move) {
        let epoch = self.epoch;
        for newcomer in to.newcomers.iter().filter(|newcomer| newcomer.beside) {
            let Some(hop) = to.route.get(newcomer.stage).cloned() else {
                continue;
            };
            let mut route = self.route.iter();
            if let Some(old) = route.find(|old| old.peer == hop.peer).cloned() {
                self.left_behind.push((epoch, old));
            }
            self.hold(hop);
        }
    }

    /// The new route runs.
    pub(super) fn leave_old_stages(&mut self) {
        for (epoch, stage) in std::mem::take(&mut self.left_behind) {
            self.out.push(Command::Release { epoch, stage });
        }
    }

    /// Whether those that came before the others have just what is to be gone on from.
    pub(super) fn have_arrived(&self, lengths: &[u64]) -> bool {
        let mut arrived = self.arrived.iter();
        arrived.all(|(stage, length)| lengths.get(*stage) == Some(length))
    }

    /// The first token behind a move came.
    pub(super) fn moved(&mut self) {
        if std::mem::take(&mut self.has_switched) {
            self.arrived.clear();
            self.out.push(Command::Moved);
        }
    }

    /// Everyone whose lease is to be renewed, each under its epoch.
    pub(crate) fn leased(&self) -> Vec<(PeerId, u64)> {
        let stages = self.route.iter().map(|stage| (stage.peer, self.epoch));
        let newcomers = self.moving.iter().flat_map(|to| {
            let stages = to
                .newcomers
                .iter()
                .filter_map(|new| to.route.get(new.stage));
            stages.map(|stage| (stage.peer, to.epoch))
        });
        stages.chain(newcomers).collect()
    }

    /// Who computes what under an epoch: the present one, or that of a move.
    pub(crate) fn route_of(&self, epoch: u64) -> &[RouteStage] {
        match self.moving.as_ref().filter(|to| to.epoch == epoch) {
            Some(to) => &to.route,
            None => &self.route,
        }
    }

    /// Who gives what it has under an epoch. Of these, the numbers are behind the route.
    pub(crate) fn donors_of(&self, epoch: u64) -> Vec<RouteStage> {
        match self.moving.as_ref().filter(|to| to.epoch == epoch) {
            Some(_) => self.route.clone(),
            None => self.givers.iter().map(|(giver, _)| giver.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
