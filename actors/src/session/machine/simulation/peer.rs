//! A node with its stage, as the stage server keeps it: one seat for the session, the real fence,
//! results kept for repeats, a lease. What it does with a message are effects, for the network to
//! carry out.

use std::collections::VecDeque;

use accel_inference::LayerRange;

use super::toy::{self, Layers};
use super::weather::Millis;
use crate::stage::fence::{Admission, Fence};

/// A reservation without a sign of life of its coordinator expires after this.
const LEASE: Millis = 15_000;
/// Results that are kept for repeats, as the real stages do.
const KEPT: usize = 4;

/// What a stage is told.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Prepare {
        call: u64,
        epoch: u64,
        layers: LayerRange,
    },
    Commit {
        call: u64,
        epoch: u64,
        route: Vec<usize>,
    },
    /// Abort and release.
    End {
        epoch: u64,
    },
    Renew {
        epoch: u64,
    },
    Step(Step),
    /// The next stage could not do a step.
    Complaint {
        epoch: u64,
        code: &'static str,
    },
}

/// Rows on their way from stage to stage.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) epoch: u64,
    pub(super) step: u64,
    pub(super) position: u64,
    pub(super) sample: bool,
    pub(super) rows: Vec<u64>,
}

/// What a stage tells the coordinator.
#[derive(Debug, Clone)]
pub(super) enum Report {
    Token {
        epoch: u64,
        step: u64,
        position: u64,
        token: u32,
    },
    Applied {
        epoch: u64,
        step: u64,
    },
    Failed {
        epoch: u64,
        code: &'static str,
    },
}

/// What comes of a message.
#[derive(Debug)]
pub(super) enum Effect {
    /// A call is answered, well or badly.
    Answer(u64, Result<(), &'static str>),
    /// Preparing takes its time.
    Prepare {
        call: u64,
        epoch: u64,
    },
    /// So does computing; then comes the result.
    Compute(Finished),
    Send(usize, Message),
    Report(Report),
}

/// A result, once it is computed.
#[derive(Debug, Clone)]
pub(super) struct Finished {
    pub(super) life: u32,
    epoch: u64,
    step: u64,
    result: Onward,
}

#[derive(Debug, Clone)]
enum Onward {
    Next(usize, Step),
    Report(Report),
}

struct Seat {
    epoch: u64,
    layers: LayerRange,
    expires: Millis,
    ready: bool,
    live: Option<Live>,
}

struct Live {
    upstream: usize,
    next: Option<usize>,
    fence: Fence,
    layers: Layers,
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
    index: usize,
    limit: u64,
    seat: Option<Seat>,
    past: u64,
    /// The newest epoch that wrote here.
    wrote: u64,
}

impl Peer {
    pub(super) fn new(index: usize, limit: u64) -> Self {
        Self {
            up: true,
            life: 0,
            stalled_until: 0,
            busy_until: 0,
            slowness: 1,
            index,
            limit,
            seat: None,
            past: 0,
            wrote: 0,
        }
    }

    /// Everything in memory is gone, also what epochs there were.
    pub(super) fn crash(&mut self) {
        self.up = false;
        self.life += 1;
        self.seat = None;
        (self.past, self.wrote) = (0, 0);
    }

    pub(super) fn holds(&self) -> bool {
        self.seat.is_some()
    }

    pub(super) fn expire(&mut self, now: Millis) {
        if self.seat.as_ref().is_some_and(|seat| seat.expires <= now) {
            self.leave();
        }
    }

    fn leave(&mut self) {
        if let Some(seat) = self.seat.take() {
            self.past = self.past.max(seat.epoch);
        }
    }

    fn newest(&self) -> u64 {
        self.past
            .max(self.seat.as_ref().map_or(0, |seat| seat.epoch))
    }

    fn seat(&mut self, epoch: u64) -> Option<&mut Seat> {
        self.seat.as_mut().filter(|seat| seat.epoch == epoch)
    }

    /// Takes a message in; `ill` makes it refuse or fail.
    pub(super) fn take(
        &mut self,
        from: usize,
        message: Message,
        now: Millis,
        ill: bool,
    ) -> Vec<Effect> {
        match message {
            Message::Prepare { call, .. } if ill => {
                vec![Effect::Answer(call, Err("insufficient_memory"))]
            }
            Message::Prepare {
                call,
                epoch,
                layers,
            } => self.prepare(call, epoch, layers, now),
            Message::Commit { call, epoch, route } => {
                let done = self.commit(epoch, &route, now);
                vec![Effect::Answer(call, done)]
            }
            Message::End { epoch } => {
                self.end(epoch);
                Vec::new()
            }
            Message::Renew { epoch } => {
                if let Some(seat) = self.seat(epoch) {
                    seat.expires = now + LEASE;
                }
                Vec::new()
            }
            Message::Step(step) => self.step(from, step, now, ill),
            Message::Complaint { epoch, code } => self.pass_on(from, epoch, code),
        }
    }

    fn prepare(&mut self, call: u64, epoch: u64, layers: LayerRange, now: Millis) -> Vec<Effect> {
        if epoch <= self.newest() {
            return vec![Effect::Answer(call, Err("stale_epoch"))];
        }
        self.leave();
        self.seat = Some(Seat {
            epoch,
            layers,
            expires: now + LEASE,
            ready: false,
            live: None,
        });
        vec![Effect::Prepare { call, epoch }]
    }

    /// The weights are there.
    pub(super) fn prepared(&mut self, call: u64, epoch: u64) -> Vec<Effect> {
        let Some(seat) = self.seat(epoch) else {
            return Vec::new();
        };
        seat.ready = true;
        vec![Effect::Answer(call, Ok(()))]
    }

    fn commit(&mut self, epoch: u64, route: &[usize], now: Millis) -> Result<(), &'static str> {
        let (index, limit) = (self.index, self.limit);
        let seat = self.seat(epoch).ok_or("unknown_session")?;
        if seat.live.is_some() {
            return Ok(());
        }
        let at = route.iter().position(|peer| *peer == index);
        let at = at.filter(|_| seat.ready).ok_or("not_prepared")?;
        seat.expires = now + LEASE;
        seat.live = Some(Live {
            upstream: at.checked_sub(1).map_or(0, |before| route[before]),
            next: route.get(at + 1).copied(),
            fence: Fence::new(epoch, limit),
            layers: Layers::new(seat.layers),
            kept: VecDeque::new(),
            broken: false,
        });
        Ok(())
    }

    fn end(&mut self, epoch: u64) {
        match &self.seat {
            Some(seat) if seat.epoch > epoch => {}
            Some(_) => self.leave(),
            None => self.past = self.past.max(epoch),
        }
    }

    fn pass_on(&mut self, from: usize, epoch: u64, code: &'static str) -> Vec<Effect> {
        let live = self.seat(epoch).and_then(|seat| seat.live.as_ref());
        match live {
            Some(live) if live.next == Some(from) => {
                vec![Effect::Report(Report::Failed { epoch, code })]
            }
            _ => Vec::new(),
        }
    }

    fn step(&mut self, from: usize, step: Step, now: Millis, ill: bool) -> Vec<Effect> {
        let (life, epoch) = (self.life, step.epoch);
        let Some(seat) = &mut self.seat else {
            let code = "unknown_session";
            let to_coordinator = Effect::Report(Report::Failed { epoch, code });
            let upstream = Effect::Send(from, Message::Complaint { epoch, code });
            return vec![if from == 0 { to_coordinator } else { upstream }];
        };
        let Some(live) = seat.live.as_mut().filter(|live| live.upstream == from) else {
            return Vec::new();
        };
        seat.expires = now + LEASE;
        let rows = step.rows.len() as u64;
        match live.fence.admit(epoch, step.step, step.position, rows) {
            Admission::Apply => {
                assert_eq!(epoch, seat.epoch, "another epoch writes into the KV cache");
                assert!(
                    epoch >= self.wrote,
                    "an older epoch writes after a newer one"
                );
                self.wrote = epoch;
                live.broken |= ill;
                vec![Effect::Compute(live.compute(life, step))]
            }
            Admission::Repeat => live.repeat(step.epoch, step.step),
            Admission::Stale { .. } => Vec::new(),
            Admission::Gap { .. } | Admission::TooLong { .. } | Admission::TooLarge => {
                let code = "position_gap";
                vec![Effect::Report(Report::Failed { epoch, code })]
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
        vec![onward(finished.result)]
    }
}

impl Live {
    fn compute(&mut self, life: u32, step: Step) -> Finished {
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
        let rows: Vec<u64> = step.rows.iter().map(|row| self.layers.row(*row)).collect();
        let last = rows.last().copied().unwrap_or_default();
        finished(match self.next {
            Some(next) => Onward::Next(next, Step { rows, ..step }),
            None if step.sample => Onward::Report(Report::Token {
                epoch,
                step: number,
                position,
                token: toy::token(last),
            }),
            None => Onward::Report(Report::Applied {
                epoch,
                step: number,
            }),
        })
    }

    fn repeat(&self, epoch: u64, step: u64) -> Vec<Effect> {
        let kept = self.kept.iter().find(|(known, _)| *known == step);
        let oldest = self.kept.front().map_or(0, |(step, _)| *step);
        match kept {
            Some((_, result)) => vec![onward(result.clone())],
            None if step < oldest => {
                let code = "step_forgotten";
                vec![Effect::Report(Report::Failed { epoch, code })]
            }
            None => Vec::new(),
        }
    }
}

fn onward(result: Onward) -> Effect {
    match result {
        Onward::Next(next, step) => Effect::Send(next, Message::Step(step)),
        Onward::Report(report) => Effect::Report(report),
    }
}
