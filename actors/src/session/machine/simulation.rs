//! A whole swarm around the real machine, in simulated time: stages with the real fence, a network
//! that loses, doubles, delays, reorders and falls apart, peers that crash, come back, stall, slow down and
//! have clocks that jump, journals and a client, and more than one coordinator, if the client goes elsewhere
//! and the one before does not know. One seed decides everything. The rules are checked at every command
//! (`checks.rs`); what a session owes its client in which weather is in `weather.rs`.
//!
//! | File | Holds |
//! |---|---|
//! | `weather.rs` | what a seed brings |
//! | `toy.rs` | a model whose tokens depend on everything before them |
//! | `messages.rs` | what peers say |
//! | `peer.rs` | a node with its stage; `peer/giving.rs`: what it kept and gives |
//! | `desk.rs` | a coordinator: a machine, and what belongs to it |
//! | `coordinator.rs` | what carries the machine's commands out |
//! | `calls.rs` | what coordinators ask of stages |
//! | `storm.rs` | faults |
//! | `journals.rs` | what nodes have on their disks |
//! | `copies.rs` | how peers come to keep the journal |
//! | `interruption.rs` | the coordinator crashes, the client is gone, and comes back, perhaps elsewhere |
//! | `moves.rs` | routes that are offered to a session that runs |
//! | `checks.rs` | the rules |
//! | `tests.rs` | many seeds, or one that failed |
//! | `lanes.rs` | witnessed sessions, and peers that lie |

mod calls;
mod checks;
mod coordinator;
mod copies;
mod desk;
mod interruption;
mod journals;
pub(super) mod lanes;
mod messages;
mod moves;
mod peer;
mod storm;
mod tests;
pub(super) mod toy;
mod weather;

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fixtures::{self, Numbers};
use super::{Machine, Opening, Tolerance};
use crate::session::event::{Event, Timer};
use crate::session::rebuild::named;
use crate::session::recovery::{FaultKind, Remedy, strategy};
use checks::Rules;
use copies::Letter;
use desk::{Desk, View};
use interruption::{Client, Interruption};
use journals::Disk;
use messages::{Effect, Finished, Held, Message, Report};
use peer::Peer;
use storm::Cut;
use weather::{Millis, Promise, Weather};

/// No session takes longer, whatever happens.
const LONGEST: Millis = 600_000;
/// The node that is asked first.
const HOME: usize = 0;

/// What happens at a time.
#[derive(Debug)]
enum Happening {
    /// The machine is told something, if it is still the one that it was meant for.
    Event(u32, Event),
    /// A timer of a coordinator runs out, if it was not replaced.
    Timer(u32, u64, Timer),
    Arrive {
        from: usize,
        to: usize,
        message: Message,
    },
    /// From a stage, for the coordinator on a node.
    Report(usize, usize, Report),
    Prepared {
        peer: usize,
        life: u32,
        call: u64,
        epoch: u64,
    },
    Finished(usize, Finished),
    /// A call is answered, or nobody waits for the answer any more.
    Answer(u64, Result<Held, &'static str>),
    RenewLeases,
    /// Something is to be kept.
    Letter(Letter),
    /// By which peer, on which stream, from which token on, and what came of it.
    LetterAnswered(usize, u64, usize, Result<usize, &'static str>),
    Crash(usize),
    Return(usize),
    Stall(usize),
    Slow(usize),
    Jump(usize),
    Cut,
    Break,
    Calm,
    /// A node notices that another is gone.
    Lost(usize, usize),
    /// A node hears of another.
    Advert(usize, usize),
    Interrupt(Interruption),
    /// Another route is offered to the session.
    Offer,
    /// The client comes back for the rest.
    ClientReturns,
    /// An advert, and the next one in its time.
    Renewal(usize),
}

/// See the module.
struct Simulation {
    rng: StdRng,
    weather: Weather,
    now: Millis,
    order: u64,
    queue: BTreeMap<(Millis, u64), Happening>,
    peers: Vec<Peer>,
    /// What each node knows of the others, and what it has on its disk.
    views: Vec<View>,
    disks: Vec<Disk>,
    /// Coordinators, by their nodes.
    desks: BTreeMap<usize, Desk>,
    client: Client,
    /// When the newest message between two peers arrives.
    arrived: BTreeMap<(usize, usize), Millis>,
    /// Counts coordinators, and streams to replicas.
    processes: u32,
    streams: u64,
    /// The newest under which anybody had the session.
    newest_claim: u64,
    /// Until when things go wrong, once they do.
    storm: Option<Millis>,
    broken_until: Millis,
    cuts: Vec<Cut>,
    rules: Rules,
    tells: bool,
}

/// What a session came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Seen {
    Recovery(FaultKind, Remedy),
    Rebuild(&'static str),
    Moved,
    /// The same to other layers of peers that stayed.
    CutAnew,
    MoveDropped,
    Raced,
    /// A coordinator began while another was at work.
    Rivals,
    /// A coordinator stopped because there is a newer one.
    Deposed,
}

/// Plays one seed to its end; panics where a rule is broken. Gives the recoveries that it took.
pub(super) fn play(seed: u64, tells: bool) -> Vec<Seen> {
    let mut rng = StdRng::seed_from_u64(seed);
    let weather = Weather::of(seed, &mut rng);
    if tells {
        println!("{weather:?}");
    }
    let mut simulation = Simulation::new(weather, rng, tells);
    simulation.run();
    simulation.conclude();
    simulation.rules.seen()
}

impl Simulation {
    fn new(weather: Weather, mut rng: StdRng, tells: bool) -> Self {
        let prompt: Vec<u32> = (0..weather.prompt)
            .map(|_| rng.random_range(0..toy::VOCAB))
            .collect();
        let limit = weather.prompt as u64 + weather.max_new;
        let count = weather.capacities.len();
        let peer = |index| Peer::new(index, limit, weather.remembers[index]);
        Self {
            rules: Rules::new(prompt, &weather),
            peers: (0..count).map(peer).collect(),
            views: (0..count).map(|_| View::of(count)).collect(),
            disks: (0..count).map(|_| Disk::default()).collect(),
            desks: BTreeMap::new(),
            client: Client::default(),
            rng,
            weather,
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            arrived: BTreeMap::new(),
            processes: 0,
            streams: 0,
            newest_claim: 0,
            storm: None,
            broken_until: 0,
            cuts: Vec::new(),
            tells,
        }
    }

    fn at(&mut self, time: Millis, happening: Happening) {
        self.order += 1;
        self.queue
            .insert((time.max(self.now), self.order), happening);
    }

    fn run(&mut self) {
        for index in 0..self.peers.len() {
            let first = self.rng.random_range(0..5_000);
            self.at(first, Happening::Renewal(index));
        }
        self.at(0, Happening::RenewLeases);
        self.ask();
        while let Some(((time, _), happening)) = self.queue.pop_first() {
            self.now = time;
            assert!(time < LONGEST, "it never ends");
            if self.tells {
                println!("{time:>6} {happening:?}");
            }
            self.happen(happening);
        }
    }

    /// Until when the node hangs for whose coordinator this is, if it does.
    fn held_up(&self, happening: &Happening) -> Option<Millis> {
        let at = match happening {
            Happening::Event(process, _) | Happening::Timer(process, ..) => {
                self.desk_of(*process)?
            }
            Happening::Report(_, at, _) | Happening::Lost(at, _) => *at,
            Happening::Answer(call, _) => self.asker(*call)?,
            Happening::LetterAnswered(_, stream, ..) => self.writer(*stream)?,
            _ => return None,
        };
        let until = self.peers[at].stalled_until;
        (until > self.now).then_some(until)
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(until) = self.held_up(&happening) {
            return self.at(until, happening);
        }
        match happening {
            Happening::Event(process, event) => {
                if let Some(at) = self.desk_of(process) {
                    self.feed(at, event);
                }
            }
            Happening::Timer(process, timer, what) => {
                if let Some(at) = self.desk_of(process)
                    && self.desk(at).timer == timer
                {
                    self.feed(at, Event::Timeout(what));
                }
            }
            Happening::Arrive { from, to, message } => self.arrive(from, to, message),
            Happening::Report(from, at, report) => self.hear(from, at, report),
            Happening::Prepared {
                peer,
                life,
                call,
                epoch,
            } => {
                if self.peers[peer].life == life {
                    let effects = self.peers[peer].prepared(call, epoch);
                    self.carry_out(peer, effects);
                }
            }
            Happening::Finished(peer, finished) => {
                if self.peers[peer].life == finished.life {
                    let effects = self.peers[peer].finished(finished);
                    self.carry_out(peer, effects);
                }
            }
            Happening::Answer(call, answer) => self.answered(call, answer),
            Happening::RenewLeases => self.renew_leases(),
            Happening::Letter(letter) => self.letter_arrives(letter),
            Happening::LetterAnswered(peer, stream, first, answer) => {
                self.letter_answered(peer, stream, first, answer);
            }
            Happening::Crash(peer) => self.crash(peer),
            Happening::Return(peer) => self.come_back(peer),
            Happening::Stall(peer) => self.stall(peer),
            Happening::Slow(peer) => self.slow_down(peer),
            Happening::Jump(peer) => self.jump(peer),
            Happening::Cut => self.cut(),
            Happening::Break => self.break_all(),
            Happening::Calm => self.calm(),
            Happening::Lost(at, peer) => {
                self.views[at].connected[peer] = false;
                self.feed(at, Event::PeerLost(fixtures::peer(peer as u8)));
            }
            Happening::Advert(at, peer) => self.hear_advert(at, peer),
            Happening::Interrupt(how) => self.interrupt(how),
            Happening::Offer => self.offer(),
            Happening::ClientReturns => self.client_returns(),
            Happening::Renewal(peer) => {
                for at in 0..self.peers.len() {
                    self.hear_advert(at, peer);
                }
                self.keep_advertising(peer);
            }
        }
    }

    /// Adverts also come by way of others; connected is who can talk both ways.
    fn hear_advert(&mut self, at: usize, peer: usize) {
        let hears = self.peers[at].up && self.peers[at].stalled_until <= self.now;
        if at == peer || !hears || !self.advert(peer) {
            return;
        }
        let is_cut = self.is_cut(at, peer) || self.is_cut(peer, at);
        let view = &mut self.views[at];
        view.heard[peer] = self.now;
        view.connected[peer] |= !is_cut;
        if view.connected[peer] {
            self.feed(at, Event::PeerHeard(fixtures::peer(peer as u8)));
        }
    }

    /// A message is on its way.
    fn send(&mut self, from: usize, to: usize, message: Message) {
        for time in self.arrivals(from, to) {
            let message = message.clone();
            self.at(time, Happening::Arrive { from, to, message });
        }
    }

    fn arrive(&mut self, from: usize, to: usize, message: Message) {
        let stalled_until = self.peers[to].stalled_until;
        if stalled_until > self.now {
            return self.at(stalled_until, Happening::Arrive { from, to, message });
        }
        if !self.peers[to].up {
            return self.arrive_nowhere(from, to, &message);
        }
        let ill = match &message {
            Message::Prepare { .. } => self.ill(self.weather.refused),
            Message::Step(_) | Message::Replay(_) | Message::Copy(_) => {
                self.ill(self.weather.failed)
            }
            _ => false,
        };
        let now = self.now;
        self.peers[to].expire(now);
        let effects = self.peers[to].take(from, message, now, ill);
        self.carry_out(to, effects);
    }

    fn carry_out(&mut self, peer: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Answer(call, answer) => {
                    let Some(at) = self.asker(call) else {
                        continue;
                    };
                    for time in self.arrivals(peer, at) {
                        self.at(time, Happening::Answer(call, answer));
                    }
                }
                Effect::Prepare { call, epoch } => {
                    let life = self.peers[peer].life;
                    let ready = self.now + self.rng.random_range(5..200);
                    let prepared = Happening::Prepared {
                        peer,
                        life,
                        call,
                        epoch,
                    };
                    self.at(ready, prepared);
                }
                Effect::Compute(finished) => {
                    let took = self.weather.step * self.peers[peer].slowness;
                    let done = self.now.max(self.peers[peer].busy_until) + took;
                    self.peers[peer].busy_until = done;
                    self.at(done, Happening::Finished(peer, finished));
                }
                Effect::Send(to, message) => self.send(peer, to, message),
                Effect::Report(at, report) => {
                    for time in self.arrivals(peer, at) {
                        self.at(time, Happening::Report(peer, at, report.clone()));
                    }
                }
            }
        }
    }

    /// Who waits for the answer to a call.
    fn asker(&self, call: u64) -> Option<usize> {
        let mut desks = self.desks.iter();
        let asked = desks.find(|(_, desk)| desk.calls.contains_key(&call));
        asked.map(|(at, _)| *at)
    }

    fn conclude(&mut self) {
        let told = self.client.told.as_ref();
        self.rules.conclude(told, &self.weather);
        let holds = |peers: &[Peer]| peers.iter().any(Peer::holds);
        if self.weather.promise == Promise::Undisturbed {
            assert!(!holds(&self.peers), "released, without waiting for leases");
        }
        let later = self.now + LONGEST;
        self.peers.iter_mut().for_each(|peer| peer.expire(later));
        assert!(!holds(&self.peers), "every reservation expires");
    }
}
