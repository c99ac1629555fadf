//! Witnessed sessions in the simulation: two lanes of real machines, the real jury, stages with real
//! accounts, and in most seeds one peer that lies in one of several ways, while peers crash and
//! messages are lost. Every token that is accepted is that of a run without any fault; who lied in a
//! way that can be proven is quarantined once it was heard; nobody honest ever is.

mod court;
mod stages;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use accel_inference::LayerRange;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::{Machine, Past, Tolerance, next_claim};
use super::fixtures::{self, Numbers};
use super::messages::{Finished, Held, Message, Report};
use super::peer::{Lie, Peer};
use super::weather::Millis;
use super::{Opening, toy};
use crate::session::bench::lanes::Silent;
use crate::session::event::{Event, Outcome, RouteStage, Timer};
use crate::session::jury::{Jury, Lane};
use crate::session::recovery::strategy;
use crate::tolerance::FaultTolerance;

/// No session takes longer.
const LONGEST: Millis = 600_000;
/// Until when things go wrong.
const STORM: Millis = 6_000;
const NONCE: [u8; 32] = [9; 32];

/// A lane while it runs. Whatever is meant for an earlier one has another number.
struct Run {
    number: u64,
    machine: Machine,
    timer: u64,
    held: Option<(u64, Event)>,
    calls: BTreeMap<u64, (u64, usize, bool)>,
}

enum Happening {
    Event(u64, Event),
    Timer(u64, u64, Timer),
    Arrive(u64, usize, usize, Message),
    Report(u64, usize, Report),
    Prepared(u64, usize, u32, u64, u64),
    Finished(u64, usize, Finished),
    Answer(u64, u64, Result<Held, &'static str>),
    Crash(usize),
    Return(usize),
    Renew,
}

/// See the module.
struct Lanes {
    rng: StdRng,
    now: Millis,
    order: u64,
    queue: BTreeMap<(Millis, u64), Happening>,
    arrived: BTreeMap<(u64, usize, usize), Millis>,
    runs: BTreeMap<Lane, Run>,
    numbers: u64,
    /// What a node has of a lane.
    seats: BTreeMap<(u64, usize), Peer>,
    up: Vec<bool>,
    cuts: Vec<LayerRange>,
    routes: BTreeMap<Lane, Vec<usize>>,
    partial: Vec<usize>,
    jury: Jury,
    liar: Option<(usize, Lie, u32)>,
    quarantined: BTreeSet<usize>,
    /// Whether the coordinator was told a lie that can be proven.
    heard: bool,
    lossy: bool,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    expected: Vec<u32>,
    emitted: u64,
    outcome: Option<Outcome>,
    tells: bool,
}

/// What came of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::session::machine) enum Came {
    NobodyLied,
    Quarantined,
    Excluded,
    NeverHeard,
}

/// Plays one seed; panics where a rule is broken.
pub(in crate::session::machine) fn play(seed: u64, tells: bool) -> Came {
    let mut lanes = Lanes::new(seed, tells);
    lanes.run();
    lanes.conclude()
}

impl Lanes {
    fn new(seed: u64, tells: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let stages = rng.random_range(1..=3_usize);
        let nodes = 2 * stages + 3;
        let lies = [
            Lie::Rows,
            Lie::Token,
            Lie::Claim,
            Lie::Sends,
            Lie::Silence,
            Lie::Accuses,
        ];
        let liar = rng.random_bool(0.9).then(|| {
            let lie = lies[rng.random_range(0..lies.len())];
            (
                rng.random_range(1..=nodes),
                lie,
                [10, 50, 100][rng.random_range(0..3)],
            )
        });
        let lengths = [1, 5, 40, 300];
        let length = lengths[rng.random_range(0..lengths.len())];
        let prompt: Vec<u32> = (0..length)
            .map(|_| rng.random_range(0..toy::VOCAB))
            .collect();
        let most = rng.random_range(1..=20);
        let (expected, _) = toy::answer(&prompt, most, None);
        let mut lanes = Self {
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            arrived: BTreeMap::new(),
            runs: BTreeMap::new(),
            numbers: 0,
            seats: BTreeMap::new(),
            up: vec![true; nodes + 1],
            cuts: cuts(stages, &mut rng),
            routes: BTreeMap::new(),
            partial: Vec::new(),
            jury: Jury::default(),
            liar,
            quarantined: BTreeSet::new(),
            heard: false,
            lossy: rng.random_bool(0.5),
            tokens: prompt.clone(),
            prompt,
            expected,
            emitted: 0,
            outcome: None,
            tells,
            rng,
        };
        for _ in 0..lanes.rng.random_range(0..=3) {
            let node = lanes.rng.random_range(1..=nodes);
            let at = lanes.rng.random_range(100..STORM);
            lanes.at(at, Happening::Crash(node));
        }
        if tells {
            println!("{:?} {:?} {:?}", lanes.liar, lanes.cuts, lanes.expected);
        }
        lanes.launch(Lane::Primary, most);
        lanes.launch(Lane::Shadow, most);
        lanes.at(1_000, Happening::Renew);
        lanes
    }

    fn at(&mut self, time: Millis, happening: Happening) {
        self.order += 1;
        self.queue
            .insert((time.max(self.now), self.order), happening);
    }

    fn soon(&mut self, number: u64, event: Event) {
        let time = self.now + self.rng.random_range(1..10);
        self.at(time, Happening::Event(number, event));
    }

    fn launch(&mut self, lane: Lane, most: u64) {
        self.numbers += 1;
        let opening = Opening {
            prompt: self.tokens.clone(),
            max_new: most,
            vocab: toy::VOCAB,
            row_bytes: 8,
            kv_bytes: 8,
        };
        let tolerance = Tolerance {
            strategy: strategy(FaultTolerance::Critical),
            salt: self.rng.random(),
            peer_wait: std::time::Duration::from_secs(30),
            resumable: false,
            replicas: 0,
            rebuild: None,
            witnessed: true,
        };
        let past = Past {
            tokens: Vec::new(),
            ended: None,
            seen: 0,
            claim: next_claim(0, 0).expect("the first"),
        };
        let mut machine = match lane {
            Lane::Primary => {
                let text = Box::new(Numbers { stop: None });
                Machine::resumed(opening, past, text, tolerance)
            }
            _ => Machine::resumed(opening, past, Box::new(Silent), tolerance),
        };
        let commands = machine.start();
        let run = Run {
            number: self.numbers,
            machine,
            timer: 0,
            held: None,
            calls: BTreeMap::new(),
        };
        self.runs.insert(lane, run);
        self.obey_all(lane, commands);
    }

    /// Which lane has this number, if it still runs.
    fn lane(&self, number: u64) -> Option<Lane> {
        let mut runs = self.runs.iter();
        let run = runs.find(|(_, run)| run.number == number);
        run.map(|(lane, _)| *lane)
    }

    fn run(&mut self) {
        while let Some(((time, _), happening)) = self.queue.pop_first() {
            self.now = time;
            assert!(time < LONGEST, "it never ends");
            self.happen(happening);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Event(number, event) => {
                if let Some(lane) = self.lane(number) {
                    self.feed(lane, event);
                }
            }
            Happening::Timer(number, timer, what) => self.ring(number, timer, what),
            Happening::Arrive(number, from, to, message) => self.arrive(number, from, to, message),
            Happening::Report(number, from, report) => self.hear(number, from, report),
            Happening::Prepared(number, node, life, call, epoch) => {
                let seat = self.seats.get_mut(&(number, node));
                if let Some(seat) = seat.filter(|seat| seat.life == life) {
                    let effects = seat.prepared(call, epoch);
                    self.carry_out(number, node, effects);
                }
            }
            Happening::Finished(number, node, finished) => {
                let seat = self.seats.get_mut(&(number, node));
                if let Some(seat) = seat.filter(|seat| seat.life == finished.life) {
                    let effects = seat.finished(finished);
                    self.carry_out(number, node, effects);
                }
            }
            Happening::Answer(number, call, answer) => self.answered(number, call, answer),
            Happening::Crash(node) => self.crash(node),
            Happening::Return(node) => self.come_back(node),
            Happening::Renew => self.renew(),
        }
    }

    fn feed(&mut self, lane: Lane, event: Event) {
        let Some(run) = self.runs.get_mut(&lane) else {
            return;
        };
        if self.tells {
            println!("{:>6} {lane:?} {event:?}", self.now);
        }
        let commands = run.machine.on(event);
        self.obey_all(lane, commands);
    }

    /// A step whose token waits for the other lane is not late.
    fn ring(&mut self, number: u64, timer: u64, what: Timer) {
        let Some(lane) = self.lane(number) else {
            return;
        };
        let run = self.runs.get(&lane).filter(|run| run.timer == timer);
        let Some(run) = run else {
            return;
        };
        let held = run.held.as_ref().map(|(epoch, _)| *epoch);
        match what {
            Timer::Step { epoch, .. } if held == Some(epoch) => self.arm(lane, what),
            _ => self.feed(lane, Event::Timeout(what)),
        }
    }

    fn conclude(&self) -> Came {
        let outcome = self.outcome.as_ref().expect("it ended");
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
        assert_eq!(self.emitted, self.expected.len() as u64, "all of it");
        let liar = self.liar.map(|(node, ..)| node);
        assert!(
            self.quarantined.iter().all(|node| Some(*node) == liar),
            "an honest peer is quarantined: {:?}",
            self.quarantined
        );
        match self.liar {
            None => Came::NobodyLied,
            Some((_, lie, _)) if self.heard => {
                assert!(lie.is_provable());
                assert!(
                    !self.quarantined.is_empty(),
                    "a lie was heard, and is forgotten"
                );
                Came::Quarantined
            }
            Some((_, lie, _)) if lie.is_provable() => Came::NeverHeard,
            Some(_) => Came::Excluded,
        }
    }
}

/// The model in so many parts.
fn cuts(stages: usize, rng: &mut StdRng) -> Vec<LayerRange> {
    let mut ends = BTreeSet::from([toy::LAYERS]);
    while ends.len() < stages {
        ends.insert(rng.random_range(1..toy::LAYERS));
    }
    let firsts = std::iter::once(0).chain(ends.iter().copied());
    let ranges = firsts.zip(&ends);
    ranges
        .map(|(first, end)| LayerRange::new(first, *end))
        .collect()
}

fn stage(node: usize, layers: LayerRange) -> RouteStage {
    RouteStage {
        peer: fixtures::peer(node as u8),
        layers,
    }
}
