//! Faults: when peers crash, come back, stall and slow down, and what becomes of messages.

use rand::Rng;

use super::weather::{Millis, Weather};
use super::{Happening, Interruption, Simulation};
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
            breaks,
            broken_off,
            ..
        } = self.weather;
        for _ in 0..crashes {
            let (peer, at) = self.victim();
            self.at(at, Happening::Crash(peer));
        }
        for _ in 0..stalls {
            let (peer, at) = self.victim();
            self.at(at, Happening::Stall(peer));
        }
        for _ in 0..slow {
            let (peer, at) = self.victim();
            self.at(at, Happening::Slow(peer));
        }
        if broken_off {
            let at = self.now + self.rng.random_range(0..self.weather.window);
            let end = match self.rng.random() {
                true => Event::Cancel,
                false => Event::JournalFailed(Failure::internal(DISK)),
            };
            self.later(at, end);
        }
        for _ in 0..self.weather.interruptions {
            let at = self.now + self.rng.random_range(0..self.weather.window);
            let how = Interruption::any(&mut self.rng);
            self.at(at, Happening::Interrupt(how));
        }
        if breaks {
            let at = self.now + self.rng.random_range(0..2_000);
            self.at(at, Happening::Break);
        }
    }

    /// Some peer other than the coordinator, at some time of the storm.
    fn victim(&mut self) -> (usize, Millis) {
        let peer = self.rng.random_range(1..self.peers.len());
        let after = self.rng.random_range(0..self.weather.window);
        (peer, self.now + after)
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

    pub(super) fn crash(&mut self, index: usize) {
        if !self.peers[index].up {
            return;
        }
        self.peers[index].crash();
        if self.chance(80) {
            let notice = self.now + self.rng.random_range(0..SILENCE);
            self.at(notice, Happening::Lost(index));
        }
        if self.weather.return_soon {
            let back = self.now + self.rng.random_range(100..8_000);
            self.at(back, Happening::Return(index));
        }
    }

    pub(super) fn come_back(&mut self, index: usize) {
        if !self.peers[index].up {
            self.peers[index].up = true;
            let heard = self.now + self.rng.random_range(50..1_000);
            self.at(heard, Happening::Advert(index));
        }
    }

    pub(super) fn stall(&mut self, index: usize) {
        let length = self.rng.random_range(100..8_000);
        self.peers[index].stalled_until = self.now + length;
        if length > SILENCE && self.chance(80) {
            self.at(self.now + SILENCE, Happening::Lost(index));
        }
    }

    pub(super) fn slow_down(&mut self, index: usize) {
        self.peers[index].slowness = [3, 30, 300][self.rng.random_range(0..3)];
    }

    /// All connections are gone for a moment; nobody forgets anything.
    pub(super) fn break_all(&mut self) {
        self.broken_until = self.now + BREAK;
        for index in 1..self.peers.len() {
            let noticed = self.now + self.rng.random_range(0..60);
            self.at(noticed, Happening::Lost(index));
            let mended = self.broken_until + self.rng.random_range(0..300);
            self.at(mended, Happening::Advert(index));
        }
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

    /// What a peer says of itself every few seconds.
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
        if self.now < self.broken_until {
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
