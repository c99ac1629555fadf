//! The actor's part in a placement: asking the planner, the stages of the route, and keeping
//! their leases alive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_p2p::PeerId;
use accel_p2p::wire::{ControlReply, ControlRequest, Hop, Keep, PeerEndpoint};
use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};

use super::actor::SessionActor;
use super::event::{Event, RouteStage, StageReport};
use super::recovery::strategy;
use super::recovery::wager::Wager;
use crate::error::{Failure, SESSION_MOVED};
use crate::evidence::sampling_wire;
use crate::placement::{Placement, Wanted};

impl SessionActor {
    pub(super) fn plan(
        &mut self,
        epoch: u64,
        excluding: Vec<PeerId>,
        anew: bool,
        context: &mut Context<Self>,
    ) {
        let deps = Arc::clone(&self.deps);
        let (model, shape) = (self.spec.model.clone(), Arc::clone(&self.spec.shape));
        let tokens = self.spec.max_tokens;
        let wanted = self.wanted(excluding, anew);
        let bench = self.spec.bench.clone();
        let planning = async move {
            match bench {
                Some((bench, lane)) => bench.place(lane, tokens, wanted).await,
                None => deps.placer.place(&model, &shape, tokens, &wanted).await,
            }
        };
        let done = planning
            .into_actor(self)
            .map(move |placed, session, context| match placed {
                Ok(placement) => {
                    let (route, weighed) = (placement.route.clone(), placement.plan.weighed);
                    session.endpoints.extend(placement.endpoints.clone());
                    session.spec.placement = placement;
                    let planned = Event::Planned {
                        epoch,
                        route,
                        weighed,
                    };
                    session.feed(planned, context);
                }
                Err(error) => {
                    tracing::info!(session = %session.spec.id, %error, "no other placement");
                    let (code, message, hint) = (error.code(), error.to_string(), error.hint());
                    let failure = Failure::new(error.kind(), code, message, hint);
                    session.feed(Event::NoPlan { epoch, failure }, context);
                }
            });
        context.spawn(done);
    }

    fn wanted(&self, excluding: Vec<PeerId>, anew: bool) -> Wanted {
        Wanted {
            excluding,
            numerics: Some(self.spec.opening.numerics.clone()),
            held: match anew {
                true => Vec::new(),
                false => self.held(),
            },
            progress: self.machine.progress(),
            warm: self.warm(),
        }
    }

    /// Who could stand in for peers that may only be slow, and what that is worth.
    pub(super) fn find_stand_ins(
        &mut self,
        epoch: u64,
        rows: u32,
        excluding: Vec<PeerId>,
        context: &mut Context<Self>,
    ) {
        let deps = Arc::clone(&self.deps);
        let (model, shape) = (self.spec.model.clone(), Arc::clone(&self.spec.shape));
        let tokens = self.spec.max_tokens;
        let wanted = self.wanted(excluding, false);
        let patience = self.step_timeout(rows);
        let looking = async move { deps.placer.place(&model, &shape, tokens, &wanted).await };
        let done = looking
            .into_actor(self)
            .map(move |placed, session, context| {
                let Ok(placement) = placed else {
                    return;
                };
                let Some(weighed) = placement.plan.weighed else {
                    return;
                };
                if session.machine.epoch() != epoch {
                    // It has another route by now.
                    return;
                }
                let wager = Wager {
                    stand_ins: Duration::from_nanos(weighed.next_ns),
                    patience,
                    odds: session.deps.placer.health.odds(),
                };
                let route = placement.route.clone();
                session.get_to_know(placement);
                let found = Event::StandInsFound {
                    epoch,
                    route,
                    wager,
                };
                session.feed(found, context);
            });
        context.spawn(done);
    }

    /// A route that the session may go over to; until then it goes on as it does.
    pub(super) fn get_to_know(&mut self, placement: Placement) {
        self.endpoints.extend(placement.endpoints.clone());
        // Until it has moved, steps may take as long as they do now.
        let token_ns = self.spec.placement.token_ns.max(placement.token_ns);
        self.spec.placement = placement;
        self.spec.placement.token_ns = token_ns;
    }

    pub(super) fn stage(&self, epoch: u64, stage: usize) -> Option<RouteStage> {
        self.machine.route_of(epoch).get(stage).cloned()
    }

    pub(super) fn prepare(
        &mut self,
        epoch: u64,
        stage: usize,
        keeps: bool,
        context: &mut Context<Self>,
    ) {
        // A new epoch forwards over connections of its own.
        let present = self.machine.epoch();
        self.ways.retain(|(of, _), _| *of >= present);
        let Some(RouteStage { peer, layers }) = self.machine.party(epoch, stage) else {
            return;
        };
        self.deps.placer.health.placed(peer, Instant::now());
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
            keep: Keep {
                cache: keeps,
                outputs: strategy(self.spec.opening.fault_tolerance).is_some(),
                only: self.stage(epoch, stage).is_none(),
                beside: match self.machine.is_beside(epoch, stage) {
                    true => present,
                    false => 0,
                },
            },
        };
        let (link, silence) = (self.deps.link.clone(), self.deps.limits.prepare_silence);
        let call = async move { link.call(peer, request, silence).await };
        let done = call.into_actor(self).map(move |reply, session, context| {
            let numerics = &session.spec.placement.plan.numerics;
            let event = prepared(epoch, stage, numerics, reply);
            session.feed(event, context);
        });
        context.spawn(done);
    }

    pub(super) fn commit(
        &mut self,
        epoch: u64,
        stage: usize,
        length: u64,
        donor: Option<PeerId>,
        context: &mut Context<Self>,
    ) {
        let Some(RouteStage { peer, .. }) = self.stage(epoch, stage) else {
            return;
        };
        let request = ControlRequest::Commit {
            session: self.spec.id,
            epoch,
            route: self.hops(epoch),
            coordinator: self.deps.link.peers.endpoint(),
            sampling: sampling_wire(&self.spec.sampling),
            length,
            donor,
        };
        let session = self.spec.id;
        let nonce = self.spec.bench.as_ref().map(|(bench, _)| bench.nonce());
        let (link, silence) = (self.deps.link.clone(), self.deps.limits.commit_timeout);
        let call = async move {
            if let Some(nonce) = nonce {
                let witness = ControlRequest::Witness {
                    session,
                    epoch,
                    nonce,
                };
                link.call(peer, witness, silence).await?;
            }
            link.call(peer, request, silence).await
        };
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

    fn hops(&self, epoch: u64) -> Vec<Hop> {
        let stages = self.machine.route_of(epoch).iter();
        let hop = |stage: &RouteStage| Hop {
            peer: stage.peer,
            tensor_addrs: self.endpoint(stage.peer).tensor_addrs,
            layers: (stage.layers.first, stage.layers.end),
        };
        stages.map(hop).collect()
    }

    pub(super) fn endpoint(&self, peer: PeerId) -> PeerEndpoint {
        let known = self.endpoints.get(&peer).cloned();
        known.unwrap_or(PeerEndpoint {
            peer,
            tensor_addrs: Vec::new(),
        })
    }

    /// Shows every stage that the coordinator lives.
    pub(super) fn renew(&mut self, context: &mut Context<Self>) {
        self.consider_moving(context);
        let session = self.spec.id;
        let lease = self.deps.limits.lease;
        let is_held = self.machine.is_held();
        let leased = self.machine.leased().into_iter();
        for (peer, epoch) in leased.filter(|_| is_held) {
            let lease_ms = lease.as_millis() as u64;
            let request = ControlRequest::Renew {
                session,
                epoch,
                lease_ms,
            };
            let link = self.deps.link.clone();
            let asked = Instant::now();
            let call = async move { link.call(peer, request, lease).await };
            let done = call.into_actor(self).map(move |reply, actor, context| {
                let Err(failure) = reply else {
                    let health = &actor.deps.placer.health;
                    return health.answered(peer, asked.elapsed(), Instant::now());
                };
                tracing::debug!(%session, %peer, %failure, "a lease was not renewed");
                if failure.code == SESSION_MOVED {
                    actor.feed(Event::Deposed, context);
                }
            });
            context.spawn(done);
        }
    }
}

fn prepared(
    epoch: u64,
    stage: usize,
    planned: &str,
    reply: Result<ControlReply, Failure>,
) -> Event {
    let failure = match reply {
        Ok(ControlReply::Ready {
            bytes_fetched,
            blocks_fetched,
            numerics,
            held,
            ..
        }) if numerics == planned => {
            let report = StageReport {
                bytes_fetched,
                blocks_fetched,
                cached: held.cached,
                outputs: held.outputs,
                prefill_ns: held.prefill_ns,
                plane_bytes_s: held.plane_bytes_s,
            };
            return Event::Prepared {
                epoch,
                stage,
                report,
            };
        }
        Ok(ControlReply::Ready { numerics, .. }) => Failure::unavailable(
            "mixed_numerics",
            format!("a stage computes in the class {numerics}, the plan is for {planned}"),
            "results of different classes are not comparable; update accel on all nodes",
        ),
        Ok(_) => Failure::unavailable("bad_reply", "a peer gave no proper answer", ""),
        Err(failure) => failure,
    };
    Event::Refused {
        epoch,
        stage,
        failure,
    }
}
