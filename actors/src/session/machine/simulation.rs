//! A whole swarm around the real machine, in simulated time: stages with the real fence, a network
//! that loses, doubles, delays and reorders, peers that crash, come back, stall and slow down, a
//! journal and a client. One seed decides everything. The rules are checked at every command
//! (`checks.rs`); what a session owes its client in which weather is in `weather.rs`.
//!
//! | File | Holds |
//! |---|---|
//! | `weather.rs` | what a seed brings |
//! | `toy.rs` | a model whose tokens depend on everything before them |
//! | `messages.rs` | what peers say |
//! | `peer.rs` | a node with its stage; `peer/giving.rs`: what it kept and gives |
//! | `coordinator.rs` | what carries the machine's commands out |
//! | `storm.rs` | faults |
//! | `copies.rs` | peers that keep the journal |
//! | `interruption.rs` | the coordinator crashes, the client is gone, and comes back |
//! | `moves.rs` | routes that are offered to a session that runs |
//! | `checks.rs` | the rules |
//! | `tests.rs` | many seeds, or one that failed |
//! | `lanes.rs` | witnessed sessions, and peers that lie |

mod checks;
mod coordinator;
mod copies;
mod interruption;
pub(super) mod lanes;
mod messages;
mod moves;
mod peer;
mod storm;
mod tests;
pub(super) mod toy;
mod weather;

use std::collections::{BTreeMap, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fixtures::{self, Numbers};
use super::{Machine, Opening, REPLICAS, Tolerance};
use crate::session::event::{Event, Timer};
use crate::session::rebuild::named;
use crate::session::recovery::{FaultKind, Remedy, strategy};
use crate::tolerance::FaultTolerance;
use checks::Checks;
use coordinator::Call;
use copies::{Copies, Letter};
use interruption::{Disk, Interruption};
use messages::{Effect, Finished, Held, Message, Report};
use peer::Peer;
use weather::{Millis, Promise, Weather};

/// No session takes longer, whatever happens.
const LONGEST: Millis = 600_000;

/// What happens at a time.
#[derive(Debug)]
enum Happening {
    /// The machine is told something, if it is still the one that it was meant for.
    Event(u32, Event),
    /// A timer runs out, if it was not replaced.
    Timer(u64, Timer),
    Arrive {
        from: usize,
        to: usize,
        message: Message,
    },
    Report(usize, Report),
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
    Break,
    Calm,
    /// The coordinator notices that a peer is gone.
    Lost(usize),
    Advert(usize),
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
    machine: Machine,
    peers: Vec<Peer>,
    /// Whom the coordinator is connected to.
    connected: Vec<bool>,
    /// When each peer's newest advert came.
    heard: Vec<Millis>,
    /// When the newest message between two peers arrives.
    arrived: BTreeMap<(usize, usize), Millis>,
    calls: BTreeMap<u64, Call>,
    timer: u64,
    journaled_at: Millis,
    /// Counts machines.
    process: u32,
    /// Whether there is one that runs.
    running: bool,
    disk: Disk,
    copies: Copies,
    /// Tokens on their way to the client.
    sent: VecDeque<(u64, String)>,
    client_returns: bool,
    /// Until when things go wrong, once they do.
    storm: Option<Millis>,
    broken_until: Millis,
    checks: Checks,
    tells: bool,
}

/// What a session came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Seen {
    Recovery(FaultKind, Remedy),
    Rebuild(&'static str),
    Moved,
    MoveDropped,
}

/// Plays one seed to its end; panics where a rule is broken. Gives the recoveries that it took.
pub(super) fn play(seed: u64, tells: bool) -> Vec<Seen> {
    let mut rng = StdRng::seed_from_u64(seed);
    let weather = Weather::of(seed, &mut rng);
    if tells {
        println!("{weather:?}");
    }
    let mut simulation = Simulation::new(seed, weather, rng, tells);
    simulation.run();
    simulation.conclude();
    simulation.checks.seen()
}

impl Simulation {
    fn new(seed: u64, weather: Weather, mut rng: StdRng, tells: bool) -> Self {
        let prompt: Vec<u32> = (0..weather.prompt)
            .map(|_| rng.random_range(0..toy::VOCAB))
            .collect();
        let limit = weather.prompt as u64 + weather.max_new;
        let count = weather.capacities.len();
        let opening = Opening {
            prompt: prompt.clone(),
            max_new: weather.max_new,
            vocab: toy::VOCAB,
            row_bytes: 8,
            kv_bytes: 8,
        };
        let tolerance = Tolerance {
            strategy: strategy(weather.level),
            salt: seed,
            peer_wait: std::time::Duration::from_secs(30),
            resumable: weather.interruptions > 0 || weather.level == FaultTolerance::High,
            replicas: if weather.level == FaultTolerance::High {
                REPLICAS
            } else {
                0
            },
            rebuild: weather.rebuild.and_then(named),
            witnessed: false,
        };
        let text = Box::new(Numbers { stop: weather.stop });
        let mut simulation = Self {
            checks: Checks::new(prompt, &weather),
            machine: Machine::new(opening, Vec::new(), text, tolerance),
            peers: (0..count)
                .map(|index| Peer::new(index, limit, weather.remembers[index]))
                .collect(),
            connected: vec![true; count],
            heard: vec![0; count],
            rng,
            weather,
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            arrived: BTreeMap::new(),
            calls: BTreeMap::new(),
            timer: 0,
            journaled_at: 0,
            process: 0,
            running: true,
            disk: Disk::default(),
            copies: Copies::default(),
            sent: VecDeque::new(),
            client_returns: false,
            storm: None,
            broken_until: 0,
            tells,
        };
        let route = simulation.route(&[]).expect("there is room for all layers");
        simulation.machine.route = route;
        simulation
    }

    fn at(&mut self, time: Millis, happening: Happening) {
        self.order += 1;
        self.queue
            .insert((time.max(self.now), self.order), happening);
    }

    fn run(&mut self) {
        for index in 1..self.peers.len() {
            let first = self.rng.random_range(0..5_000);
            self.at(first, Happening::Renewal(index));
        }
        self.at(0, Happening::RenewLeases);
        let first = self.machine.start();
        self.execute(first);
        while let Some(((time, _), happening)) = self.queue.pop_first() {
            self.now = time;
            assert!(time < LONGEST, "it never ends");
            if self.tells {
                println!("{time:>6} {happening:?}");
            }
            self.happen(happening);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Event(process, event) => {
                if process == self.process {
                    self.feed(event);
                }
            }
            Happening::Timer(timer, what) => {
                if timer == self.timer {
                    self.feed(Event::Timeout(what));
                }
            }
            Happening::Arrive { from, to, message } => self.arrive(from, to, message),
            Happening::Report(from, report) => self.hear(from, report),
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
            Happening::Break => self.break_all(),
            Happening::Calm => self.calm(),
            Happening::Lost(peer) => {
                self.connected[peer] = false;
                self.feed(Event::PeerLost(fixtures::peer(peer as u8)));
            }
            Happening::Advert(peer) => self.hear_advert(peer),
            Happening::Interrupt(how) => self.interrupt(how),
            Happening::Offer => self.offer(),
            Happening::ClientReturns => self.client_returns(),
            Happening::Renewal(peer) => {
                self.hear_advert(peer);
                self.keep_advertising(peer);
            }
        }
    }

    fn hear_advert(&mut self, peer: usize) {
        if self.peers[0].up && self.advert(peer) {
            self.connected[peer] = true;
            self.heard[peer] = self.now;
            self.feed(Event::PeerHeard(fixtures::peer(peer as u8)));
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
                    for time in self.arrivals(peer, 0) {
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
                Effect::Report(report) => {
                    for time in self.arrivals(peer, 0) {
                        self.at(time, Happening::Report(peer, report.clone()));
                    }
                }
            }
        }
    }

    fn conclude(&mut self) {
        self.checks.conclude(&self.weather);
        let holds = |peers: &[Peer]| peers.iter().any(Peer::holds);
        if self.weather.promise == Promise::Undisturbed {
            assert!(!holds(&self.peers), "released, without waiting for leases");
        }
        let later = self.now + LONGEST;
        self.peers.iter_mut().for_each(|peer| peer.expire(later));
        assert!(!holds(&self.peers), "every reservation expires");
    }
}
