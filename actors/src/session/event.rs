//! The vocabulary of the session machine.

use std::time::Duration;

use accel_inference::LayerRange;
use accel_p2p::PeerId;

use super::recovery::wager::Wager;
use super::recovery::{FaultKind, Remedy};
use crate::error::Failure;
use crate::planner::Weighed;
use crate::request::FinishReason;

/// Who computes which layers, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteStage {
    pub(crate) peer: PeerId,
    pub(crate) layers: LayerRange,
}

/// What a stage reports once it is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StageReport {
    pub(crate) bytes_fetched: u64,
    pub(crate) blocks_fetched: u64,
    /// Positions that its KV cache holds already.
    pub(crate) cached: u64,
    /// Positions whose outputs it can send again.
    pub(crate) outputs: u64,
    /// Nanoseconds that it takes for a position of a prompt; 0 when that was not measured.
    pub(crate) prefill_ns: u64,
    /// Bytes per second at which large frames come to it; 0 when that was not measured.
    pub(crate) plane_bytes_s: u64,
}

/// What happened. Stages are named by their index in the route of their epoch; whatever belongs
/// to an older epoch has no effect.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The opening record, or the claim, is durable.
    Opened,
    /// A route to replace the one of this epoch was found, and what it was weighed against.
    Planned {
        epoch: u64,
        route: Vec<RouteStage>,
        weighed: Option<Weighed>,
    },
    /// Who could stand in for a peer of this epoch that may only be slow, and what that is worth.
    StandInsFound {
        epoch: u64,
        route: Vec<RouteStage>,
        wager: Wager,
    },
    /// A route that is better than the present one, or without a peer that wants to leave.
    MoveOffered { route: Vec<RouteStage> },
    /// There is no other route.
    NoPlan { epoch: u64, failure: Failure },
    /// A stage is reserved, fetched and loaded.
    Prepared {
        epoch: u64,
        stage: usize,
        report: StageReport,
    },
    /// A stage went live.
    Committed { epoch: u64, stage: usize },
    /// A stage refused to prepare or to commit, or could not be asked.
    Refused {
        epoch: u64,
        stage: usize,
        failure: Failure,
    },
    /// The last stage of a step that draws no token applied it.
    Applied { epoch: u64, step: u64, stage: usize },
    /// The last stage drew a token.
    Token {
        epoch: u64,
        step: u64,
        position: u64,
        drawn: Drawn,
    },
    /// A stage could not carry out a step.
    StepFailed {
        epoch: u64,
        culprit: Option<PeerId>,
        failure: Failure,
    },
    /// A stage cannot be reached: by this node, or by the stage before it.
    Unreachable {
        epoch: u64,
        peer: PeerId,
        failure: Failure,
    },
    /// Peers of the route are not to be believed: one of them lied, or two of them say different things
    /// of what went from one to the other.
    Distrusted {
        epoch: u64,
        peers: Vec<PeerId>,
        kind: FaultKind,
        failure: Failure,
    },
    /// The session cannot go on here, for this reason.
    GiveUp(Failure),
    /// The token of this index is durable.
    Journaled { index: u64 },
    /// Peers that may keep the journal, the best first.
    ReplicasFound { peers: Vec<PeerId> },
    /// A peer has so many tokens, durably; it may be none yet.
    Replicated { peer: PeerId, tokens: u64 },
    /// A peer keeps the journal no longer.
    ReplicaLost { peer: PeerId, failure: Failure },
    /// The journal cannot be written.
    JournalFailed(Failure),
    /// The client has taken the token of this index.
    Emitted { index: u64 },
    /// The connection to a peer is gone.
    PeerLost(PeerId),
    /// A peer said something new about itself.
    PeerHeard(PeerId),
    /// A timer ran out.
    Timeout(Timer),
    /// The client is gone.
    Cancel,
    /// The session is to stop here, for this reason; somebody may go on with it.
    Suspend(Failure),
    /// The node stops: a peer is to have the session, so that somebody can go on with it.
    HandOver,
    /// A stage knows a newer coordinator of the session.
    Deposed,
}

/// A token as it was drawn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// What the machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Peers that may give their KV caches, once all stages are prepared.
    Givers { epoch: u64 },
    /// All stages to be live, once all are prepared.
    Commit { epoch: u64 },
    /// Other sessions to give back the memory that this one needs.
    Memory { epoch: u64 },
    /// Peers that can take over for those that were lost.
    Peers { epoch: u64 },
    /// The answer to the oldest step under way, of this many positions.
    Step { epoch: u64, step: u64, rows: u32 },
    /// What a stage was given that is to be moved to.
    Feed { epoch: u64, step: u64 },
    /// Peers that can keep the journal.
    Replicas,
    /// The time before an attempt to go on.
    Pause { epoch: u64, after: Duration },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    /// Write the opening record.
    JournalOpen,
    /// Take over a session that is in the journal, above every claim before.
    JournalClaim { claim: u64 },
    /// Find a route to replace the one of this epoch, without these peers: the cheaper of one that keeps
    /// what is loaded and of the best there is; or just the best.
    Plan {
        epoch: u64,
        excluding: Vec<PeerId>,
        anew: bool,
    },
    /// Phase one, to one stage, which may keep the KV cache that it has. Numbers behind the route
    /// are peers that only give theirs.
    Prepare {
        epoch: u64,
        stage: usize,
        keeps: bool,
    },
    /// Phase two, to one stage, which goes on from so many positions.
    Commit {
        epoch: u64,
        stage: usize,
        length: u64,
        /// Who may give it rows of its KV cache.
        donor: Option<PeerId>,
    },
    /// Give up what was prepared under the epoch; a KV cache may stay for the next.
    Abort { epoch: u64, stage: RouteStage },
    /// The session needs the stage no more.
    Release { epoch: u64, stage: RouteStage },
    /// Send a step to the first stage.
    Forward {
        epoch: u64,
        step: u64,
        position: u64,
        sample: bool,
        /// The last stage that applies it.
        until: usize,
        tokens: Vec<u32>,
    },
    /// Have a stage send outputs that it kept into those behind it.
    Replay {
        epoch: u64,
        step: u64,
        stage: usize,
        position: u64,
        rows: u32,
        /// The last stage that applies it.
        until: usize,
    },
    /// Have a peer give rows of its KV cache to a stage.
    Copy {
        epoch: u64,
        step: u64,
        /// Its number, behind the route.
        donor: usize,
        stage: usize,
        position: u64,
        rows: u32,
    },
    /// Forget the ways to the stages: the next step finds new ones.
    Reconnect { epoch: u64 },
    /// A fault happened, and the session goes on like this.
    Recovering {
        fault: FaultKind,
        strategy: &'static str,
        remedy: Remedy,
        /// Positions that the stages compute again.
        replayed: u64,
        reason: String,
    },
    /// The new route keeps what is loaded, or does not, by what both would take.
    Weighed {
        strategy: &'static str,
        weighed: Weighed,
    },
    /// Find out who could stand in for peers that may only be slow, without these; the present route was
    /// asked again for a step of so many rows. No answer means that nobody can.
    FindStandIns {
        epoch: u64,
        rows: u32,
        excluding: Vec<PeerId>,
    },
    /// Stand-ins get ready beside the present route, or do not, by what that is worth.
    Wagered {
        strategy: &'static str,
        races: bool,
        wager: Wager,
    },
    /// The stages of the new epoch get the KV caches that they lack like this.
    Rebuilding {
        way: &'static str,
        /// What each way would take that is possible.
        prices: Vec<(&'static str, Duration)>,
        /// Positions that stages had been given and compute again.
        replayed: u64,
    },
    /// A peer need not keep what it got ready under just this epoch; what it does for others stays.
    Leave { epoch: u64, stage: RouteStage },
    /// The first token after a fault came.
    Recovered,
    /// Between two tokens, the session goes over to the route that was got ready.
    Switching {
        before: Vec<PeerId>,
        /// Whether peers that stay have other layers there.
        cuts_anew: bool,
    },
    /// The first token from there came.
    Moved,
    /// A route that was got ready is not gone over to; whether peers that stay were to have other layers.
    MoveDropped { cut_anew: bool },
    /// Make a token durable.
    JournalToken { index: u64, drawn: Drawn },
    /// Find peers that can keep the journal, without these.
    FindReplicas { excluding: Vec<PeerId> },
    /// Have a peer keep the journal, from the beginning, under this claim.
    OpenReplica { peer: PeerId, claim: u64 },
    /// A peer need not keep the journal any more.
    DropReplica { peer: PeerId },
    /// Give a token to the client.
    Emit {
        index: u64,
        text: String,
        drawn: Drawn,
    },
    /// Start a timer; it replaces the one before.
    Arm(Timer),
    /// Journal the outcome and tell the client; nothing follows.
    Close(Outcome),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// With its full answer.
    Done {
        finish: FinishReason,
        completion_tokens: u64,
        text_tail: String,
    },
    /// With an error.
    Failed(Failure),
    /// Because nobody wants the answer any more.
    Cancelled,
    /// Not yet: its journal stays open for whoever comes back. The present client is told this.
    Suspended(Failure),
    /// Not here: other nodes have it, for whoever comes back. The present client is told this.
    HandedOver(Failure),
    /// Not here: another coordinator goes on with it. The present client is told this.
    Moved(Failure),
}
