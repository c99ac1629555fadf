//! What the lanes of a witnessed session have in common: it launches them, keeps their routes apart,
//! hears what they say about each token, and carries out what the jury rules.

pub(crate) mod audit;
mod case;
pub(crate) mod lanes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel_inference::LayerRange;
use accel_p2p::{Claim, PeerId, SessionId, SignedClaim};
use actix::Addr;

use super::actor::{Happened, SessionActor, SessionDeps};
use super::event::{Drawn, Event, RouteStage};
use super::jury::{Jury, Lane, Ruling, Statement};
use super::recovery::FaultKind;
use crate::account::{self, Chain};
use crate::error::Failure;
use crate::stage::are_theirs;
pub(crate) use case::Case;

/// See the module.
pub(crate) struct Bench {
    deps: Arc<SessionDeps>,
    case: Case,
    inner: Mutex<Inner>,
}

struct Inner {
    jury: Jury,
    /// What the first stages are given.
    given: Chain,
    /// The same as it is: prompt, and every token that was accepted.
    tokens: Vec<u32>,
    /// The layers of each stage, the same in all lanes.
    cuts: Vec<LayerRange>,
    routes: BTreeMap<Lane, Vec<PeerId>>,
    actors: BTreeMap<Lane, Seat>,
    /// What lanes said that is not ruled on yet.
    held: BTreeMap<Lane, Held>,
    audit: audit::Audit,
    /// Who is not to give a third opinion.
    partial: Vec<PeerId>,
    is_over: bool,
}

/// The actor of a lane.
pub(super) struct Seat {
    session: SessionId,
    actor: Addr<SessionActor>,
}

/// A token that waits for a ruling.
struct Held {
    epoch: u64,
    event: Event,
}

/// What a lane says about a token, before it is checked.
pub(super) struct Said {
    pub(super) epoch: u64,
    pub(super) step: u64,
    pub(super) position: u64,
    pub(super) drawn: Drawn,
    pub(super) claims: Vec<SignedClaim>,
}

impl Bench {
    /// For a session with so many tokens.
    pub(crate) fn new(deps: Arc<SessionDeps>, case: Case, tokens: Vec<u32>) -> Arc<Self> {
        let mut given = Chain::new(&case.nonce, 0);
        given.extend_tokens(&tokens);
        let inner = Inner {
            jury: Jury::default(),
            given,
            tokens,
            cuts: Vec::new(),
            routes: BTreeMap::new(),
            actors: BTreeMap::new(),
            held: BTreeMap::new(),
            audit: audit::Audit::default(),
            partial: Vec::new(),
            is_over: false,
        };
        Arc::new(Self {
            deps,
            case,
            inner: Mutex::new(inner),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the stages' accounts begin with.
    pub(super) fn nonce(&self) -> [u8; 32] {
        self.case.nonce
    }

    /// Whether a token of the lane waits for a ruling: its stages have done their part.
    pub(super) fn holds(&self, lane: Lane, epoch: u64) -> bool {
        let inner = self.lock();
        inner
            .held
            .get(&lane)
            .is_some_and(|held| held.epoch == epoch)
    }

    /// Hears what a lane says about a token, and gives it back where it is not withheld. What is not
    /// even possible is the fault of the last stage, which would not have taken it from another.
    pub(super) fn hear(
        self: &Arc<Self>,
        (session, lane): (SessionId, Lane),
        route: &[RouteStage],
        said: Said,
    ) -> Result<Option<Event>, &'static str> {
        let mut inner = self.lock();
        if inner
            .actors
            .get(&lane)
            .is_none_or(|seat| seat.session != session)
        {
            // Another has its place.
            return Ok(None);
        }
        let statement = self.check(&inner, route, &said);
        let Said {
            epoch,
            step,
            position,
            drawn,
            ..
        } = said;
        let event = Event::Token {
            epoch,
            step,
            position,
            drawn,
        };
        if self.case.is_audited() && lane == Lane::Primary {
            inner.note(statement.ok(), route, &event);
            return Ok(Some(event));
        }
        let statement = statement?;
        inner.held.insert(lane, Held { epoch, event });
        let rulings = inner.jury.said(lane, statement);
        drop(inner);
        if lane == Lane::Third {
            self.dismiss();
        }
        if self.case.is_audited() {
            self.audited(&rulings);
        }
        self.carry_out(rulings);
        Ok(None)
    }

    fn check(
        &self,
        inner: &Inner,
        route: &[RouteStage],
        said: &Said,
    ) -> Result<Statement, &'static str> {
        let stages: Vec<_> = route
            .iter()
            .map(|stage| (stage.peer, (stage.layers.first, stage.layers.end)))
            .collect();
        let plan = self.claim(said.position);
        if !are_theirs(&plan, &stages, &said.claims) {
            return Err("it says nothing about the token, or something that was not signed");
        }
        let (Some(first), Some(last)) = (said.claims.first(), said.claims.last()) else {
            return Err("it says nothing about the token");
        };
        if inner.given.at(said.position) != Some(first.input) {
            return Err("the token is of another position, or of other tokens");
        }
        let Drawn {
            token,
            logprob,
            top,
        } = &said.drawn;
        if account::drawn(&last.input, said.position, *token, *logprob, top) != last.output {
            return Err("the token is not the one that was signed");
        }
        Ok(Statement {
            position: said.position,
            peers: stages.iter().map(|(peer, _)| *peer).collect(),
            claims: said.claims.clone(),
            drawn: said.drawn.clone(),
        })
    }

    /// What all claims about a position have in common.
    fn claim(&self, position: u64) -> Claim {
        Claim {
            position,
            ..self.case.claim()
        }
    }

    fn carry_out(self: &Arc<Self>, rulings: Vec<Ruling>) {
        for ruling in rulings {
            match ruling {
                Ruling::Accept(lane) => self.accept(lane),
                Ruling::Condemn {
                    lane,
                    statement,
                    stage,
                } => self.condemn(lane, &statement, stage),
                Ruling::Convene { excluding } => {
                    self.deps.telemetry.audit().third_opinion();
                    self.lock().partial = excluding;
                    self.launch(Lane::Third);
                }
                Ruling::Dismiss => self.dismiss(),
                Ruling::Undecided => self.give_up(undecided()),
            }
        }
    }

    fn accept(&self, lane: Lane) {
        let mut inner = self.lock();
        let Some(Held { event, .. }) = inner.held.remove(&lane) else {
            return;
        };
        if let Event::Token {
            position, drawn, ..
        } = &event
            && *position == inner.tokens.len() as u64
        {
            inner.tokens.push(drawn.token);
            inner.given.extend_tokens(&[drawn.token]);
        }
        tell(inner.actors.get(&lane), event);
    }

    /// Whoever made something else of the same is left out by this node from now on, and the evidence
    /// is kept.
    fn condemn(&self, lane: Option<Lane>, statement: &Statement, stage: usize) {
        let mut inner = self.lock();
        let (Some(peer), Some(signed)) = (statement.peers.get(stage), statement.claims.get(stage))
        else {
            return;
        };
        let Some(layers) = inner.cuts.get(stage) else {
            return;
        };
        let claim = Claim {
            layers: (layers.first, layers.end),
            input: signed.input,
            output: signed.output,
            ..self.claim(statement.position)
        };
        let tokens = inner.tokens.iter().take(statement.position as usize);
        let evidence = self
            .case
            .evidence(*peer, &claim, signed, tokens.copied().collect());
        let failure = lied(*peer, &evidence.id());
        self.deps.telemetry.audit().lie();
        self.deps.placer.quarantine.condemn(*peer, evidence);
        let held = lane.and_then(|lane| Some((lane, inner.held.remove(&lane)?)));
        if let Some((lane, Held { epoch, .. })) = held {
            let event = Event::Distrusted {
                epoch,
                peers: vec![*peer],
                kind: FaultKind::PeerLied,
                failure,
            };
            tell(inner.actors.get(&lane), event);
        }
    }
}

/// A lane that has ended needs no news; one that has too much to do gets it a moment later.
fn tell(seat: Option<&Seat>, event: Event) {
    let Some(Seat { actor, .. }) = seat else {
        return;
    };
    if let Err(actix::dev::SendError::Full(Happened(event))) = actor.try_send(Happened(event)) {
        let actor = actor.clone();
        actix::spawn(async move {
            let _ = actor.send(Happened(event)).await;
        });
    }
}

fn lied(peer: PeerId, evidence: &str) -> Failure {
    let message =
        format!("peer {peer} computed something else than two others did (evidence {evidence})");
    let hint = "`accel evidence show` says what it signed; send the request again";
    Failure::unavailable("peer_lied", message, hint)
}

fn undecided() -> Failure {
    let message =
        "two routes gave different results for a token, and nobody could decide which is right";
    let hint = "start more nodes and send the request again, or come back with Last-Event-ID";
    Failure::unavailable("no_majority", message, hint)
}
