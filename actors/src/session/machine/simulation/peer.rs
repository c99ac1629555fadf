//! A node with its stage, as the stage server keeps it: one seat for the session, or two while it goes over
//! to other layers of the same node, the real fence and
//! the real store of outputs, results kept for repeats, a KV cache that may outlast its plan, a
//! lease. What it does with a message are effects, for the network to
//! carry out.

mod giving;
mod witnessing;

use std::collections::VecDeque;

use accel_inference::LayerRange;

use super::messages::{Effect, Finished, Held, Message, Onward, Report, Step};
use super::toy::{self, Layers};
use super::weather::Millis;
use crate::account::Account;
use crate::error::SESSION_MOVED;
use crate::session::machine::claim_of;
use crate::stage::BOUNDARY_DISPUTED;
use crate::stage::fence::{Admission, Fence};
use crate::stage::outputs::Outputs;
pub(super) use witnessing::Lie;

/// A reservation without a sign of life of its coordinator expires after this.
const LEASE: Millis = 15_000;
/// Results that are kept for repeats, as the real stages do.
const KEPT: usize = 4;
/// Bytes of a row.
const ROW: usize = size_of::<u64>();

struct Seat {
    /// Who prepared it.
    coordinator: usize,
    epoch: u64,
    layers: LayerRange,
    expires: Millis,
    ready: bool,
    cache: Option<Cache>,
    live: Option<Live>,
}

struct Cache {
    layers: Layers,
    outputs: Option<Outputs>,
    /// What is in it, as hashes, of a witnessed session.
    account: Option<Account>,
}

struct Live {
    coordinator: usize,
    at: usize,
    upstream: usize,
    donor: Option<usize>,
    next: Option<usize>,
    fence: Fence,
    kept: VecDeque<(u64, Onward)>,
    /// A step failed: its rows are missing.
    broken: bool,
}

/// See the module.
pub(super) struct Peer {
    pub(super) up: bool,
    /// Counts restarts: what was begun in another life is forgotten.
    pub(super) life: u32,
    pub(super) stalled_until: Millis,
    pub(super) busy_until: Millis,
    pub(super) slowness: Millis,
    /// How much later it is by its clock than by that of others.
    pub(super) ahead: Millis,
    index: usize,
    limit: u64,
    /// Whether it has memory for outputs.
    remembers: bool,
    /// Of a witnessed session: what accounts begin with.
    pub(super) nonce: Option<[u8; 32]>,
    /// What it does instead of its part, and how often, of a hundred.
    pub(super) lie: Option<(Lie, u32)>,
    /// What decides when it lies.
    pub(super) dice: u64,
    /// By epoch, the newest last.
    seats: Vec<Seat>,
    past: u64,
    /// The newest claim that wrote here.
    wrote: u64,
}

impl Peer {
    pub(super) fn new(index: usize, limit: u64, remembers: bool) -> Self {
        Self {
            up: true,
            life: 0,
            stalled_until: 0,
            busy_until: 0,
            slowness: 1,
            ahead: 0,
            index,
            limit,
            remembers,
            nonce: None,
            lie: None,
            dice: index as u64,
            seats: Vec::new(),
            past: 0,
            wrote: 0,
        }
    }

    /// Everything in memory is gone, also what epochs there were.
    pub(super) fn crash(&mut self) {
        self.up = false;
        self.life += 1;
        self.seats.clear();
        (self.past, self.wrote) = (0, 0);
    }

    pub(super) fn holds(&self) -> bool {
        !self.seats.is_empty()
    }

    /// By the time of others.
    pub(super) fn expire(&mut self, now: Millis) {
        let now = now + self.ahead;
        self.leave_if(|seat| seat.expires <= now);
    }

    fn leave_if(&mut self, is_over: impl Fn(&Seat) -> bool) {
        let left = self.seats.iter().filter(|seat| is_over(seat));
        let newest = left.map(|seat| seat.epoch).max();
        self.past = self.past.max(newest.unwrap_or(0));
        self.seats.retain(|seat| !is_over(seat));
    }

    fn newest(&self) -> u64 {
        let seat = self.seats.last();
        self.past.max(seat.map_or(0, |seat| seat.epoch))
    }

    fn seat(&mut self, epoch: u64) -> Option<&mut Seat> {
        let mut seats = self.seats.iter_mut();
        seats.find(|seat| seat.epoch == epoch)
    }

    /// Takes a message in; `ill` makes it refuse or fail.
    pub(super) fn take(
        &mut self,
        from: usize,
        message: Message,
        now: Millis,
        ill: bool,
    ) -> Vec<Effect> {
        let now = now + self.ahead;
        match message {
            Message::Prepare { call, .. } if ill => {
                vec![Effect::Answer(call, Err("insufficient_memory"))]
            }
            Message::Prepare {
                call,
                epoch,
                layers,
                keeps,
                only,
                beside,
            } => {
                let kept = self.take_over(epoch, layers, keeps);
                match only && kept.is_none() {
                    true => vec![Effect::Answer(call, Err("nothing_kept"))],
                    false => self.prepare((call, from, beside), epoch, (layers, kept), now),
                }
            }
            Message::Commit {
                call,
                epoch,
                route,
                length,
                donor,
            } => {
                let done = self.commit(epoch, &route, (length, donor), now);
                vec![Effect::Answer(call, done.map(|()| Held::default()))]
            }
            Message::Abort { epoch } => {
                self.abort(epoch);
                Vec::new()
            }
            Message::Release { epoch } => {
                self.end(epoch);
                Vec::new()
            }
            Message::Leave { epoch } => {
                self.leave_if(|seat| seat.epoch == epoch);
                self.past = self.past.max(epoch);
                Vec::new()
            }
            Message::Renew { epoch } => self.renew(from, epoch, now),
            Message::Step(step) => self.step(from, step, now, ill),
            Message::Replay(replay) => self.replay(from, replay, now, ill),
            Message::Copy(copy) => self.copy(from, copy, now, ill),
            Message::Rows(rows) => self.rows(from, &rows, now),
            Message::Complaint { epoch, code } => self.pass_on(from, epoch, code),
        }
    }

    fn renew(&mut self, from: usize, epoch: u64, now: Millis) -> Vec<Effect> {
        if self.is_fenced(epoch) {
            let claim = claim_of(epoch);
            return vec![Effect::Report(from, Report::Moved { claim })];
        }
        if let Some(seat) = self.seat(epoch) {
            seat.expires = now + LEASE;
        }
        Vec::new()
    }

    /// Whether a newer coordinator was here.
    fn is_fenced(&self, epoch: u64) -> bool {
        claim_of(self.newest()) > claim_of(epoch)
    }

    fn take_over(&mut self, epoch: u64, layers: LayerRange, keeps: bool) -> Option<Cache> {
        if epoch <= self.newest() {
            return None;
        }
        let is_it = |seat: &Seat| keeps && seat.layers == layers && seat.is_filled();
        let before = self.seats.iter().rposition(is_it)?;
        let before = self.seats.remove(before);
        self.past = self.past.max(before.epoch);
        before.cache
    }

    fn prepare(
        &mut self,
        (call, coordinator, beside): (u64, usize, Option<u64>),
        epoch: u64,
        (layers, cache): (LayerRange, Option<Cache>),
        now: Millis,
    ) -> Vec<Effect> {
        if epoch <= self.newest() {
            let code = match self.is_fenced(epoch) {
                true => SESSION_MOVED,
                false => "stale_epoch",
            };
            return vec![Effect::Answer(call, Err(code))];
        }
        self.leave_if(|seat| beside != Some(seat.epoch) || seat.coordinator != coordinator);
        self.seats.push(Seat {
            coordinator,
            epoch,
            layers,
            expires: now + LEASE,
            ready: false,
            cache,
            live: None,
        });
        vec![Effect::Prepare { call, epoch }]
    }

    /// The weights are there.
    pub(super) fn prepared(&mut self, call: u64, epoch: u64) -> Vec<Effect> {
        let (limit, remembers, nonce) = (self.limit, self.remembers, self.nonce);
        let Some(seat) = self.seat(epoch) else {
            return Vec::new();
        };
        seat.ready = true;
        let layers = seat.layers;
        let cache = seat.cache.get_or_insert_with(|| Cache {
            layers: Layers::new(layers),
            outputs: remembers.then(|| Outputs::new(ROW, limit)),
            account: nonce.map(|nonce| Account::new(nonce, (layers.first, layers.end))),
        });
        let held = Held {
            cached: cache.layers.len(),
            outputs: cache.outputs.as_ref().map_or(0, Outputs::len),
        };
        vec![Effect::Answer(call, Ok(held))]
    }

    fn commit(
        &mut self,
        epoch: u64,
        route: &[usize],
        (length, donor): (u64, Option<usize>),
        now: Millis,
    ) -> Result<(), &'static str> {
        let (index, limit) = (self.index, self.limit);
        let seat = self.seat(epoch).ok_or("unknown_session")?;
        if seat.live.is_some() {
            return Ok(());
        }
        let at = route.iter().position(|peer| *peer == index);
        let at = at.filter(|_| seat.ready).ok_or("not_prepared")?;
        seat.expires = now + LEASE;
        let cache = seat.cache.as_mut().ok_or("not_prepared")?;
        assert!(length <= cache.layers.len(), "more than it said it has");
        cache.layers.truncate(length);
        if let Some(outputs) = &cache.outputs {
            outputs.truncate(length);
        }
        if let Some(account) = &cache.account {
            account.truncate(length);
        }
        let before = at.checked_sub(1).map(|before| route[before]);
        seat.live = Some(Live {
            coordinator: seat.coordinator,
            at,
            donor,
            upstream: before.unwrap_or(seat.coordinator),
            next: route.get(at + 1).copied(),
            fence: Fence::new(epoch, length, limit),
            kept: VecDeque::new(),
            broken: false,
        });
        Ok(())
    }

    fn abort(&mut self, epoch: u64) {
        match self.seats.pop() {
            Some(mut seat) if seat.epoch <= epoch && seat.is_filled() => {
                seat.epoch = epoch;
                (seat.ready, seat.live) = (false, None);
                self.seats = vec![seat];
            }
            seat => {
                self.seats.extend(seat);
                self.end(epoch);
            }
        }
    }

    fn end(&mut self, epoch: u64) {
        if self.seats.is_empty() {
            self.past = self.past.max(epoch);
        }
        self.leave_if(|seat| seat.epoch <= epoch);
    }

    fn pass_on(&mut self, from: usize, epoch: u64, code: &'static str) -> Vec<Effect> {
        let live = self.seat(epoch).and_then(|seat| seat.live.as_ref());
        match live {
            Some(live) if live.next == Some(from) => {
                vec![failed(live.coordinator, epoch, code)]
            }
            _ => Vec::new(),
        }
    }

    fn step(&mut self, from: usize, step: Step, now: Millis, ill: bool) -> Vec<Effect> {
        let (life, epoch) = (self.life, step.epoch);
        let lie = self.lies();
        if self.seats.is_empty() {
            let code = "unknown_session";
            return vec![match from == step.coordinator {
                true => failed(from, epoch, code),
                false => Effect::Send(from, Message::Complaint { epoch, code }),
            }];
        }
        let mut seats = self.seats.iter_mut();
        let Some(seat) = seats.find(|seat| seat.epoch == epoch) else {
            return Vec::new();
        };
        let Some(live) = seat.live.as_mut().filter(|live| live.upstream == from) else {
            return Vec::new();
        };
        seat.expires = now + LEASE;
        let rows = step.rows.len() as u64;
        match live.fence.admit(epoch, step.step, step.position, rows) {
            Admission::Apply => {
                assert_eq!(epoch, seat.epoch, "another epoch writes into the KV cache");
                let claim = claim_of(epoch);
                assert!(
                    claim >= self.wrote,
                    "an older claim writes after a newer one"
                );
                self.wrote = claim;
                live.broken |= ill;
                let cache = seat.cache.as_mut().expect("a live stage has one");
                match live.given(cache, &step, lie) {
                    true => vec![Effect::Compute(live.compute(cache, life, step, lie))],
                    false => {
                        live.broken = true;
                        vec![failed(live.coordinator, epoch, BOUNDARY_DISPUTED)]
                    }
                }
            }
            Admission::Repeat => live.repeat(step.epoch, step.step),
            Admission::Stale { .. } => Vec::new(),
            Admission::Gap { .. } | Admission::TooLong { .. } | Admission::TooLarge => {
                vec![failed(live.coordinator, epoch, "position_gap")]
            }
        }
    }

    /// A result is there: it is kept, and goes where it belongs.
    pub(super) fn finished(&mut self, finished: Finished) -> Vec<Effect> {
        let Some(live) = self
            .seat(finished.epoch)
            .and_then(|seat| seat.live.as_mut())
        else {
            return Vec::new();
        };
        if live.kept.len() >= KEPT {
            live.kept.pop_front();
        }
        live.kept
            .push_back((finished.step, finished.result.clone()));
        vec![live.onward(finished.result)]
    }
}

impl Seat {
    /// Whether there is something in its cache.
    fn is_filled(&self) -> bool {
        self.cache
            .as_ref()
            .is_some_and(|cache| cache.layers.len() > 0)
    }
}

fn bytes(rows: &[u64]) -> Vec<u8> {
    rows.iter().flat_map(|row| row.to_le_bytes()).collect()
}

impl Live {
    fn compute(&mut self, cache: &mut Cache, life: u32, step: Step, lie: Option<Lie>) -> Finished {
        let (epoch, number) = (step.epoch, step.step);
        let finished = |result| Finished {
            life,
            epoch,
            step: number,
            result,
        };
        if self.broken {
            let code = "step_failed";
            return finished(Onward::Report(Report::Failed { epoch, code }));
        }
        let position = step.position + step.rows.len() as u64;
        assert_eq!(cache.layers.len(), step.position, "rows are missing");
        let rows = step.rows.iter();
        let mut rows: Vec<u64> = rows.map(|row| cache.layers.row(*row)).collect();
        let honest = rows.clone();
        if let (Some(Lie::Rows), Some(row)) = (lie, rows.last_mut()) {
            *row ^= 1 << 40;
        }
        if let Some(outputs) = cache.outputs.as_ref().filter(|_| self.next.is_some()) {
            outputs.push(step.position, &bytes(&rows));
        }
        let last = rows.last().copied().unwrap_or_default();
        let token = toy::token(last) ^ u32::from(lie == Some(Lie::Token) && self.next.is_none());
        let claims = self.claims(cache, &step, (&rows, &honest), token, lie);
        if let (Some(Lie::Sends), Some(row)) = (lie, rows.last_mut()) {
            *row ^= 1 << 40;
        }
        finished(match self.next {
            Some(next) if step.until > self.at => Onward::Next(
                next,
                Step {
                    rows,
                    claims,
                    ..step
                },
            ),
            None if step.sample => Onward::Report(Report::Token {
                epoch,
                step: number,
                position,
                token,
                claims,
            }),
            _ => Onward::Report(Report::Applied {
                epoch,
                step: number,
            }),
        })
    }

    fn repeat(&self, epoch: u64, step: u64) -> Vec<Effect> {
        let kept = self.kept.iter().find(|(known, _)| *known == step);
        let oldest = self.kept.front().map_or(0, |(step, _)| *step);
        match kept {
            Some((_, result)) => vec![self.onward(result.clone())],
            None if step < oldest => vec![failed(self.coordinator, epoch, "step_forgotten")],
            None => Vec::new(),
        }
    }

    fn onward(&self, result: Onward) -> Effect {
        match result {
            Onward::Next(next, step) => Effect::Send(next, Message::Step(step)),
            Onward::Report(report) => Effect::Report(self.coordinator, report),
        }
    }
}

fn failed(coordinator: usize, epoch: u64, code: &'static str) -> Effect {
    Effect::Report(coordinator, Report::Failed { epoch, code })
}
