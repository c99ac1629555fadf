//! The actor of one session. It carries out what the machine commands and tells it what happened;
//! it decides nothing. It lives from the admission of a request to its outcome. If it fails, the
//! client's pump notices that no outcome came and says so; stages are released by their leases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use accel_inference::{SamplingParams, Tokenizer};
use accel_p2p::PeerId;
use accel_p2p::wire::{ControlRequest, PeerEndpoint, SessionId, TensorFrame};
use accel_storage::Journal;
use actix::{Actor, AsyncContext, Context, Handler, Message, SpawnHandle};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::bench::Bench;
use super::bench::audit::Audits;
use super::event::{Command, Event, RouteStage};
use super::incoming;
use super::jury::Lane;
use super::link::Link;
use super::machine::{Machine, stopping};
use super::moving::Mover;
use super::pump::{self, JournalItem, StageWay};
use super::rebuild::Way;
use super::record::{OpeningRecord, token_record};
use super::recovery::chronicle::{Begun, Chronicle};
use super::replicator::Replicator;
use super::show::first_view;
use super::stand_ins::StandIns;
use super::table::SessionTable;
use super::verdicts::Verdicts;
use crate::config::Limits;
use crate::error::Failure;
use crate::models::ModelRef;
use crate::placement::{Placement, Placer};
use crate::replica::Replicas;
use crate::request::GenEvent;
use crate::telemetry::Telemetry;
use crate::tolerance::FaultTolerance;

/// Messages that may wait: more than a session can have under way.
const MAILBOX: usize = 128;
/// What every session works with.
pub(crate) struct SessionDeps {
    pub(crate) link: Link,
    pub(crate) replicas: Arc<dyn Replicas>,
    pub(crate) journal: Journal,
    pub(crate) placer: Placer,
    pub(crate) table: Arc<SessionTable>,
    pub(crate) limits: Limits,
    /// How much a request survives that does not say so itself.
    pub(crate) fault_tolerance: FaultTolerance,
    pub(crate) telemetry: Telemetry,
    /// Which sessions are computed again by others.
    pub(crate) audits: Audits,
    /// How KV caches are to be rebuilt, instead of the cheapest way: for measurements.
    pub(crate) rebuild: Option<&'static dyn Way>,
    /// Whom this node asked to get ready; absent where it asks nobody.
    pub(crate) stand_ins: Option<Arc<StandIns>>,
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
    /// The records of its tokens so far.
    pub(crate) records: Vec<Vec<u8>>,
    /// Whether the journal has its outcome already.
    pub(crate) is_over: bool,
    pub(crate) events: mpsc::Sender<GenEvent>,
    /// The session's place among those that may run.
    pub(crate) _permit: Option<OwnedSemaphorePermit>,
    /// Of a witnessed session: what its lanes have in common, and which of them it is.
    pub(crate) bench: Option<(Arc<Bench>, Lane)>,
}

/// See the module.
pub(crate) struct SessionActor {
    pub(super) deps: Arc<SessionDeps>,
    pub(super) spec: SessionSpec,
    pub(super) machine: Machine,
    pub(super) timer: Option<SpawnHandle>,
    pub(super) replica_timer: Option<SpawnHandle>,
    pub(super) feed_timer: Option<SpawnHandle>,
    pub(super) client: mpsc::Sender<GenEvent>,
    pub(super) journal: mpsc::Sender<JournalItem>,
    pub(super) replicator: Replicator,
    /// Where steps go, by epoch and stage: to the first one, and to those that feed others.
    pub(super) ways: HashMap<(u64, usize), StageWay>,
    pub(super) endpoints: HashMap<PeerId, PeerEndpoint>,
    pub(super) chronicle: Chronicle,
    pub(super) verdicts: Verdicts,
    pub(super) mover: Mover,
    /// The newest epoch that was begun to be computed in.
    pub(super) begun: u64,
    pub(super) started: Instant,
    pub(super) placed: Option<Instant>,
    /// When the first token was emitted that was drawn here, and how many there were then.
    pub(super) first_token: Option<(Instant, u64)>,
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

/// A peer said something new about itself.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Heard(pub(super) PeerId);

/// The node stops, and waits no longer.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct ShutDown;

/// The session is to stop here; whoever comes back goes on with it.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Suspend(pub(super) Failure);

/// Something happened in one of the session's tasks.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Happened(pub(super) Event);

impl SessionActor {
    /// Starts a session on the current arbiter.
    pub(crate) fn launch(deps: Arc<SessionDeps>, mut spec: SessionSpec, machine: Machine) {
        let (session, bench) = (spec.id, spec.bench.clone());
        let is_beside = matches!(bench, Some((_, Lane::Shadow | Lane::Third)));
        // A session that is over and shown still shows how it was computed.
        let is_shown = spec.is_over && deps.table.view(session).is_some();
        if !is_shown && !is_beside {
            deps.table
                .enter(session, first_view(&spec, machine.tokens_before()));
        }
        let table = Arc::clone(&deps.table);
        let addr = Self::create(|context| {
            context.set_mailbox_capacity(MAILBOX);
            let addr = context.address();
            let events = spec.events.clone();
            let client = pump::to_client(events, addr.clone(), deps.limits.client_timeout);
            let journal = match is_beside {
                true => pump::to_nowhere(addr),
                false => pump::to_journal(deps.journal.clone(), session, addr),
            };
            let endpoints = spec.placement.endpoints.clone();
            let opening = spec.opening.to_bytes();
            let records = std::mem::take(&mut spec.records);
            let replicas = Arc::clone(&deps.replicas);
            let replicator = Replicator::new(replicas, session, opening, records);
            Self {
                deps,
                spec,
                machine,
                timer: None,
                replica_timer: None,
                feed_timer: None,
                client,
                journal,
                replicator,
                ways: HashMap::new(),
                endpoints,
                chronicle: Chronicle::new(Instant::now()),
                verdicts: Verdicts::default(),
                mover: Mover::default(),
                begun: 0,
                started: Instant::now(),
                placed: None,
                first_token: None,
            }
        });
        table.attach(session, addr.clone());
        if let Some((bench, lane)) = bench {
            bench.enter(session, lane, addr);
        }
    }

    pub(super) fn feed(&mut self, event: Event, context: &mut Context<Self>) {
        if let Some(timer) = self.adjourned(&event) {
            return self.arm(timer, context);
        }
        self.judge(&event);
        let commands = self.machine.on(event);
        for command in commands {
            self.execute(command, context);
        }
        self.show();
    }

    fn execute(&mut self, command: Command, context: &mut Context<Self>) {
        match command {
            Command::JournalOpen => self.journal(JournalItem::Open(self.spec.opening.to_bytes())),
            Command::JournalClaim { claim } => self.journal(JournalItem::Claim(claim)),
            Command::Plan {
                epoch,
                excluding,
                anew,
            } => self.plan(epoch, excluding, anew, context),
            Command::Prepare {
                epoch,
                stage,
                keeps,
            } => self.prepare(epoch, stage, keeps, context),
            Command::Commit {
                epoch,
                stage,
                length,
                donor,
            } => self.commit(epoch, stage, length, donor, context),
            Command::Abort { epoch, stage } => {
                let session = self.spec.id;
                self.end(&stage, ControlRequest::Abort { session, epoch });
            }
            Command::Release { epoch, stage } => {
                let session = self.spec.id;
                self.end(&stage, ControlRequest::Release { session, epoch });
            }
            Command::Leave { epoch, stage } => {
                let session = self.spec.id;
                self.end(&stage, ControlRequest::Leave { session, epoch });
            }
            Command::Forward { .. } | Command::Replay { .. } | Command::Copy { .. } => {
                self.send_step(command, context);
            }
            Command::Reconnect { epoch } => self.ways.retain(|(of, _), _| *of != epoch),
            Command::Recovering {
                fault,
                strategy,
                remedy,
                replayed,
                reason,
            } => self.recovering(Begun {
                fault,
                strategy,
                remedy,
                replayed,
                reason,
            }),
            Command::FindStandIns {
                epoch,
                rows,
                excluding,
            } => self.find_stand_ins(epoch, rows, excluding, context),
            Command::Wagered {
                strategy,
                races,
                wager,
            } => self.wagered(strategy, races, &wager),
            Command::Weighed { strategy, weighed } => self.weighed(strategy, &weighed),
            Command::Rebuilding {
                way,
                prices,
                replayed,
            } => self.rebuilding(way, &prices, replayed),
            Command::Recovered => self.recovered(),
            Command::Switching { before, .. } => self.switching(before),
            Command::Moved => self.moved(),
            Command::MoveDropped { cut_anew } => self.move_dropped(cut_anew),
            Command::JournalToken { index, drawn } => {
                self.chronicle.moved(Instant::now());
                let record = token_record(&drawn);
                if self.spec.opening.is_resumable() {
                    self.replicator.push(record.clone());
                }
                self.journal(JournalItem::Token { index, record });
            }
            Command::FindReplicas { excluding } => self.find_replicas(excluding, context),
            Command::OpenReplica { peer, claim } => self.open_replica(peer, claim, context),
            Command::DropReplica { peer } => self.drop_replica(peer),
            Command::Emit { index, text, drawn } => self.emit(index, text, drawn),
            Command::Arm(timer) => self.arm(timer, context),
            Command::Close(outcome) => self.close(outcome, context),
        }
    }
}

impl Actor for SessionActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        context.run_interval(self.deps.limits.lease / 3, Self::renew);
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
        let (frame, claims) = match frame {
            TensorFrame::Claimed { frame, claims } => (*frame, Some(claims)),
            frame => (frame, None),
        };
        let peers = |stages: &[RouteStage]| stages.iter().map(|stage| stage.peer).collect();
        let epoch = frame.epoch();
        let route: Vec<PeerId> = peers(self.machine.route_of(epoch));
        let donors: Vec<PeerId> = peers(&self.machine.donors_of(epoch));
        match incoming::event(&route, &donors, from, frame) {
            Some(event) => self.hear(event, claims, context),
            None => {
                tracing::debug!(session = %self.spec.id, peer = %from, "a frame out of place");
            }
        }
    }
}

impl Handler<Lost> for SessionActor {
    type Result = ();

    fn handle(&mut self, Lost(peer): Lost, context: &mut Context<Self>) {
        self.feed(Event::PeerLost(peer), context);
    }
}

impl Handler<Heard> for SessionActor {
    type Result = ();

    fn handle(&mut self, Heard(peer): Heard, context: &mut Context<Self>) {
        self.feed(Event::PeerHeard(peer), context);
        self.consider_moving(context);
    }
}

impl Handler<ShutDown> for SessionActor {
    type Result = ();

    fn handle(&mut self, _: ShutDown, context: &mut Context<Self>) {
        self.feed(Event::Suspend(stopping()), context);
    }
}

impl Handler<Suspend> for SessionActor {
    type Result = ();

    fn handle(&mut self, Suspend(failure): Suspend, context: &mut Context<Self>) {
        self.feed(Event::Suspend(failure), context);
    }
}

impl Handler<Happened> for SessionActor {
    type Result = ();

    fn handle(&mut self, Happened(event): Happened, context: &mut Context<Self>) {
        self.feed(event, context);
    }
}
