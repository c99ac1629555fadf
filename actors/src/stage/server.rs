//! The stage server's actor. It knows one seat per session; it never waits: preparing happens in
//! tasks, computing on the engines' threads, sending in the outlets' tasks. It ends with its node;
//! when it is restarted, all seats are lost and their coordinators notice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_inference::{KvFormat, LayerRange};
use accel_p2p::PeerId;
use accel_p2p::wire::{ControlReply, ControlRequest, SessionId, TensorFrame};
use accel_storage::Store;
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, WrapFuture};
use tokio::sync::mpsc;

use super::complaints::Complaints;
use super::fence::Fence;
use super::ledger::StageKey;
use super::obtain::Layers;
use super::outlet::{NEXT_STAGE_LOST, Next, Outlet, StepName};
use super::prepare::{self, Order, Prepared};
use super::seat::{
    Live, Seat, SeatState, answer, apply, endpoint_of, not_ready, params_of, refused, stale,
};
use super::shelf::Shelf;
use super::warmer::Warmer;
use crate::error::Failure;
use crate::models::Models;
use crate::peers::Peers;
use crate::session::table::SessionTable;
use crate::supervisor::supervised;
use crate::telemetry::Telemetry;

/// Messages that may wait.
const MAILBOX: usize = 256;
/// How often expired reservations are looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// The longest lease that is granted.
const LONGEST_LEASE: Duration = Duration::from_secs(120);
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
    seats: HashMap<SessionId, Seat>,
    /// The newest epoch of sessions without a seat: what is older stays refused.
    past: HashMap<SessionId, (u64, Instant)>,
    complaints: Complaints,
    warmer: Warmer,
}

impl StageServer {
    /// A server without seats.
    pub(crate) fn new(deps: Arc<StageDeps>) -> Self {
        let (peers, sessions) = (Arc::clone(&deps.peers), Arc::clone(&deps.sessions));
        Self {
            complaints: Complaints::start(peers, sessions),
            warmer: Warmer::start(&deps),
            deps,
            seats: HashMap::new(),
            past: HashMap::new(),
        }
    }

    fn newest_epoch(&self, session: SessionId) -> u64 {
        let seat = self.seats.get(&session).map_or(0, |seat| seat.epoch);
        seat.max(self.past.get(&session).map_or(0, |(epoch, _)| *epoch))
    }

    fn prepare(
        &mut self,
        from: PeerId,
        request: ControlRequest,
        replies: mpsc::Sender<ControlReply>,
        context: &mut Context<Self>,
    ) {
        let ControlRequest::Prepare {
            session,
            epoch,
            model,
            model_bytes,
            layers: (first, end),
            total_layers,
            max_tokens,
            lease_ms,
            providers,
        } = request
        else {
            return;
        };
        let layers = LayerRange::new(first, end);
        if let Err(failure) = self.may_prepare(session, epoch, layers) {
            return answer(&replies, refused(&failure));
        }
        self.leave(session, context);
        let lease = Duration::from_millis(lease_ms).min(LONGEST_LEASE);
        let order = Order {
            session,
            layers: Layers {
                model,
                model_bytes,
                layers,
                total_layers,
                providers,
            },
            max_tokens,
        };
        let work = prepare::run(Arc::clone(&self.deps), order, replies.clone());
        let task = work.into_actor(self).map(move |result, server, context| {
            server.prepared(session, epoch, result, &replies, context);
        });
        let seat = Seat {
            epoch,
            coordinator: from,
            key: StageKey { model, layers },
            max_tokens: u64::from(max_tokens),
            expires: Instant::now() + lease,
            lease,
            state: SeatState::Preparing(context.spawn(task)),
        };
        self.seats.insert(session, seat);
    }

    fn may_prepare(
        &self,
        session: SessionId,
        epoch: u64,
        layers: LayerRange,
    ) -> Result<(), Failure> {
        let newest = self.newest_epoch(session);
        if epoch <= newest {
            return Err(stale(epoch, newest));
        }
        if self.seats.len() >= MOST_SEATS {
            let message = "this node serves as many sessions as it can";
            return Err(Failure::unavailable("busy", message, "try again later"));
        }
        match self.deps.max_layers {
            Some(most) if layers.len() > most => Err(Failure::unavailable(
                "layer_limits",
                format!(
                    "this node takes at most {most} layers, not {}",
                    layers.len()
                ),
                "raise --max-layers on that node, or join another node",
            )),
            _ => Ok(()),
        }
    }

    fn prepared(
        &mut self,
        session: SessionId,
        epoch: u64,
        result: Result<Prepared, Failure>,
        replies: &mpsc::Sender<ControlReply>,
        context: &mut Context<Self>,
    ) {
        let current = self
            .seats
            .get_mut(&session)
            .filter(|seat| seat.epoch == epoch);
        match (result, current) {
            (Ok(Prepared { engine, seq, reply }), Some(seat)) => {
                seat.state = SeatState::Ready { engine, seq };
                seat.expires = Instant::now() + seat.lease;
                answer(replies, reply);
            }
            (Ok(Prepared { engine, seq, .. }), None) => engine.close(seq),
            (Err(failure), current) => {
                if current.is_some() {
                    self.leave(session, context);
                }
                answer(replies, refused(&failure));
            }
        }
    }

    fn commit(&mut self, from: PeerId, request: ControlRequest) -> Result<(), Failure> {
        let ControlRequest::Commit {
            session,
            epoch,
            route,
            coordinator,
            sampling,
        } = request
        else {
            return Ok(());
        };
        let own = self.deps.peers.endpoint().peer;
        let deps = Arc::clone(&self.deps);
        let seat = self.seat(session, epoch, from)?;
        let SeatState::Ready { engine, seq } = &seat.state else {
            return match seat.state {
                SeatState::Live(_) => Ok(()),
                _ => Err(not_ready()),
            };
        };
        let layers = seat.key.layers;
        let at = route
            .iter()
            .position(|hop| hop.peer == own && hop.layers == (layers.first, layers.end))
            .ok_or_else(not_ready)?;
        if coordinator.peer != from {
            return Err(not_ready());
        }
        let upstream = at.checked_sub(1).and_then(|before| route.get(before));
        let next = match route.get(at + 1) {
            Some(hop) => Next::Stage(endpoint_of(hop)),
            None => Next::Sample(params_of(&sampling)),
        };
        let (peers, sessions) = (Arc::clone(&deps.peers), Arc::clone(&deps.sessions));
        seat.state = SeatState::Live(Live {
            engine: Arc::clone(engine),
            seq: *seq,
            upstream: upstream.map_or(from, |hop| hop.peer),
            fence: Fence::new(epoch, seat.max_tokens),
            outlet: Outlet::open(session, epoch, next, coordinator, peers, sessions),
        });
        seat.expires = Instant::now() + seat.lease;
        Ok(())
    }

    /// The seat of a session, if the caller is its coordinator and the epoch is the live one.
    fn seat(&mut self, session: SessionId, epoch: u64, from: PeerId) -> Result<&mut Seat, Failure> {
        let newest = self.newest_epoch(session);
        match self.seats.get_mut(&session) {
            Some(seat) if seat.epoch == epoch && seat.coordinator == from => Ok(seat),
            _ if epoch < newest => Err(stale(epoch, newest)),
            _ => Err(Failure::unavailable(
                "unknown_session",
                "this node has nothing prepared for the session under this epoch",
                "the reservation may have expired; send the request again",
            )),
        }
    }

    fn renew(
        &mut self,
        from: PeerId,
        session: SessionId,
        epoch: u64,
        lease_ms: u64,
    ) -> Result<(), Failure> {
        let seat = self.seat(session, epoch, from)?;
        seat.lease = Duration::from_millis(lease_ms).min(LONGEST_LEASE);
        seat.expires = Instant::now() + seat.lease;
        Ok(())
    }

    /// Abort and Release: done when nothing is held any more, also when nothing was.
    fn end(
        &mut self,
        from: PeerId,
        session: SessionId,
        epoch: u64,
        context: &mut Context<Self>,
    ) -> Result<(), Failure> {
        match self.seats.get(&session) {
            Some(seat) if seat.epoch > epoch => Err(stale(epoch, seat.epoch)),
            Some(seat) if seat.coordinator != from => Err(not_ready()),
            Some(_) => {
                self.leave(session, context);
                Ok(())
            }
            None => {
                self.remember(session, epoch);
                Ok(())
            }
        }
    }

    /// Gives up a session's seat with all that it holds.
    fn leave(&mut self, session: SessionId, context: &mut Context<Self>) {
        let Some(seat) = self.seats.remove(&session) else {
            return;
        };
        match &seat.state {
            SeatState::Preparing(task) => {
                context.cancel_future(*task);
            }
            SeatState::Ready { engine, seq } => engine.close(*seq),
            SeatState::Live(live) => live.engine.close(live.seq),
        }
        self.deps.shelf.release(session, &seat.key);
        self.remember(session, seat.epoch);
    }

    fn remember(&mut self, session: SessionId, epoch: u64) {
        if self.past.len() >= MOST_SEATS {
            let oldest = self.past.iter().min_by_key(|(_, (_, since))| *since);
            if let Some(oldest) = oldest.map(|(session, _)| *session) {
                self.past.remove(&oldest);
            }
        }
        let newest = self
            .past
            .get(&session)
            .map_or(epoch, |(known, _)| epoch.max(*known));
        self.past.insert(session, (newest, Instant::now()));
    }

    fn sweep(&mut self, context: &mut Context<Self>) {
        let now = Instant::now();
        let expired: Vec<SessionId> = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.expires <= now)
            .map(|(session, _)| *session)
            .collect();
        for session in expired {
            tracing::info!(%session, "no sign of life of the coordinator; its stage is released");
            self.leave(session, context);
        }
    }

    /// The next stage cannot go on, and may not know the coordinator any more: it is passed on.
    fn next_failed(&self, from: PeerId, frame: TensorFrame) {
        let seat = self.seats.get(&frame.session());
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
        for seat in self.seats.values() {
            if let SeatState::Live(live) = &seat.state
                && live.outlet.leads_to(peer)
            {
                live.outlet.refuse(0, NEXT_STAGE_LOST, reason);
            }
        }
    }

    fn step(&mut self, from: PeerId, frame: TensorFrame) {
        let TensorFrame::Step {
            session,
            epoch,
            step,
            position,
            sample,
            input,
        } = frame
        else {
            return self.next_failed(from, frame);
        };
        let Some(seat) = self.seats.get_mut(&session) else {
            return self.complaints.unknown_session(from, session, epoch, step);
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
        };
        apply(live, epoch, name, input);
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
            ControlRequest::Abort { session, epoch }
            | ControlRequest::Release { session, epoch } => self.end(from, session, epoch, context),
            ControlRequest::Renew {
                session,
                epoch,
                lease_ms,
            } => self.renew(from, session, epoch, lease_ms),
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
        self.step(from, frame);
    }
}

impl Handler<NextLost> for StageServer {
    type Result = ();

    fn handle(&mut self, NextLost { peer, reason }: NextLost, _: &mut Context<Self>) {
        self.next_lost(peer, &reason);
    }
}
