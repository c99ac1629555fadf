//! What peers say to each other, and what comes of it.

use accel_inference::LayerRange;
use accel_p2p::SignedClaim;

/// What a stage is told.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Prepare {
        call: u64,
        epoch: u64,
        layers: LayerRange,
        keeps: bool,
        /// Whether it only gives what it has.
        only: bool,
        /// What it does under this epoch goes on.
        beside: Option<u64>,
    },
    Commit {
        call: u64,
        epoch: u64,
        route: Vec<usize>,
        length: u64,
        donor: Option<usize>,
    },
    Abort {
        epoch: u64,
    },
    Release {
        epoch: u64,
    },
    /// Just what was got ready under this epoch is not needed.
    Leave {
        epoch: u64,
    },
    Renew {
        epoch: u64,
    },
    Step(Step),
    Replay(Replay),
    /// Part of the KV cache is to be given away; in `until`, to whom.
    Copy(Replay),
    Rows(Rows),
    /// The next stage could not do a step.
    Complaint {
        epoch: u64,
        code: &'static str,
    },
}

/// Rows on their way from stage to stage.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// Whose session it is.
    pub(super) coordinator: usize,
    pub(super) epoch: u64,
    pub(super) step: u64,
    pub(super) position: u64,
    pub(super) sample: bool,
    pub(super) until: usize,
    pub(super) rows: Vec<u64>,
    /// Of a witnessed session, what the stages before say about it.
    pub(super) claims: Vec<SignedClaim>,
}

/// Outputs that are to be sent again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replay {
    pub(super) epoch: u64,
    pub(super) step: u64,
    pub(super) position: u64,
    pub(super) rows: u32,
    pub(super) until: usize,
}

/// Part of a KV cache.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    pub(super) epoch: u64,
    pub(super) step: u64,
    pub(super) position: u64,
    pub(super) rows: u32,
    pub(super) layers: LayerRange,
    pub(super) states: Vec<u64>,
}

/// What a stage that is ready has already.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    pub(super) cached: u64,
    pub(super) outputs: u64,
}

/// What a stage tells the coordinator.
#[derive(Debug, Clone)]
pub(super) enum Report {
    Token {
        epoch: u64,
        step: u64,
        position: u64,
        token: u32,
        claims: Vec<SignedClaim>,
    },
    Applied {
        epoch: u64,
        step: u64,
    },
    Failed {
        epoch: u64,
        code: &'static str,
    },
    /// Another coordinator has the session; in answer to one with this claim.
    Moved {
        claim: u64,
    },
}

/// What comes of a message.
#[derive(Debug)]
pub(super) enum Effect {
    /// A call is answered, well or badly.
    Answer(u64, Result<Held, &'static str>),
    /// Preparing takes its time.
    Prepare {
        call: u64,
        epoch: u64,
    },
    /// So does computing; then comes the result.
    Compute(Finished),
    Send(usize, Message),
    /// To a coordinator.
    Report(usize, Report),
}

/// A result, once it is computed.
#[derive(Debug, Clone)]
pub(super) struct Finished {
    pub(super) life: u32,
    pub(super) epoch: u64,
    pub(super) step: u64,
    pub(super) result: Onward,
}

#[derive(Debug, Clone)]
pub(super) enum Onward {
    Next(usize, Step),
    Report(Report),
}
