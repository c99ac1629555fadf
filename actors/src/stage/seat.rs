//! What a session has on this node: from being prepared to computing its steps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_inference::{SamplingParams, SeqId, StageInput};
use accel_p2p::PeerId;
use accel_p2p::wire::{
    ControlReply, Hop, PeerEndpoint, SamplingWire, SessionId, SignedClaim, StepInput,
};
use actix::SpawnHandle;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::engine::{Engine, ImportWork, StepWork};
use super::fence::{Admission, Fence, MOST_ROWS};
use super::ledger::StageKey;
use super::outlet::{Outlet, StepName};
use super::outputs::Outputs;
use super::scribe::BOUNDARY_DISPUTED;
use crate::account::Account;
use crate::error::{Failure, SESSION_MOVED};
use crate::session::machine::claim_of;

/// What a session has on this node.
pub(super) struct Seat {
    pub(super) epoch: u64,
    pub(super) coordinator: PeerId,
    pub(super) key: StageKey,
    /// In whose name its memory is reserved.
    pub(super) tenant: SessionId,
    pub(super) max_tokens: u64,
    pub(super) expires: Instant,
    pub(super) lease: Duration,
    /// What the account begins with, of a witnessed session.
    pub(super) nonce: Option<[u8; 32]>,
    pub(super) state: SeatState,
}

pub(super) enum SeatState {
    /// A cache that was kept from an older epoch is there already.
    Preparing {
        task: SpawnHandle,
        kept: Option<Cache>,
    },
    Ready {
        cache: Cache,
        /// Positions that it holds.
        length: u64,
    },
    Live(Live),
    /// The plan was given up; the next one may go on from the cache.
    Kept(Cache),
}

/// A session's KV cache on a loaded stage, with the outputs that go with it.
#[derive(Clone)]
pub(super) struct Cache {
    pub(super) engine: Arc<Engine>,
    pub(super) seq: SeqId,
    pub(super) outputs: Option<Arc<Outputs>>,
    /// What is in it, as hashes, if the session is witnessed.
    pub(super) account: Option<Arc<Account>>,
}

pub(super) struct Live {
    pub(super) cache: Cache,
    pub(super) upstream: PeerId,
    /// Who may send rows of its KV cache.
    pub(super) donor: Option<PeerId>,
    pub(super) fence: Fence,
    pub(super) outlet: Arc<Outlet>,
}

impl Seat {
    /// The session's KV cache, once there is one.
    pub(super) fn cache(&self) -> Option<&Cache> {
        match &self.state {
            SeatState::Preparing { kept, .. } => kept.as_ref(),
            SeatState::Ready { cache, .. } | SeatState::Kept(cache) => Some(cache),
            SeatState::Live(live) => Some(&live.cache),
        }
    }

    /// The cache, if there is anything in it.
    pub(super) fn filled_cache(&self) -> Option<&Cache> {
        let is_filled = match &self.state {
            SeatState::Preparing { .. } | SeatState::Kept(_) => true,
            SeatState::Ready { length, .. } => *length > 0,
            SeatState::Live(live) => live.fence.length() > 0,
        };
        self.cache().filter(|_| is_filled)
    }
}

impl Cache {
    /// Forgets what is behind `length` of the `have` positions.
    pub(super) fn cut(&self, have: u64, length: u64, max_tokens: u64) -> Result<(), Failure> {
        if length > have {
            return Err(not_ready());
        }
        if let Some(outputs) = &self.outputs {
            outputs.truncate(length);
        }
        if let Some(account) = &self.account {
            account.truncate(length);
        }
        if length == have {
            return Ok(());
        }
        let cut = self
            .engine
            .cut(self.seq, length as usize, max_tokens as usize);
        cut.map_err(|reason| Failure::unavailable("stage_unavailable", reason, "try again"))
    }

    /// The same with the account that a session of this nonce has of so many positions.
    pub(super) fn witnessed(
        mut self,
        nonce: Option<[u8; 32]>,
        layers: (u32, u32),
        length: u64,
    ) -> Result<Self, Failure> {
        let Some(nonce) = nonce else {
            self.account = None;
            return Ok(self);
        };
        let is_its = |account: &Arc<Account>| account.is_of(&nonce);
        if length == 0 && !self.account.as_ref().is_some_and(is_its) {
            self.account = Some(Arc::new(Account::new(nonce, layers)));
        }
        match self.account.as_ref().is_some_and(is_its) {
            true => Ok(self),
            // Nobody knows any more what is in the cache.
            false => Err(not_ready()),
        }
    }
}

/// What is to be applied.
pub(super) enum Work {
    /// Rows go through the layers.
    Step(StepInput, Vec<SignedClaim>),
    /// Keys and values come as they are.
    Rows(Bytes),
}

/// Lets a step through the fence and queues it.
pub(super) fn apply(live: &mut Live, epoch: u64, name: StepName, work: Work) {
    let outlet = &live.outlet;
    match live.fence.admit(epoch, name.step, name.position, name.rows) {
        Admission::Apply => {
            if let Err(reason) = queue(live, name, work) {
                outlet.refuse(name.step, "stage_unavailable", reason);
            }
        }
        Admission::Repeat => outlet.repeat(name.step),
        Admission::Stale { newest } => {
            tracing::info!(epoch, newest, "a step of an epoch that is over is refused");
        }
        Admission::Gap { have } => {
            let message = format!(
                "the step is for position {}, the stage holds {have}",
                name.position
            );
            outlet.refuse(name.step, "position_gap", &message);
        }
        Admission::TooLong { limit } => {
            let message = format!("the step exceeds the {limit} tokens reserved");
            outlet.refuse(name.step, "context_overflow", &message);
        }
        Admission::TooLarge => {
            let message = format!(
                "the step has {} rows; a stage takes {MOST_ROWS} at a time",
                name.rows
            );
            outlet.refuse(name.step, "step_too_large", &message);
        }
    }
}

fn queue(live: &Live, name: StepName, work: Work) -> Result<(), &'static str> {
    let Cache { engine, seq, .. } = &live.cache;
    let (seq, outlet) = (*seq, Arc::clone(&live.outlet));
    match work {
        Work::Step(input, claims) => {
            if let Err(reason) = outlet.given(name, &input, claims) {
                outlet.refuse(name.step, BOUNDARY_DISPUTED, reason);
                return Ok(());
            }
            engine.step(StepWork {
                seq,
                name,
                input: stage_input(input),
                outlet,
            })
        }
        Work::Rows(data) => engine.import(ImportWork {
            seq,
            name,
            data,
            outlet,
        }),
    }
}

fn stage_input(input: StepInput) -> StageInput {
    match input {
        StepInput::Tokens(tokens) => StageInput::Tokens(tokens),
        StepInput::Hidden { rows, data } => StageInput::Hidden {
            rows: rows as usize,
            data: accel_p2p::wire::step::floats(&data),
        },
    }
}

pub(super) fn endpoint_of(hop: &Hop) -> PeerEndpoint {
    PeerEndpoint {
        peer: hop.peer,
        tensor_addrs: hop.tensor_addrs.clone(),
    }
}

pub(super) fn params_of(wire: &SamplingWire) -> SamplingParams {
    SamplingParams {
        temperature: wire.temperature,
        top_p: wire.top_p,
        min_p: wire.min_p,
        top_k: wire.top_k,
        seed: wire.seed,
        top_logprobs: wire.top_logprobs,
    }
}

pub(super) fn stale(epoch: u64, newest: u64) -> Failure {
    let code = match claim_of(newest) > claim_of(epoch) {
        true => SESSION_MOVED,
        false => "stale_epoch",
    };
    Failure::unavailable(
        code,
        format!("epoch {epoch} is over, the newest is {newest}"),
        "another coordinator or plan took over the session",
    )
}

pub(super) fn not_ready() -> Failure {
    Failure::unavailable(
        "not_prepared",
        "the request does not fit what is prepared here",
        "send the request again",
    )
}

pub(super) fn refused(failure: &Failure) -> ControlReply {
    ControlReply::refused(&failure.code, &failure.message, &failure.hint)
}

/// Progress never fills the queue to the last place before a final reply, because the caller
/// reads; one that does not read has no use for the reply either.
pub(super) fn answer(replies: &mpsc::Sender<ControlReply>, reply: ControlReply) {
    let replies = replies.clone();
    actix::spawn(async move {
        let _ = replies.send_timeout(reply, Duration::from_secs(10)).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_coordinator_is_told_that_the_session_moved_and_an_older_plan_that_it_is_stale() {
        let claimed = |claim: u64, placement: u64| (claim << 32) + placement;
        let cases = [
            (claimed(0, 3), claimed(0, 4), "stale_epoch"),
            (claimed(7, 1), claimed(7, 1), "stale_epoch"),
            (claimed(0, 3), claimed(7, 1), SESSION_MOVED),
            (claimed(7, 9), claimed(8, 1), SESSION_MOVED),
        ];
        for (epoch, newest, code) in cases {
            assert_eq!(stale(epoch, newest).code, code, "{epoch} under {newest}");
        }
    }
}
