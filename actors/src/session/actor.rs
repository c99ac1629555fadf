//! The actor of one session. It carries out what the machine commands and tells it what happened;
//! it decides nothing. It lives from the admission of a request to its outcome. If it fails, the
//! client's pump notices that no outcome came and says so; stages are released by their leases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_inference::{SamplingParams, Tokenizer};
use accel_p2p::PeerId;
use accel_p2p::wire::{
    ControlReply, ControlRequest, Hop, PeerEndpoint, SamplingWire, SessionId, StepInput,
    TensorFrame,
};
use accel_storage::Journal;
use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, SpawnHandle,
    WrapFuture,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::event::{Command, Drawn, Event, Outcome, RouteStage, StageReport, Timer};
use super::link::Link;
use super::machine::Machine;
use super::pump::{self, JournalItem};
use super::record::OpeningRecord;
use super::table::SessionTable;
use crate::config::Limits;
use crate::error::Failure;
use crate::models::ModelRef;
use crate::placement::{Placement, Placer};
use crate::request::{GenEvent, TopToken};
use crate::telemetry::Telemetry;
use crate::views::{Figure, RouteView, SessionErrorView, SessionView};

/// Messages that may wait: more than a session can have under way.
const MAILBOX: usize = 128;
/// A step may take this many times what was predicted, beyond the step timeout: other sessions
/// share the stages.
const PATIENCE: u64 = 20;

/// What every session works with.
pub(crate) struct SessionDeps {
    pub(crate) link: Link,
    pub(crate) journal: Journal,
    pub(crate) placer: Placer,
    pub(crate) table: Arc<SessionTable>,
    pub(crate) limits: Limits,
    pub(crate) telemetry: Telemetry,
}

/// What one session is about.
pub(crate) struct SessionSpec {
    pub(crate) id: SessionId,
    pub(crate) model: ModelRef,
    pub(crate) shape: Arc<accel_inference::ModelShape>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) opening: OpeningRecord,
    pub(crate) sampling: SamplingParams,
    /// Positions to reserve.
    pub(crate) max_tokens: u32,
    pub(crate) placement: Placement,
    pub(crate) events: mpsc::Sender<GenEvent>,
    /// The session's place among those that may run.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// See the module.
pub(crate) struct SessionActor {
    deps: Arc<SessionDeps>,
    spec: SessionSpec,
    machine: Machine,
    timer: Option<SpawnHandle>,
    client: mpsc::Sender<GenEvent>,
    journal: mpsc::Sender<JournalItem>,
    steps: Option<mpsc::Sender<TensorFrame>>,
    endpoints: HashMap<PeerId, PeerEndpoint>,
    started: Instant,
    placed: Option<Instant>,
    first_token: Option<Instant>,
}

/// A frame of the tensor plane for this session.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Frame {
    pub(super) from: PeerId,
    pub(super) frame: TensorFrame,
}

/// The connection to a peer is gone.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Lost(pub(super) PeerId);

/// The node stops.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct ShutDown;

/// Something happened in one of the session's tasks.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Happened(pub(super) Event);

impl SessionActor {
    /// Starts a session on the current arbiter.
    pub(crate) fn launch(deps: Arc<SessionDeps>, spec: SessionSpec, machine: Machine) {
        let session = spec.id;
        deps.table.enter(session, first_view(&spec));
        let table = Arc::clone(&deps.table);
        let addr = Self::create(|context| {
            context.set_mailbox_capacity(MAILBOX);
            let addr = context.address();
            let events = spec.events.clone();
            let client = pump::to_client(events, addr.clone(), deps.limits.client_timeout);
            let journal = pump::to_journal(deps.journal.clone(), session, addr);
            let endpoints = spec.placement.endpoints.clone();
            Self {
                deps,
                spec,
                machine,
                timer: None,
                client,
                journal,
                steps: None,
                endpoints,
                started: Instant::now(),
                placed: None,
                first_token: None,
            }
        });
        table.attach(session, addr);
    }

    fn feed(&mut self, event: Event, context: &mut Context<Self>) {
        let commands = self.machine.on(event);
        for command in commands {
            self.execute(command, context);
        }
        self.show();
    }

    fn execute(&mut self, command: Command, context: &mut Context<Self>) {
        match command {
            Command::JournalOpen => self.journal(JournalItem::Open(self.spec.opening.to_bytes())),
            Command::Plan { excluding } => self.plan(excluding, context),
            Command::Prepare { epoch, stage } => self.prepare(epoch, stage, context),
            Command::Commit { epoch, stage } => self.commit(epoch, stage, context),
            Command::Abort { epoch, stage } => {
                let session = self.spec.id;
                let request = ControlRequest::Abort { session, epoch };
                self.deps.link.end(stage.peer, request);
            }
            Command::Release { epoch, stage } => {
                let session = self.spec.id;
                let request = ControlRequest::Release { session, epoch };
                self.deps.link.end(stage.peer, request);
            }
            Command::Forward {
                epoch,
                step,
                position,
                sample,
                tokens,
            } => {
                let session = self.spec.id;
                let input = StepInput::Tokens(tokens);
                self.forward(
                    TensorFrame::Step {
                        session,
                        epoch,
                        step,
                        position,
                        sample,
                        input,
                    },
                    context,
                );
            }
            Command::JournalToken { index, token } => {
                self.journal(JournalItem::Token { index, token });
            }
            Command::Emit { index, text, drawn } => self.emit(index, text, drawn),
            Command::Arm(timer) => self.arm(timer, context),
            Command::Close(outcome) => self.close(outcome, context),
        }
    }

    // --- placement ---

    fn plan(&mut self, excluding: Vec<PeerId>, context: &mut Context<Self>) {
        let deps = Arc::clone(&self.deps);
        let (model, shape) = (self.spec.model.clone(), Arc::clone(&self.spec.shape));
        let tokens = self.spec.max_tokens;
        let planning = async move { deps.placer.place(&model, &shape, tokens, &excluding).await };
        let done = planning
            .into_actor(self)
            .map(|placed, session, context| match placed {
                Ok(placement) => {
                    let route = placement.route.clone();
                    session.endpoints.extend(placement.endpoints.clone());
                    session.spec.placement = placement;
                    session.feed(Event::Planned(route), context);
                }
                Err(error) => {
                    tracing::info!(session = %session.spec.id, %error, "no other placement");
                    session.feed(Event::NoPlan, context);
                }
            });
        context.spawn(done);
    }

    fn stage(&self, stage: usize) -> Option<RouteStage> {
        self.machine
            .route()
            .nth(stage)
            .map(|(stage, _)| stage.clone())
    }

    fn prepare(&mut self, epoch: u64, stage: usize, context: &mut Context<Self>) {
        // A new epoch forwards over a connection of its own.
        self.steps = None;
        let Some(RouteStage { peer, layers }) = self.stage(stage) else {
            return;
        };
        let request = ControlRequest::Prepare {
            session: self.spec.id,
            epoch,
            model: self.spec.model.cid,
            model_bytes: self.spec.model.bytes,
            layers: (layers.first, layers.end),
            total_layers: self.spec.shape.layers,
            max_tokens: self.spec.max_tokens,
            lease_ms: self.deps.limits.lease.as_millis() as u64,
            providers: self.spec.placement.providers_for(peer),
        };
        let (link, silence) = (self.deps.link.clone(), self.deps.limits.prepare_silence);
        let call = async move { link.call(peer, request, silence).await };
        let done = call.into_actor(self).map(move |reply, session, context| {
            session.feed(prepared(epoch, stage, reply), context);
        });
        context.spawn(done);
    }

    fn commit(&mut self, epoch: u64, stage: usize, context: &mut Context<Self>) {
        let Some(RouteStage { peer, .. }) = self.stage(stage) else {
            return;
        };
        let request = ControlRequest::Commit {
            session: self.spec.id,
            epoch,
            route: self.hops(),
            coordinator: self.deps.link.peers.endpoint(),
            sampling: self.sampling(),
        };
        let (link, silence) = (self.deps.link.clone(), self.deps.limits.commit_timeout);
        let call = async move { link.call(peer, request, silence).await };
        let done = call.into_actor(self).map(move |reply, session, context| {
            let event = match reply {
                Ok(_) => Event::Committed { epoch, stage },
                Err(failure) => Event::Refused {
                    epoch,
                    stage,
                    failure,
                },
            };
            session.feed(event, context);
        });
        context.spawn(done);
    }

    fn hops(&self) -> Vec<Hop> {
        let stages = self.machine.route();
        let hop = |stage: &RouteStage| Hop {
            peer: stage.peer,
            tensor_addrs: self.endpoint(stage.peer).tensor_addrs,
            layers: (stage.layers.first, stage.layers.end),
        };
        stages.map(|(stage, _)| hop(stage)).collect()
    }

    fn endpoint(&self, peer: PeerId) -> PeerEndpoint {
        let known = self.endpoints.get(&peer).cloned();
        known.unwrap_or(PeerEndpoint {
            peer,
            tensor_addrs: Vec::new(),
        })
    }

    fn sampling(&self) -> SamplingWire {
        let params = &self.spec.sampling;
        SamplingWire {
            temperature: params.temperature,
            top_p: params.top_p,
            min_p: params.min_p,
            top_k: params.top_k,
            seed: params.seed,
            top_logprobs: params.top_logprobs,
        }
    }

    /// Shows every stage that the coordinator lives.
    fn renew(&mut self) {
        let (session, epoch) = (self.spec.id, self.machine.epoch());
        let lease = self.deps.limits.lease;
        for (stage, _) in self.machine.route().filter(|_| epoch > 0) {
            let lease_ms = lease.as_millis() as u64;
            let request = ControlRequest::Renew {
                session,
                epoch,
                lease_ms,
            };
            let (link, peer) = (self.deps.link.clone(), stage.peer);
            actix::spawn(async move {
                if let Err(failure) = link.call(peer, request, lease).await {
                    tracing::debug!(%session, %peer, %failure, "a lease was not renewed");
                }
            });
        }
    }

    // --- steps ---

    fn forward(&mut self, frame: TensorFrame, context: &mut Context<Self>) {
        if self.steps.is_none() {
            let Some(first) = self.stage(0) else {
                return;
            };
            let (endpoint, epoch) = (self.endpoint(first.peer), self.machine.epoch());
            let link = self.deps.link.clone();
            self.steps = Some(pump::to_first_stage(
                link,
                endpoint,
                epoch,
                context.address(),
            ));
            self.placed.get_or_insert_with(Instant::now);
        }
        let queued = self.steps.as_ref().map(|steps| steps.try_send(frame));
        if !matches!(queued, Some(Ok(()))) {
            let epoch = self.machine.epoch();
            let failure = Failure::internal("the steps of the session cannot be sent");
            context.notify(Happened(Event::StepFailed { epoch, failure }));
        }
    }

    fn arm(&mut self, timer: Timer, context: &mut Context<Self>) {
        if let Some(before) = self.timer.take() {
            context.cancel_future(before);
        }
        let limits = &self.deps.limits;
        let within = match timer {
            Timer::Commit { .. } => limits.commit_timeout,
            Timer::Step { rows, .. } => {
                let token_ns = self.spec.placement.token_ns;
                let expected = token_ns
                    .saturating_mul(u64::from(rows))
                    .saturating_mul(PATIENCE);
                limits.step_timeout + Duration::from_nanos(expected)
            }
        };
        let handle = context.run_later(within, move |session, context| {
            session.feed(Event::Timeout(timer), context);
        });
        self.timer = Some(handle);
    }

    // --- journal and client ---

    fn journal(&self, item: JournalItem) {
        if self.journal.try_send(item).is_err() {
            tracing::error!(session = %self.spec.id, "the journal's queue is full");
        }
    }

    fn emit(&mut self, index: u64, text: String, drawn: Drawn) {
        let tokenizer = &self.spec.tokenizer;
        let top = drawn.top.iter().map(|(token, logprob)| TopToken {
            token: *token,
            text: tokenizer.decode(&[*token]),
            bytes: bytes_of(tokenizer, *token),
            logprob: *logprob,
        });
        let top = top.collect();
        let Drawn { token, logprob, .. } = drawn;
        self.first_token.get_or_insert_with(Instant::now);
        self.deps.telemetry.token();
        let bytes = bytes_of(tokenizer, token);
        self.tell(GenEvent::Token {
            index,
            token,
            text,
            bytes,
            logprob,
            top,
        });
    }

    fn tell(&self, event: GenEvent) {
        // The machine lets fewer tokens be unread than the queue holds.
        if self.client.try_send(event).is_err() {
            tracing::debug!(session = %self.spec.id, "the client is gone");
        }
    }

    fn close(&mut self, outcome: Outcome, context: &mut Context<Self>) {
        let (state, error) = match &outcome {
            Outcome::Done {
                finish,
                completion_tokens,
                text_tail,
            } => {
                self.tell(GenEvent::Done {
                    finish: *finish,
                    completion_tokens: *completion_tokens,
                    text_tail: text_tail.clone(),
                });
                ("done", None)
            }
            Outcome::Failed(failure) => {
                tracing::warn!(session = %self.spec.id, code = failure.code, %failure, "failed");
                self.tell(failed(failure));
                ("failed", Some(error_view(failure)))
            }
            Outcome::Cancelled => {
                let message = "the session was cancelled";
                let hint = "send the request again, to another node if this one is stopping";
                self.tell(failed(&Failure::unavailable("cancelled", message, hint)));
                ("cancelled", None)
            }
        };
        self.journal(JournalItem::Close(outcome));
        self.show();
        self.deps.table.update(self.spec.id, |view| {
            state.clone_into(&mut view.state);
            view.error = error;
        });
        self.deps.telemetry.session_ended(state);
        self.deps.table.detach(self.spec.id);
        context.stop();
    }

    /// Brings the view up to date.
    fn show(&self) {
        let millis = |span: Duration| Figure::measured(span.as_secs_f64() * 1000.0);
        let placed = self.placed.map(|placed| millis(placed - self.started));
        let first = self.first_token.zip(self.placed);
        let first = first.map(|(token, placed)| millis(token.saturating_duration_since(placed)));
        let tokens = self.machine.emitted();
        let rate = self.first_token.filter(|_| tokens > 1).map(|first| {
            Figure::measured((tokens - 1) as f64 / first.elapsed().as_secs_f64().max(1e-9))
        });
        let route: Vec<RouteView> = self.machine.route().map(route_view).collect();
        let (state, epoch) = (self.machine.state(), self.machine.epoch());
        self.deps.table.update(self.spec.id, |view| {
            if state != "ended" {
                state.clone_into(&mut view.state);
            }
            view.epoch = epoch;
            view.tokens = tokens;
            view.bytes_fetched = route.iter().map(|hop| hop.bytes_fetched).sum();
            view.route = route;
            view.prepare_ms = placed;
            view.first_token_ms = first;
            view.tokens_per_s = rate;
        });
    }
}

fn bytes_of(tokenizer: &Tokenizer, token: u32) -> Vec<u8> {
    tokenizer.token_bytes(token).unwrap_or_default().to_vec()
}

fn prepared(epoch: u64, stage: usize, reply: Result<ControlReply, Failure>) -> Event {
    let failure = match reply {
        Ok(ControlReply::Ready {
            bytes_fetched,
            blocks_fetched,
            ..
        }) => {
            let report = StageReport {
                bytes_fetched,
                blocks_fetched,
            };
            return Event::Prepared {
                epoch,
                stage,
                report,
            };
        }
        Ok(_) => Failure::unavailable("bad_reply", "a peer gave no proper answer", ""),
        Err(failure) => failure,
    };
    Event::Refused {
        epoch,
        stage,
        failure,
    }
}

fn route_view((stage, report): (&RouteStage, StageReport)) -> RouteView {
    RouteView {
        peer_id: stage.peer.to_string(),
        first_layer: stage.layers.first,
        last_layer: stage.layers.end.saturating_sub(1),
        bytes_fetched: report.bytes_fetched,
        blocks_fetched: report.blocks_fetched,
    }
}

fn failed(failure: &Failure) -> GenEvent {
    GenEvent::Failed {
        kind: failure.kind,
        code: failure.code.clone(),
        message: failure.message.clone(),
        hint: failure.hint.clone(),
    }
}

fn error_view(failure: &Failure) -> SessionErrorView {
    SessionErrorView {
        code: failure.code.clone(),
        message: failure.message.clone(),
        hint: failure.hint.clone(),
    }
}

fn first_view(spec: &SessionSpec) -> SessionView {
    SessionView {
        id: spec.id.to_string(),
        state: "placing".to_owned(),
        model: spec.model.name.clone(),
        cid: spec.model.cid.to_string(),
        epoch: 0,
        prompt_tokens: spec.opening.prompt.len(),
        tokens: 0,
        route: Vec::new(),
        bytes_fetched: 0,
        prepare_ms: None,
        first_token_ms: None,
        tokens_per_s: None,
        error: None,
    }
}

impl Actor for SessionActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        context.run_interval(self.deps.limits.lease / 3, |session, _| session.renew());
        for command in self.machine.start() {
            self.execute(command, context);
        }
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.deps.table.detach(self.spec.id);
    }
}

impl Handler<Frame> for SessionActor {
    type Result = ();

    fn handle(&mut self, Frame { from, frame }: Frame, context: &mut Context<Self>) {
        if !self.machine.route().any(|(stage, _)| stage.peer == from) {
            tracing::warn!(session = %self.spec.id, peer = %from, "a frame from outside the route");
            return;
        }
        let is_last = self
            .machine
            .route()
            .last()
            .is_some_and(|(stage, _)| stage.peer == from);
        let event = match frame {
            TensorFrame::Token {
                epoch,
                step,
                position,
                token,
                logprob,
                top,
                ..
            } if is_last => {
                let drawn = Drawn {
                    token,
                    logprob,
                    top,
                };
                Event::Token {
                    epoch,
                    step,
                    position,
                    drawn,
                }
            }
            TensorFrame::Applied { epoch, step, .. } if is_last => Event::Applied { epoch, step },
            TensorFrame::Failed {
                epoch,
                code,
                message,
                ..
            } => {
                let message = format!("peer {from} could not go on: {message}");
                let failure = Failure::unavailable(code, message, "send the request again");
                Event::StepFailed { epoch, failure }
            }
            _ => return,
        };
        self.feed(event, context);
    }
}

impl Handler<Lost> for SessionActor {
    type Result = ();

    fn handle(&mut self, Lost(peer): Lost, context: &mut Context<Self>) {
        self.feed(Event::PeerLost(peer), context);
    }
}

impl Handler<ShutDown> for SessionActor {
    type Result = ();

    fn handle(&mut self, _: ShutDown, context: &mut Context<Self>) {
        self.feed(Event::Cancel, context);
    }
}

impl Handler<Happened> for SessionActor {
    type Result = ();

    fn handle(&mut self, Happened(event): Happened, context: &mut Context<Self>) {
        self.feed(event, context);
    }
}
