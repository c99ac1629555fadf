//! The machine's part in a recovery: it asks the strategy what to do about a fault, and does it.
//! A recovery lasts from the fault to the next token, whatever else happens in between.

use std::time::Duration;

use accel_p2p::PeerId;

use super::{Machine, Phase};
use crate::error::Failure;
use crate::planner::Weighed;
use crate::session::event::{Command, RouteStage, Timer};
use crate::session::rebuild::Way;
use crate::session::recovery::{Attempt, Decision, Fault, FaultKind, Remedy, Strategy, by_price};

/// How much a session survives.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    /// What decides about faults; without one, every fault ends the session.
    pub(crate) strategy: Option<&'static dyn Strategy>,
    /// Differs from session to session.
    pub(crate) salt: u64,
    /// How long the session waits for peers that could take over.
    pub(crate) peer_wait: Duration,
    /// Whether a client may come back for the answer.
    pub(crate) resumable: bool,
    /// How many other peers have a token before it is emitted.
    pub(crate) replicas: usize,
    /// The way in which KV caches are to be rebuilt where that is possible, instead of the
    /// cheapest: for measurements.
    pub(crate) rebuild: Option<&'static dyn Way>,
    /// Whether stages sign what they compute: then each computes all of it, and none is given rows of
    /// a KV cache.
    pub(crate) witnessed: bool,
}

/// What follows a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Steps are sent again to the stages, which are held meanwhile. Where they may only be slow, stand-ins
    /// are looked for.
    Resume { looks: bool },
    /// The route is placed again; its stages are held meanwhile, unless they were given up.
    Restart { holds: bool },
    /// Another route is looked for, with nothing held.
    FailOver { anew: bool },
}

impl Then {
    pub(super) fn holds_stages(self) -> bool {
        matches!(self, Self::Resume { .. } | Self::Restart { holds: true })
    }
}

/// What the machine remembers of faults.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// Attempts to go on since the last token.
    attempts: u32,
    /// Peers that are gone, until they are heard of again.
    lost: Vec<PeerId>,
    /// What decides until the next token, if another strategy than the usual one was cheaper.
    leader: Option<&'static dyn Strategy>,
    /// Peers that did not do their part, until a token comes or nobody else is there.
    suspects: Vec<PeerId>,
    /// Peers that were to give their KV caches when something failed, until a token comes.
    bad_givers: Vec<PeerId>,
    /// The last fault, in words.
    reason: String,
    /// Positions that stages had been given before it.
    given: u64,
}

impl Recovery {
    /// A session that was interrupted begins as one that lost everybody.
    pub(super) fn interrupted(reason: &str, given: u64) -> Self {
        Self {
            attempts: 1,
            reason: reason.to_owned(),
            given,
            ..Self::default()
        }
    }

    /// Whether what is loaded counts for nothing until the next token.
    pub(super) fn plans_anew(&self) -> bool {
        self.leader.is_some_and(|leader| leader.plans_anew())
    }

    /// Who decides until the next token.
    pub(super) fn led_by(&mut self, leader: Option<&'static dyn Strategy>) {
        self.leader = leader;
    }

    /// Whether a fault happened after the last token.
    pub(super) fn is_under_way(&self) -> bool {
        self.attempts > 0
    }

    /// Attempts to go on since the last token.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Positions that stages had been given before the fault.
    pub(super) fn given(&self) -> u64 {
        self.given
    }

    /// Everyone who is not to be planned with.
    pub(super) fn excluded(&self) -> impl Iterator<Item = PeerId> {
        self.lost.iter().chain(&self.suspects).copied()
    }

    /// Stages have so many positions.
    pub(super) fn was_given(&mut self, positions: u64) {
        self.given = positions;
    }

    /// Whether a KV cache may be taken from a peer.
    pub(super) fn takes_from(&self, peer: PeerId) -> bool {
        !self.lost.contains(&peer) && !self.bad_givers.contains(&peer)
    }

    pub(super) fn lose(&mut self, peer: PeerId) {
        if !self.lost.contains(&peer) {
            self.lost.push(peer);
        }
    }

    /// A peer that is lost comes back with its next advert; suspicion would last longer.
    pub(super) fn suspect(&mut self, peer: PeerId) {
        if !self.suspects.contains(&peer) && !self.lost.contains(&peer) {
            self.suspects.push(peer);
        }
    }
}

impl Machine {
    pub(super) fn on_peer_lost(&mut self, peer: PeerId) {
        self.replica_gone(peer);
        self.newcomer_lost(peer);
        let stage = self.route.iter().find(|stage| stage.peer == peer);
        let Some(stage) = stage.cloned().or_else(|| self.giver_in_use(peer)) else {
            return self.giver_lost(peer);
        };
        let failure = left(&stage);
        self.recovery.lose(peer);
        match self.phase {
            Phase::Placing { .. } | Phase::Committing { .. } => {
                self.placement_failed(peer, failure);
            }
            Phase::Running => self.fault(FaultKind::PeerLost, Some(peer), failure),
            Phase::Pausing(then) if then.holds_stages() && !self.keeps_peers() => {
                self.fault(FaultKind::PeerLost, Some(peer), failure);
            }
            // What comes next is planned without it, or finds out.
            Phase::Opening | Phase::Planning | Phase::Waiting | Phase::Pausing(_) => {}
            Phase::HandingOver | Phase::Draining(_) | Phase::Ended => {}
        }
    }

    /// A peer that says something new is there, also if it was gone.
    pub(super) fn on_peer_heard(&mut self, peer: PeerId) {
        self.recovery.lost.retain(|lost| *lost != peer);
    }

    pub(super) fn on_unreachable(&mut self, epoch: u64, peer: PeerId, failure: Failure) {
        if self.moves_to(epoch) {
            return self.drop_move();
        }
        if epoch == self.epoch && matches!(self.phase, Phase::Running) {
            self.fault(FaultKind::PeerLost, Some(peer), failure);
        }
    }

    pub(super) fn on_step_failed(&mut self, epoch: u64, culprit: Option<PeerId>, failure: Failure) {
        if self.moves_to(epoch) {
            return self.drop_move();
        }
        if epoch == self.epoch && matches!(self.phase, Phase::Running) {
            self.fault(FaultKind::StepFailed, culprit, failure);
        }
    }

    pub(super) fn on_step_timeout(&mut self, step: u64) {
        if !self.waits_for(step) {
            return;
        }
        if self.is_racing() {
            // Stand-ins are on their way: the others may still be first.
            return self.send_again();
        }
        let message = format!("step {step} was not answered in time by the stages");
        let hint = "send the request again; a peer may be overloaded or cut off (`accel peers`)";
        let failure = Failure::unavailable("step_timeout", message, hint);
        self.fault(FaultKind::StepTimeout, None, failure);
    }

    fn fault(&mut self, kind: FaultKind, culprit: Option<PeerId>, failure: Failure) {
        self.recover(Fault {
            kind,
            culprit,
            failure,
        });
    }

    /// Asks the strategy, and does what it says.
    pub(super) fn recover(&mut self, fault: Fault) {
        let leader = self.recovery.leader.or(self.tolerance.strategy);
        let Some(strategy) = leader else {
            return self.fail(fault.failure);
        };
        let attempt = Attempt {
            number: self.recovery.attempts,
            salt: self.tolerance.salt,
        };
        match strategy.decide(&fault, attempt) {
            Decision::GiveUp(failure) => self.fail(failure),
            Decision::Try { remedy, after } => {
                let then = self.then(remedy, fault.kind);
                self.begin(strategy.name(), &fault, (remedy, then));
                self.pause(then, after);
            }
        }
    }

    /// The route after a loss was planned, with what is loaded or without regard to it.
    pub(super) fn choose_strategy(&mut self, weighed: Weighed) {
        let Some(usual) = self.tolerance.strategy else {
            return;
        };
        if !self.recovery.is_under_way() {
            return;
        }
        let strategy = by_price(usual, &weighed);
        if strategy.name() != usual.name() {
            self.recovery.leader = Some(strategy);
        }
        self.out.push(Command::Weighed {
            strategy: strategy.name(),
            weighed,
        });
    }

    pub(super) fn keeps_peers(&self) -> bool {
        let strategy = self.tolerance.strategy;
        strategy.is_some_and(|strategy| strategy.keeps_peers())
    }

    /// Whether the session may go on without peers that it was placed on.
    pub(super) fn survives_a_loss(&self) -> bool {
        let strategy = self.tolerance.strategy;
        strategy.is_some_and(|strategy| !strategy.keeps_peers())
    }

    /// What a remedy comes to where the session stands.
    fn then(&self, remedy: Remedy, fault: FaultKind) -> Then {
        let holds = self.holds_stages();
        match remedy {
            Remedy::Resume | Remedy::Race if holds => Then::Resume {
                looks: fault == FaultKind::StepTimeout,
            },
            Remedy::Resume | Remedy::Race | Remedy::Restart => Then::Restart { holds },
            Remedy::FailOver => Then::FailOver { anew: false },
            Remedy::Replan => Then::FailOver { anew: true },
        }
    }

    fn begin(&mut self, strategy: &'static str, fault: &Fault, (decided, then): (Remedy, Then)) {
        self.drop_move();
        self.doubt_nobody();
        self.has_switched = false;
        self.arrived.clear();
        self.recovery.attempts += 1;
        self.recovery.bad_givers.extend(self.source_of_rows());
        fault.failure.message.clone_into(&mut self.recovery.reason);
        if self.sent > 0 {
            self.recovery.given = self.sent as u64;
        }
        let (remedy, replayed) = match then {
            Then::Resume { .. } => (decided, 0),
            Then::Restart { .. } => (Remedy::Restart, self.sent),
            Then::FailOver { anew: false } => (Remedy::FailOver, self.sent),
            Then::FailOver { anew: true } => (Remedy::Replan, self.sent),
        };
        self.out.push(Command::Recovering {
            fault: fault.kind,
            strategy,
            remedy,
            replayed: replayed as u64,
            reason: self.recovery.reason.clone(),
        });
        let leaves = matches!(then, Then::FailOver { .. });
        if leaves {
            self.suspect(fault.culprit);
        }
        if leaves && !self.may_keep() {
            self.release_all();
        }
        if !matches!(then, Then::Resume { .. }) {
            self.forget_steps();
        }
    }

    /// Whoever is to blame is not planned with. When nobody knows who, everyone has a turn.
    fn suspect(&mut self, culprit: Option<PeerId>) {
        if let Some(peer) = self.next_suspect(culprit) {
            self.recovery.suspect(peer);
        }
    }

    pub(super) fn next_suspect(&self, culprit: Option<PeerId>) -> Option<PeerId> {
        let suspects = &self.recovery.suspects;
        let mut peers = self.route.iter().map(|stage| stage.peer);
        culprit.or_else(|| peers.find(|peer| !suspects.contains(peer)))
    }

    fn pause(&mut self, then: Then, after: Duration) {
        self.phase = Phase::Pausing(then);
        if after.is_zero() {
            return self.after_pause(then);
        }
        let epoch = self.epoch;
        self.out.push(Command::Arm(Timer::Pause { epoch, after }));
    }

    pub(super) fn after_pause(&mut self, then: Then) {
        match then {
            Then::Resume { looks } => {
                self.resume();
                if looks {
                    self.look_for_stand_ins();
                }
            }
            Then::Restart { .. } => self.restart(),
            Then::FailOver { anew } => self.place_again(anew),
        }
    }

    /// Over the same stages from what they have.
    fn resume(&mut self) {
        self.phase = Phase::Running;
        let epoch = self.epoch;
        self.out.push(Command::Reconnect { epoch });
        self.send_again();
        self.forward();
    }

    /// A token came: whatever was wrong is over.
    pub(super) fn made_progress(&mut self) {
        self.placements = 0;
        self.waits = 0;
        self.recovery.leader = None;
        self.moved();
        self.end_race();
        self.recovery.suspects.clear();
        self.recovery.bad_givers.clear();
        self.distrusts = false;
        if std::mem::take(&mut self.recovery.attempts) > 0 {
            self.out.push(Command::Recovered);
        }
    }

    /// Whether someone who did not do their part may be asked again, because nobody else is there.
    pub(super) fn pardons_suspects(&mut self) -> bool {
        let pardoned = !self.recovery.suspects.is_empty();
        self.recovery.suspects.clear();
        pardoned
    }

    /// Why the session ends when nobody takes over.
    pub(super) fn no_stand_in(&self, refusal: &Failure) -> Failure {
        let message = format!(
            "{}; nobody could take over within {} s: {}",
            self.recovery.reason,
            self.tolerance.peer_wait.as_secs(),
            refusal.message
        );
        let hint = "start another node, or the lost one again, and send the request again";
        Failure::unavailable("no_stand_in", message, hint)
    }
}

fn left(stage: &RouteStage) -> Failure {
    let RouteStage { peer, layers } = stage;
    let (first, last) = (layers.first, layers.end.saturating_sub(1));
    let message = format!("peer {peer}, which computes layers {first}-{last}, left the swarm");
    let hint = "send the request again: it is placed on the peers that remain";
    Failure::unavailable("peer_lost", message, hint)
}

#[cfg(test)]
mod tests;
