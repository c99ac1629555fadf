//! Faults: when peers crash, come back, stall, slow down and are cut off, when their clocks jump, and what
//! becomes of messages.

use rand::Rng;
use rand::seq::SliceRandom;

use super::weather::{Millis, Promise, Weather};
use super::{HOME, Happening, Interruption, Simulation};
use crate::error::Failure;
use crate::session::event::Event;

/// What a session says that cannot be journaled.
pub(super) const DISK: &str = "the disk is full";
/// How long all connections are broken, where they break.
const BREAK: Millis = 300;
/// After so much silence a peer counts as lost.
const SILENCE: Millis = 2_500;
/// How long an advert holds.
pub(super) const EXPIRY: Millis = 15_000;
/// How often a peer says that it is there.
const ADVERT: Millis = 5_000;

/// Messages of some to some others are lost for a while.
#[derive(Debug)]
pub(super) struct Cut {
    from: Vec<usize>,
    to: Vec<usize>,
    until: Millis,
}

impl Simulation {
    /// The session runs: from now on things go wrong.
    pub(super) fn unleash(&mut self) {
        if self.storm.is_some() {
            return;
        }
        let until = self.now + self.weather.window;
        self.storm = Some(until);
        self.offer_later();
        self.at(until, Happening::Calm);
        let Weather {
            crashes,
            stalls,
            slow,
            jumps,
            cuts,
            interruptions,
            ..
        } = self.weather;
        self.unleash_often(crashes, |this| Happening::Crash(this.victim()));
        self.unleash_often(stalls, |this| Happening::Stall(this.anybody()));
        self.unleash_often(slow, |this| Happening::Slow(this.victim()));
        self.unleash_often(jumps, |this| Happening::Jump(this.anybody()));
        self.unleash_often(cuts, |_| Happening::Cut);
        self.unleash_often(interruptions, |this| {
            Happening::Interrupt(Interruption::any(&mut this.rng))
        });
        self.unleash_once();
    }

    fn unleash_often(&mut self, times: u32, what: impl Fn(&mut Self) -> Happening) {
        for _ in 0..times {
            let at = self.now + self.rng.random_range(0..self.weather.window);
            let happening = what(self);
            self.at(at, happening);
        }
    }

    fn unleash_once(&mut self) {
        if self.weather.broken_off {
            let at = self.now + self.rng.random_range(0..self.weather.window);
            let end = match self.rng.random() {
                true => Event::Cancel,
                false => Event::JournalFailed(Failure::internal(DISK)),
            };
            self.later(HOME, at, end);
        }
        if self.weather.breaks {
            let at = self.now + self.rng.random_range(0..2_000);
            self.at(at, Happening::Break);
        }
    }

    fn anybody(&mut self) -> usize {
        self.rng.random_range(0..self.peers.len())
    }

    /// Some peer other than the one that was asked first.
    fn victim(&mut self) -> usize {
        self.rng.random_range(1..self.peers.len())
    }

    pub(super) fn rages(&self) -> bool {
        self.storm.is_some_and(|until| self.now < until)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// Whether a stage refuses or fails now.
    pub(super) fn ill(&mut self, share: u32) -> bool {
        self.rages() && Weather::one_in_thousand(share, &mut self.rng)
    }

    /// The others notice now or later that a node is gone, or do not.
    fn notice(&mut self, index: usize, latest: Millis) {
        for at in 0..self.peers.len() {
            if at != index && self.chance(80) {
                let time = self.now + self.rng.random_range(0..latest);
                self.at(time, Happening::Lost(at, index));
            }
        }
    }

    pub(super) fn crash(&mut self, index: usize) {
        if !self.peers[index].up {
            return;
        }
        self.coordinator_dies(index);
        self.peers[index].crash();
        self.forget_others(index);
        self.notice(index, SILENCE);
        if self.weather.return_soon {
            let back = self.now + self.rng.random_range(100..8_000);
            self.at(back, Happening::Return(index));
        }
    }

    /// A node begins without knowing anybody.
    fn forget_others(&mut self, index: usize) {
        let long_ago = self.now.saturating_sub(EXPIRY);
        let view = &mut self.views[index];
        view.heard.fill(long_ago);
        for (other, is_connected) in view.connected.iter_mut().enumerate() {
            *is_connected = other == index;
        }
    }

    pub(super) fn come_back(&mut self, index: usize) {
        if self.peers[index].up {
            return;
        }
        self.peers[index].up = true;
        for other in 0..self.peers.len() {
            if other != index {
                let greeting = self.now + self.rng.random_range(20..1_000);
                self.at(greeting, Happening::Advert(other, index));
                self.at(greeting, Happening::Advert(index, other));
            }
        }
    }

    pub(super) fn stall(&mut self, index: usize) {
        let length = self.rng.random_range(100..8_000);
        self.peers[index].stalled_until = self.now + length;
        for at in 0..self.peers.len() {
            if at != index && length > SILENCE && self.chance(80) {
                self.at(self.now + SILENCE, Happening::Lost(at, index));
            }
        }
    }

    pub(super) fn slow_down(&mut self, index: usize) {
        self.peers[index].slowness = [3, 30, 300][self.rng.random_range(0..3)];
    }

    /// A node's clock is suddenly later than everybody else's: its leases, timers and what it heard are
    /// so much older.
    pub(super) fn jump(&mut self, index: usize) {
        // By its clock, a coordinator may have waited for long enough then.
        let may_give_up = self.weather.promise == Promise::EndsWell;
        let most = match self.desks.contains_key(&index) && !may_give_up {
            true => 5_000,
            false => 60_000,
        };
        let by = self.rng.random_range(500..most);
        self.peers[index].ahead += by;
        for heard in &mut self.views[index].heard {
            *heard = heard.saturating_sub(by);
        }
        let Some(desk) = self.desks.get(&index) else {
            return;
        };
        let is_due = |happening: &Happening| match happening {
            Happening::Timer(process, ..) => *process == desk.process,
            Happening::Answer(call, Err(_)) => desk.calls.contains_key(call),
            _ => false,
        };
        let waiting = self.queue.iter();
        let due: Vec<_> = waiting
            .filter(|((time, _), waits)| *time < self.now + by && is_due(waits))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            if let Some(happening) = self.queue.remove(&key) {
                self.at(self.now, happening);
            }
        }
    }

    /// All connections are gone for a moment; nobody forgets anything.
    pub(super) fn break_all(&mut self) {
        self.broken_until = self.now + BREAK;
        for index in 1..self.peers.len() {
            let noticed = self.now + self.rng.random_range(0..60);
            self.at(noticed, Happening::Lost(HOME, index));
            let mended = self.broken_until + self.rng.random_range(0..300);
            self.at(mended, Happening::Advert(HOME, index));
        }
    }

    /// Some nodes and some others do not hear each other for a while, or only one side does not.
    pub(super) fn cut(&mut self) {
        let length = self.rng.random_range(100..self.weather.longest_cut);
        let mut nodes: Vec<usize> = (0..self.peers.len()).collect();
        nodes.shuffle(&mut self.rng);
        let size = self.rng.random_range(1..nodes.len());
        let (some, rest) = nodes.split_at(size);
        let others = rest.get(..self.rng.random_range(1..=rest.len()));
        let (some, others) = (some.to_vec(), others.unwrap_or(rest).to_vec());
        let until = self.storm.unwrap_or_default().min(self.now + length);
        let both_ways = self.chance(50);
        self.cuts.push(Cut {
            from: some.clone(),
            to: others.clone(),
            until,
        });
        if both_ways {
            let (from, to) = (others.clone(), some.clone());
            self.cuts.push(Cut { from, to, until });
        }
        for (one, other) in some
            .iter()
            .flat_map(|one| others.iter().map(|other| (*one, *other)))
        {
            // Who hears nothing closes the connection; the other end may learn of that.
            let noticed = self.now + SILENCE + self.rng.random_range(0..500);
            if noticed < until && self.chance(80) {
                self.at(noticed, Happening::Lost(other, one));
            }
            if noticed < until && self.chance(80) {
                self.at(noticed, Happening::Lost(one, other));
            }
        }
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        let cuts =
            |cut: &Cut| self.now < cut.until && cut.from.contains(&from) && cut.to.contains(&to);
        self.cuts.iter().any(cuts)
    }

    /// The storm is over: who may come back is back, and everyone is as fast as before.
    pub(super) fn calm(&mut self) {
        for index in 1..self.peers.len() {
            self.peers[index].slowness = 1;
            self.peers[index].busy_until = self.now;
            if self.weather.return_soon {
                self.come_back(index);
            }
        }
    }

    /// What a peer says of itself every few seconds reaches another, or does not.
    pub(super) fn advert(&mut self, index: usize) -> bool {
        let peer = &self.peers[index];
        let speaks = peer.up && peer.stalled_until <= self.now;
        let is_lost = self.rages() && self.chance(20);
        speaks && !is_lost
    }

    pub(super) fn keep_advertising(&mut self, index: usize) {
        if !self.is_over() {
            self.at(self.now + ADVERT, Happening::Renewal(index));
        }
    }

    /// When a message arrives: not at all, once, or twice.
    pub(super) fn arrivals(&mut self, from: usize, to: usize) -> Vec<Millis> {
        if from == to {
            return vec![self.now];
        }
        if self.now < self.broken_until || self.is_cut(from, to) {
            return Vec::new();
        }
        let (lost, doubled) = (self.weather.lost, self.weather.doubled);
        if self.ill(lost) {
            return Vec::new();
        }
        let copies = if self.ill(doubled) { 2 } else { 1 };
        (0..copies).map(|_| self.arrival(from, to)).collect()
    }

    /// In the order in which they were sent, unless something is held up.
    fn arrival(&mut self, from: usize, to: usize) -> Millis {
        let usual = self.now + self.rng.random_range(1..=5);
        let delayed = self.weather.delayed;
        if self.ill(delayed) {
            return usual + self.rng.random_range(100..3_000);
        }
        let last = self.arrived.entry((from, to)).or_default();
        *last = usual.max(*last);
        *last
    }
}
