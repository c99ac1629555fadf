//! The stage server's actor. It knows one seat per session; it never waits: preparing happens in
//! tasks, computing on the engines' threads, sending in the outlets' tasks. It ends with its node;
//! when it is restarted, all seats are lost and their coordinators notice. What becomes of seats
//! when coordinators place, give up and end their plans is in `server/placing.rs`, and what goes from
//! one seat's KV cache to another's in `server/copying.rs`.

mod copying;
mod placing;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_inference::KvFormat;
use accel_p2p::Keypair;
use accel_p2p::PeerId;
use accel_p2p::wire::{ControlReply, ControlRequest, SessionId, SignedClaim, TensorFrame};
use accel_storage::Store;
use actix::{Actor, AsyncContext, Context, Handler, Message};
use tokio::sync::mpsc;

use super::complaints::Complaints;
use super::outlet::{NEXT_STAGE_LOST, StepName};
use super::seat::{Seat, SeatState, Work, answer, apply, refused};
use super::seats::Seats;
use super::shelf::Shelf;
use super::warmer::Warmer;
use crate::models::Models;
use crate::peers::Peers;
use crate::session::table::SessionTable;
use crate::supervisor::supervised;
use crate::telemetry::Telemetry;
pub(super) use copying::COPY_FAILED;
use copying::Giver;

/// Messages that may wait.
const MAILBOX: usize = 256;
/// How often expired reservations are looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// Sessions that may hold seats or epochs here.
const MOST_SEATS: usize = 1024;

/// What a stage server works with.
pub(crate) struct StageDeps {
    pub(crate) store: Store,
    pub(crate) models: Arc<Models>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) sessions: Arc<SessionTable>,
    pub(crate) max_layers: Option<u32>,
    pub(crate) threads: Option<usize>,
    /// Whether layers are made ready for sessions that may need them.
    pub(crate) warm_stand_ins: bool,
    pub(crate) kv: KvFormat,
    /// What this node signs with.
    pub(crate) identity: Keypair,
    pub(crate) telemetry: Telemetry,
}

/// A request about a placement; the replies end with a final one.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Control {
    pub(crate) from: PeerId,
    pub(crate) request: ControlRequest,
    pub(crate) replies: mpsc::Sender<ControlReply>,
}

/// A frame of the tensor plane that concerns a stage.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Step {
    pub(crate) from: PeerId,
    pub(crate) frame: TensorFrame,
}

/// The tensor plane lost a peer: what went to it last may not have arrived.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct NextLost {
    pub(crate) peer: PeerId,
    pub(crate) reason: String,
}

/// See the module.
pub(crate) struct StageServer {
    deps: Arc<StageDeps>,
    seats: Seats,
    /// The newest epoch of sessions without a seat: what is older stays refused.
    past: HashMap<SessionId, (u64, Instant)>,
    complaints: Complaints,
    giver: Giver,
    warmer: Warmer,
}

impl StageServer {
    /// A server without seats.
    pub(crate) fn new(deps: Arc<StageDeps>) -> Self {
        let (peers, sessions) = (Arc::clone(&deps.peers), Arc::clone(&deps.sessions));
        Self {
            giver: Giver::start(Arc::clone(&peers), Arc::clone(&sessions)),
            complaints: Complaints::start(peers, sessions),
            warmer: Warmer::start(&deps),
            deps,
            seats: Seats::default(),
            past: HashMap::new(),
        }
    }

    fn sweep(&mut self, context: &mut Context<Self>) {
        let now = Instant::now();
        for session in self.seats.expired(now) {
            tracing::info!(%session, "no sign of life of the coordinator; its stage is released");
            self.leave_if(session, |seat| seat.expires <= now, context);
        }
    }

    /// The next stage cannot go on, and may not know the coordinator any more: it is passed on.
    fn next_failed(&mut self, from: PeerId, frame: TensorFrame) {
        let seat = self.seats.of(frame.session(), frame.epoch());
        if let Some(Seat {
            state: SeatState::Live(live),
            ..
        }) = seat
            && live.outlet.leads_to(from)
        {
            live.outlet.pass_on(frame);
        }
    }

    /// Only this node may know that the stage behind it is gone: the coordinator has no frames for it.
    fn next_lost(&self, peer: PeerId, reason: &str) {
        for seat in self.seats.all() {
            if let SeatState::Live(live) = &seat.state
                && live.outlet.leads_to(peer)
            {
                live.outlet.refuse(0, NEXT_STAGE_LOST, reason);
            }
        }
    }

    fn frame(&mut self, from: PeerId, frame: TensorFrame) {
        match frame {
            TensorFrame::Step { .. } => self.step(from, frame, Vec::new()),
            TensorFrame::Claimed { frame, claims } => self.step(from, *frame, claims),
            TensorFrame::Replay { .. } => self.replay(from, &frame),
            TensorFrame::Copy(order) => self.copy(from, order),
            TensorFrame::Rows { rows, data } => self.take_rows(from, rows, data),
            _ => self.next_failed(from, frame),
        }
    }

    /// The coordinator has outputs sent again.
    fn replay(&mut self, from: PeerId, frame: &TensorFrame) {
        let &TensorFrame::Replay {
            session,
            epoch,
            step,
            position,
            rows,
            until,
        } = frame
        else {
            return;
        };
        if !self.seats.has(session) {
            return self.complaints.unknown_session(from, session, epoch, step);
        }
        let seat = self.seats.of(session, epoch);
        let Some(seat) = seat.filter(|seat| seat.coordinator == from) else {
            return tracing::info!(%session, epoch, peer = %from, "outputs of an epoch that is over are not sent");
        };
        let SeatState::Live(live) = &seat.state else {
            return;
        };
        seat.expires = Instant::now() + seat.lease;
        live.outlet.replay(StepName {
            step,
            position,
            rows: u64::from(rows),
            sample: false,
            until,
        });
    }

    fn step(&mut self, from: PeerId, frame: TensorFrame, claims: Vec<SignedClaim>) {
        let TensorFrame::Step {
            session,
            epoch,
            step,
            position,
            sample,
            until,
            input,
        } = frame
        else {
            return;
        };
        if !self.seats.has(session) {
            return self.complaints.unknown_session(from, session, epoch, step);
        }
        let Some(seat) = self.seats.of(session, epoch) else {
            return tracing::info!(%session, epoch, "a step of an epoch that is over is refused");
        };
        let SeatState::Live(live) = &mut seat.state else {
            return;
        };
        if live.upstream != from {
            tracing::warn!(%session, peer = %from, "a step from a peer that is not in the route");
            return;
        }
        seat.expires = Instant::now() + seat.lease;
        let name = StepName {
            step,
            position,
            rows: input.rows() as u64,
            sample,
            until,
        };
        apply(live, epoch, name, Work::Step(input, claims));
    }
}

impl Actor for StageServer {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        context.set_mailbox_capacity(MAILBOX);
        self.deps.shelf.clear();
        context.run_interval(SWEEP, |server, context| server.sweep(context));
    }
}

supervised!(StageServer);

impl Handler<Control> for StageServer {
    type Result = ();

    fn handle(&mut self, message: Control, context: &mut Context<Self>) {
        let Control {
            from,
            request,
            replies,
        } = message;
        let done = match request {
            ControlRequest::Prepare { .. } => {
                return self.prepare(from, request, replies, context);
            }
            ControlRequest::Commit { .. } => self.commit(from, request),
            ControlRequest::Abort { session, epoch } => self.abort(from, session, epoch, context),
            ControlRequest::Release { session, epoch } => self.end(from, session, epoch, context),
            ControlRequest::Leave { session, epoch } => {
                self.leave_plan(from, session, epoch, context);
                Ok(())
            }
            ControlRequest::Renew {
                session,
                epoch,
                lease_ms,
            } => self.renew(from, session, epoch, lease_ms),
            ControlRequest::Witness {
                session,
                epoch,
                nonce,
            } => self.witness(from, session, epoch, nonce),
            ControlRequest::Warm { order } => self.warmer.take(order),
        };
        let reply = match done {
            Ok(()) => ControlReply::Done,
            Err(failure) => refused(&failure),
        };
        answer(&replies, reply);
    }
}

impl Handler<Step> for StageServer {
    type Result = ();

    fn handle(&mut self, Step { from, frame }: Step, _: &mut Context<Self>) {
        self.frame(from, frame);
    }
}

impl Handler<NextLost> for StageServer {
    type Result = ();

    fn handle(&mut self, NextLost { peer, reason }: NextLost, _: &mut Context<Self>) {
        self.next_lost(peer, &reason);
    }
}
