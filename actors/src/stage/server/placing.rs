//! Seats over the life of a placement: prepared, committed, given up, ended. A KV cache may outlast
//! its plan, so that the next one need not build it again; the newest epoch alone writes into it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_inference::LayerRange;
use accel_p2p::PeerId;
use accel_p2p::wire::{ControlReply, ControlRequest, SessionId};
use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::sync::mpsc;

use super::super::fence::Fence;
use super::super::ledger::StageKey;
use super::super::obtain::Layers;
use super::super::outlet::{Next, Outlet, Place};
use super::super::prepare::{self, Order, Prepared};
use super::super::scribe::Scribe;
use super::super::seat::{
    Cache, Live, Seat, SeatState, answer, endpoint_of, not_ready, params_of, refused, stale,
};
use super::{MOST_SEATS, StageServer};
use crate::error::Failure;

/// The longest lease that is granted.
const LONGEST_LEASE: Duration = Duration::from_secs(120);

impl StageServer {
    fn newest_epoch(&self, session: SessionId) -> u64 {
        let seat = self.seats.newest(session).map_or(0, |seat| seat.epoch);
        seat.max(self.past.get(&session).map_or(0, |(epoch, _)| *epoch))
    }

    pub(super) fn prepare(
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
            keep,
        } = request
        else {
            return;
        };
        let layers = LayerRange::new(first, end);
        let key = StageKey { model, layers };
        if let Err(failure) = self.may_prepare(session, epoch, layers) {
            return answer(&replies, refused(&failure));
        }
        let kept = match keep.cache {
            true => self.take_over(session, key, u64::from(max_tokens), context),
            false => None,
        };
        if keep.only && kept.is_none() {
            return answer(&replies, refused(&nothing_kept()));
        }
        let goes_on = |seat: &Seat| seat.epoch == keep.beside && seat.coordinator == from;
        self.leave_if(session, |seat| !goes_on(seat), context);
        let (kept, tenant) = match kept {
            Some((cache, tenant)) => (Some(cache), tenant),
            None => (None, tenant(session, epoch)),
        };
        let lease = Duration::from_millis(lease_ms).min(LONGEST_LEASE);
        let order = Order {
            tenant,
            layers: Layers {
                model,
                model_bytes,
                layers,
                total_layers,
                providers,
            },
            max_tokens,
            keep,
        };
        let (deps, cache, told) = (Arc::clone(&self.deps), kept.clone(), replies.clone());
        let work = async move {
            match cache {
                Some(cache) => prepare::again(deps, cache).await,
                None => prepare::run(deps, order, told).await,
            }
        };
        let task = work.into_actor(self).map(move |result, server, context| {
            server.prepared(session, epoch, result, &replies, context);
        });
        let seat = Seat {
            epoch,
            coordinator: from,
            key,
            tenant,
            max_tokens: u64::from(max_tokens),
            expires: Instant::now() + lease,
            lease,
            nonce: None,
            state: SeatState::Preparing {
                task: context.spawn(task),
                kept,
            },
        };
        self.seats.push(session, seat);
    }

    /// The KV cache of an older epoch that a new one goes on with, if it has the same layers and
    /// the same length, and in whose name its memory is reserved. From now on nobody writes into it until
    /// the new plan is live.
    fn take_over(
        &mut self,
        session: SessionId,
        key: StageKey,
        max_tokens: u64,
        context: &mut Context<Self>,
    ) -> Option<(Cache, SessionId)> {
        let is_it = |seat: &Seat| {
            let is_same = seat.key == key && seat.max_tokens == max_tokens;
            let cache = seat.filled_cache();
            is_same && cache.is_some_and(|cache| !cache.engine.is_dead())
        };
        let seat = self.seats.take(session, is_it)?;
        let cache = seat.filled_cache()?.clone();
        if let SeatState::Preparing { task, .. } = seat.state {
            context.cancel_future(task);
        }
        self.remember(session, seat.epoch);
        Some((cache, seat.tenant))
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
        if self.deps.shelf.is_draining() && !self.seats.has(session) {
            let message = "this node takes no more layers: it is draining";
            return Err(Failure::unavailable(
                "draining",
                message,
                "another node takes them",
            ));
        }
        if self.seats.sessions() >= MOST_SEATS {
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
        let current = self.seats.of(session, epoch);
        match (result, current) {
            (Ok(prepared), Some(seat)) => {
                let Prepared {
                    cache,
                    length,
                    reply,
                } = prepared;
                seat.state = SeatState::Ready { cache, length };
                seat.expires = Instant::now() + seat.lease;
                answer(replies, reply);
            }
            (Ok(Prepared { cache, .. }), None) => cache.engine.close(cache.seq),
            (Err(failure), current) => {
                if current.is_some() {
                    self.leave_if(session, |seat| seat.epoch == epoch, context);
                }
                answer(replies, refused(&failure));
            }
        }
    }

    pub(super) fn commit(&mut self, from: PeerId, request: ControlRequest) -> Result<(), Failure> {
        let ControlRequest::Commit {
            session,
            epoch,
            route,
            coordinator,
            sampling,
            length,
            donor,
        } = request
        else {
            return Ok(());
        };
        let own = self.deps.peers.endpoint().peer;
        let deps = Arc::clone(&self.deps);
        let seat = self.seat(session, epoch, from)?;
        let nonce = seat.nonce;
        if nonce.is_some() && donor.is_some() {
            // What it signs, it has computed.
            return Err(not_ready());
        }
        let SeatState::Ready {
            cache,
            length: have,
        } = &seat.state
        else {
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
        let cache = cache.clone();
        let cache = cache.witnessed(nonce, (layers.first, layers.end), length)?;
        cache.cut(*have, length, seat.max_tokens)?;
        let scribe = cache.account.as_ref().map(|account| {
            let account = Arc::clone(account);
            let numerics = cache.engine.numerics();
            Scribe::new(
                &deps,
                &seat.key,
                account,
                &route,
                at,
                sampling.clone(),
                numerics,
            )
        });
        let (peers, sessions) = (Arc::clone(&deps.peers), Arc::clone(&deps.sessions));
        let place = Place {
            session,
            epoch,
            at: at as u32,
        };
        let outputs = cache.outputs.clone();
        seat.state = SeatState::Live(Live {
            cache,
            upstream: upstream.map_or(from, |hop| hop.peer),
            donor,
            fence: Fence::new(epoch, length, seat.max_tokens),
            outlet: Outlet::open(place, next, outputs, scribe, coordinator, peers, sessions),
        });
        seat.expires = Instant::now() + seat.lease;
        Ok(())
    }

    /// The seat of a session, if the caller is its coordinator and the epoch is the live one.
    fn seat(&mut self, session: SessionId, epoch: u64, from: PeerId) -> Result<&mut Seat, Failure> {
        let newest = self.newest_epoch(session);
        match self.seats.of(session, epoch) {
            Some(seat) if seat.coordinator == from => Ok(seat),
            _ if epoch < newest => Err(stale(epoch, newest)),
            _ => Err(Failure::unavailable(
                "unknown_session",
                "this node has nothing prepared for the session under this epoch",
                "the reservation may have expired; send the request again",
            )),
        }
    }

    /// The stage is to keep account, from its next plan on.
    pub(super) fn witness(
        &mut self,
        from: PeerId,
        session: SessionId,
        epoch: u64,
        nonce: [u8; 32],
    ) -> Result<(), Failure> {
        let seat = self.seat(session, epoch, from)?;
        match seat.state {
            SeatState::Ready { .. } => {
                seat.nonce = Some(nonce);
                Ok(())
            }
            _ => Err(not_ready()),
        }
    }

    pub(super) fn renew(
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

    /// Gives a plan up. A KV cache with something in it stays for the next one; only the session's
    /// end and the lease free it.
    pub(super) fn abort(
        &mut self,
        from: PeerId,
        session: SessionId,
        epoch: u64,
        context: &mut Context<Self>,
    ) -> Result<(), Failure> {
        let newest = self.seats.newest(session).map_or(0, |seat| seat.epoch);
        let is_its = |seat: &Seat| newest <= epoch && seat.coordinator == from;
        let seat = self.seats.find(session, is_its);
        let Some((seat, cache)) = seat.and_then(|seat| {
            let cache = seat.filled_cache()?.clone();
            Some((seat, cache))
        }) else {
            return self.end(from, session, epoch, context);
        };
        // Also when the plan's own request is still on its way: then it comes too late.
        seat.epoch = epoch;
        let before = std::mem::replace(&mut seat.state, SeatState::Kept(cache));
        if let SeatState::Preparing { task, .. } = before {
            context.cancel_future(task);
        }
        self.leave_if(session, |seat| seat.epoch != epoch, context);
        Ok(())
    }

    /// Gives up what was prepared under just this epoch, also when the request for that is still on its way.
    pub(super) fn leave_plan(
        &mut self,
        from: PeerId,
        session: SessionId,
        epoch: u64,
        context: &mut Context<Self>,
    ) {
        let is_it = |seat: &Seat| seat.epoch == epoch && seat.coordinator == from;
        self.leave_if(session, is_it, context);
        if self
            .seats
            .newest(session)
            .is_none_or(|seat| seat.coordinator == from)
        {
            self.remember(session, epoch);
        }
    }

    /// Release, and Abort where there is nothing to keep: done when nothing is held any more, also
    /// when nothing was.
    pub(super) fn end(
        &mut self,
        from: PeerId,
        session: SessionId,
        epoch: u64,
        context: &mut Context<Self>,
    ) -> Result<(), Failure> {
        let Some(newest) = self.seats.newest(session).map(|seat| seat.epoch) else {
            self.remember(session, epoch);
            return Ok(());
        };
        let is_over = |seat: &Seat| seat.epoch <= epoch;
        match self.seats.find(session, is_over) {
            None => Err(stale(epoch, newest)),
            Some(seat) if seat.coordinator != from => Err(not_ready()),
            Some(_) => {
                self.leave_if(session, is_over, context);
                Ok(())
            }
        }
    }

    /// Gives up such seats of a session with all that they hold.
    pub(super) fn leave_if(
        &mut self,
        session: SessionId,
        is_over: impl Fn(&Seat) -> bool,
        context: &mut Context<Self>,
    ) {
        while let Some(seat) = self.seats.take(session, &is_over) {
            if let Some(cache) = seat.cache() {
                cache.engine.close(cache.seq);
            }
            self.deps.shelf.release(seat.tenant, &seat.key);
            self.remember(session, seat.epoch);
            if let SeatState::Preparing { task, .. } = seat.state {
                context.cancel_future(task);
            }
        }
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
}

/// In whose name the memory of a seat is reserved: a session may have two.
fn tenant(session: SessionId, epoch: u64) -> SessionId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&session.bytes());
    hasher.update(&epoch.to_le_bytes());
    let mut name = [0; 16];
    hasher.finalize_xof().fill(&mut name);
    SessionId(name)
}

fn nothing_kept() -> Failure {
    let message = "nothing of the session is kept here for these layers";
    Failure::unavailable(
        "nothing_kept",
        message,
        "it is computed or fetched elsewhere",
    )
}
