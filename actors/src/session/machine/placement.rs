//! The machine's placements: in two phases, over one route or, when that is refused, over another.

use accel_p2p::PeerId;

use super::{Machine, Phase};
use crate::error::{ErrorKind, Failure, PEER_SILENT, SESSION_MOVED};
use crate::planner::Weighed;
use crate::session::event::{Command, RouteStage, StageReport, Timer};
use crate::session::recovery::{Fault, FaultKind};

/// The code of failures because a stage does not go live.
const COMMIT_TIMEOUT: &str = "commit_timeout";
/// Placements that are tried in a row before a session waits or gives up.
const PLACEMENTS: u32 = 3;
/// How often a session waits for memory that others hold before it gives up.
pub(crate) const WAITS: u32 = 20;
/// How often a session that lost a peer looks for others before it gives up.
pub(crate) const PEER_WAITS: u32 = 60;
/// A call that nobody answers counts for as many of these as it lasts.
const SILENT_CALL: u32 = 16;

impl Machine {
    pub(super) fn on_opened(&mut self) {
        if !matches!(self.phase, Phase::Opening) {
            return;
        }
        self.begin_replicas();
        match self.resumed.is_some() {
            true => self.go_on(),
            false => self.place(),
        }
    }

    pub(super) fn on_planned(
        &mut self,
        epoch: u64,
        route: Vec<RouteStage>,
        weighed: Option<Weighed>,
    ) {
        if matches!(self.phase, Phase::Planning) && epoch == self.epoch {
            if let Some(weighed) = weighed {
                self.choose_strategy(weighed);
            }
            self.route = route;
            self.place();
        }
    }

    pub(super) fn on_no_plan(&mut self, epoch: u64, failure: Failure) {
        if matches!(self.phase, Phase::Planning) && epoch == self.epoch {
            if self.pardons_suspects() {
                return self.plan(false);
            }
            let refusal = self.refusal.take().unwrap_or(failure);
            self.wait_or_fail(refusal);
        }
    }

    /// Nothing else is left to try. Who waits for memory holds none meanwhile, so that those who
    /// wait never wait for each other; who waits for peers keeps KV caches as long as leases last.
    fn wait_or_fail(&mut self, refusal: Failure) {
        let epoch = self.epoch;
        if self.recovery.is_under_way() {
            if self.waits >= PEER_WAITS {
                return self.fail(self.no_stand_in(&refusal));
            }
            if refusal.kind == ErrorKind::Overloaded {
                self.release_all();
            }
            return self.wait(Timer::Peers { epoch });
        }
        if self.survives_a_loss() && is_loss(&refusal) {
            // It was planned with peers that were there: the answer has begun, though not yet a token of it.
            return self.recover(Fault {
                kind: FaultKind::PeerLost,
                culprit: self.excluded.last().copied(),
                failure: refusal,
            });
        }
        if refusal.kind != ErrorKind::Overloaded || self.waits >= WAITS {
            return self.fail(refusal);
        }
        self.release_all();
        self.wait(Timer::Memory { epoch });
    }

    fn wait(&mut self, timer: Timer) {
        self.waits += 1;
        self.phase = Phase::Waiting;
        self.out.push(Command::Arm(timer));
    }

    /// Everyone may be asked anew: what was refused before may be granted now.
    pub(super) fn place_again(&mut self, anew: bool) {
        self.forget_refusals();
        self.phase = Phase::Planning;
        self.plan(anew);
    }

    /// Over the same route once more.
    pub(super) fn restart(&mut self) {
        self.forget_refusals();
        self.place();
    }

    fn forget_refusals(&mut self) {
        self.placements = 0;
        self.excluded.clear();
        self.refusal = None;
    }

    pub(super) fn plan(&mut self, anew: bool) {
        let anew = anew || self.recovery.plans_anew();
        let epoch = self.epoch;
        let mut excluding: Vec<PeerId> = self.unwanted().collect();
        excluding.sort();
        excluding.dedup();
        self.out.push(Command::Plan {
            epoch,
            excluding,
            anew,
        });
    }

    /// Opens a new epoch over the route.
    fn place(&mut self) {
        // Whoever is prepared anew has nothing else of the session then.
        self.left_behind.clear();
        self.newest += 1;
        self.epoch = self.newest;
        self.placements += 1;
        self.begin_epoch();
        self.phase = Phase::Placing {
            ready: vec![false; self.route.len()],
        };
        let (epoch, keeps) = (self.epoch, self.may_keep());
        self.find_givers();
        for (stage, hop) in self.route.clone().into_iter().enumerate() {
            self.hold(hop);
            self.out.push(Command::Prepare {
                epoch,
                stage,
                keeps,
            });
        }
        for giver in 0..self.givers.len() {
            self.out.push(Command::Prepare {
                epoch,
                stage: self.route.len() + giver,
                keeps,
            });
        }
    }

    /// Nothing is known of the stages of an epoch that begins.
    pub(super) fn begin_epoch(&mut self) {
        self.reports.clear();
        self.arrived.clear();
        self.givers.clear();
        self.waits_for_givers = false;
        self.forget_steps();
    }

    /// Whoever is asked for a stage is told when that ends.
    pub(super) fn hold(&mut self, hop: RouteStage) {
        self.holders.retain(|holder| holder.peer != hop.peer);
        self.holders.push(hop);
    }

    pub(super) fn on_prepared(&mut self, epoch: u64, stage: usize, report: StageReport) {
        if self.moves_to(epoch) {
            return self.newcomer_prepared(stage, report);
        }
        let Phase::Placing { ready } = &mut self.phase else {
            return;
        };
        if epoch != self.epoch {
            return;
        }
        if let Some(slot) = ready.get_mut(stage) {
            *slot = true;
        }
        self.reports.insert(stage, report);
        self.commit_when_ready(false);
    }

    /// Goes on once all stages are ready. Those that may give something have a moment to say so.
    pub(super) fn commit_when_ready(&mut self, is_overdue: bool) {
        let Phase::Placing { ready } = &self.phase else {
            return;
        };
        if !ready.iter().all(|ready| *ready) {
            return;
        }
        if is_overdue || !self.lacks_givers() {
            return self.commit();
        }
        if !self.waits_for_givers {
            self.waits_for_givers = true;
            let epoch = self.epoch;
            self.out.push(Command::Arm(Timer::Givers { epoch }));
        }
    }

    pub(super) fn commit(&mut self) {
        let epoch = self.epoch;
        let lengths = self.plan_rebuild();
        if !self.have_arrived(&lengths) {
            // They were got ready for more than the others have: all begin anew, from what they keep.
            return self.place();
        }
        let stages = 0..self.route.len();
        let live = stages.map(|stage| self.arrived.contains_key(&stage));
        self.phase = Phase::Committing {
            live: live.collect(),
        };
        self.out.push(Command::Arm(Timer::Commit { epoch }));
        for (stage, length) in lengths.into_iter().enumerate() {
            if self.arrived.contains_key(&stage) {
                continue;
            }
            let donor = self.donor_of(stage);
            self.out.push(Command::Commit {
                epoch,
                stage,
                length,
                donor,
            });
        }
        self.run_if_live();
    }

    pub(super) fn on_committed(&mut self, epoch: u64, stage: usize) {
        if self.moves_to(epoch) {
            return self.newcomer_committed(stage);
        }
        let Phase::Committing { live } = &mut self.phase else {
            return;
        };
        let Some(slot) = live.get_mut(stage).filter(|_| epoch == self.epoch) else {
            return;
        };
        *slot = true;
        self.run_if_live();
    }

    fn run_if_live(&mut self) {
        let Phase::Committing { live } = &self.phase else {
            return;
        };
        if live.iter().all(|live| *live) {
            self.phase = Phase::Running;
            self.ran_over.clone_from(&self.route);
            self.leave_old_stages();
            if self.feed.is_none() {
                self.release_others();
            }
            self.forward();
        }
    }

    pub(super) fn on_refused(&mut self, epoch: u64, stage: usize, failure: Failure) {
        if self.moves_to(epoch) {
            return match failure.code == SESSION_MOVED {
                true => self.depose(),
                false => self.drop_move(),
            };
        }
        let placing = matches!(self.phase, Phase::Placing { .. } | Phase::Committing { .. });
        if epoch != self.epoch || !placing {
            return;
        }
        let Some(peer) = self.route.get(stage).map(|stage| stage.peer) else {
            return self.giver_refused(stage);
        };
        if failure.code == SESSION_MOVED {
            return self.depose();
        }
        self.placement_failed(peer, failure);
    }

    /// Aborts the epoch on every stage, then looks for a route without the culprit, if that may
    /// help: what is wrong with the request itself is wrong everywhere.
    pub(super) fn placement_failed(&mut self, culprit: PeerId, failure: Failure) {
        if self.has_switched {
            // Nothing was wrong with the route before; but it is given up already.
            self.abort_all();
            self.phase = Phase::Planning;
            return self.recover(Fault {
                kind: FaultKind::PlacementFailed,
                culprit: Some(culprit),
                failure,
            });
        }
        if !self.another_may_help(&failure) {
            return self.fail(failure);
        }
        self.abort_all();
        self.phase = Phase::Planning;
        if self.recovery.is_under_way() && self.keeps_peers() {
            return self.recover(Fault {
                kind: FaultKind::PlacementFailed,
                culprit: Some(culprit),
                failure,
            });
        }
        self.excluded.push(culprit);
        if self.recovery.is_under_way() && is_silence(&failure) {
            self.waits += SILENT_CALL;
            self.recovery.suspect(culprit);
        }
        let refusal = self.refusal_to_tell(failure);
        if self.placements >= PLACEMENTS {
            return self.wait_or_fail(refusal);
        }
        self.refusal = Some(refusal);
        self.plan(false);
    }

    /// A request that was computed before is no bad one, and content that was there comes back.
    fn another_may_help(&self, failure: &Failure) -> bool {
        match failure.kind {
            ErrorKind::Unavailable | ErrorKind::Overloaded => true,
            ErrorKind::NotFound | ErrorKind::Internal => self.recovery.is_under_way(),
            ErrorKind::BadRequest | ErrorKind::Conflict => false,
        }
    }

    /// The first refusal, unless the newest will pass and it will not: then waiting helps.
    fn refusal_to_tell(&mut self, newest: Failure) -> Failure {
        let passes = |refusal: &Failure| refusal.kind == ErrorKind::Overloaded;
        match self.refusal.take() {
            Some(first) if passes(&first) || !passes(&newest) => first,
            _ => newest,
        }
    }

    /// Gives the epoch up. Whoever had something of the session before keeps it.
    fn abort_all(&mut self) {
        let epoch = self.epoch;
        for stage in self.route.clone() {
            if !self.has_computed {
                self.holders.retain(|holder| holder.peer != stage.peer);
            }
            self.out.push(Command::Abort { epoch, stage });
        }
    }

    pub(super) fn on_commit_timeout(&mut self) {
        let Phase::Committing { live } = &self.phase else {
            return;
        };
        let silent = live.iter().position(|live| !live).unwrap_or(0);
        let Some(peer) = self.route.get(silent).map(|stage| stage.peer) else {
            return;
        };
        let message = format!("peer {peer} did not commit its stage in time");
        let hint = "send the request again; the peer may be overloaded or cut off";
        let failure = Failure::unavailable(COMMIT_TIMEOUT, message, hint);
        self.placement_failed(peer, failure);
    }
}

/// Whether a peer of the route is gone, or cannot be reached.
fn is_loss(failure: &Failure) -> bool {
    ["peer_lost", "peer_unreachable", PEER_SILENT].contains(&failure.code.as_str())
}

/// Whether a peer said nothing, for as long as that may take: it may hang.
fn is_silence(failure: &Failure) -> bool {
    [PEER_SILENT, COMMIT_TIMEOUT].contains(&failure.code.as_str())
}
