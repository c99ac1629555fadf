//! Stages, journal and client around a machine, for its tests; everything seeded.

use std::collections::{BTreeMap, BTreeSet};

use accel_inference::LayerRange;
use accel_p2p::PeerId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{CHUNK, Machine, Opening};
use crate::error::{ErrorKind, Failure, MEMORY_IN_USE};
use crate::session::event::{Command, Drawn, Event, Outcome, RouteStage, StageReport, Timer};
use crate::session::text::{Piece, TextPipe};

const END: u32 = 0;
pub(super) const VOCAB: u32 = 100;

/// Writes every token as its number; a token of a chosen value completes a stop text.
struct Numbers {
    stop: Option<u32>,
}

impl TextPipe for Numbers {
    fn push(&mut self, token: u32) -> Piece {
        let stopped = self.stop == Some(token);
        let text = if stopped {
            String::new()
        } else {
            format!("{token} ")
        };
        Piece { text, stopped }
    }

    fn finish(&mut self) -> String {
        String::new()
    }

    fn is_end(&self, token: u32) -> bool {
        token == END
    }
}

/// What the model says at a position, whoever computes it.
pub(super) fn oracle(position: u64) -> u32 {
    1 + (position.wrapping_mul(7919) % u64::from(VOCAB - 1)) as u32
}

pub(super) fn peer(n: u8) -> PeerId {
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend([n; 32]);
    PeerId::from_bytes(&bytes).expect("an identity multihash of an ed25519 key")
}

pub(super) fn route(peers: &[u8]) -> Vec<RouteStage> {
    let stage = |(index, n): (usize, &u8)| RouteStage {
        peer: peer(*n),
        layers: LayerRange::new(index as u32, index as u32 + 1),
    };
    peers.iter().enumerate().map(stage).collect()
}

pub(super) fn opening(prompt: usize, max_new: u64) -> Opening {
    Opening {
        prompt: (0..prompt as u32).map(|n| n % VOCAB).collect(),
        max_new,
        vocab: VOCAB,
    }
}

/// Stages, journal and client around a machine; checks the rules at every command.
pub(super) struct World {
    rng: StdRng,
    /// How often, of a hundred times, something goes wrong.
    faults: u32,
    pending: Vec<Event>,
    armed: Option<Timer>,
    pub(super) held: BTreeSet<(u64, PeerId)>,
    live_epoch: u64,
    kv: BTreeMap<u64, u64>,
    journal: Vec<u32>,
    pub(super) emitted: Vec<u32>,
    pub(super) text: String,
    pub(super) end_at: Option<u64>,
    first_position: u64,
    route: Vec<RouteStage>,
    pub(super) closed: Option<Outcome>,
}

impl World {
    pub(super) fn new(seed: u64, faults: u32, prompt: usize, stages: usize) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            faults,
            pending: Vec::new(),
            armed: None,
            held: BTreeSet::new(),
            live_epoch: 0,
            kv: BTreeMap::new(),
            journal: Vec::new(),
            emitted: Vec::new(),
            text: String::new(),
            end_at: None,
            first_position: prompt as u64,
            route: first_route(stages),
            closed: None,
        }
    }

    fn unlucky(&mut self) -> bool {
        self.rng.random_range(0..100) < self.faults
    }

    fn failure(&self) -> Failure {
        Failure::unavailable("test", "a stage failed", "try again")
    }

    pub(super) fn run(&mut self, machine: &mut Machine) {
        let first = machine.start();
        self.execute(first);
        while let Some(event) = self.next_event() {
            let commands = machine.on(event);
            self.execute(commands);
        }
    }

    /// Any event that is due, in any order; when nothing else can happen, the timer runs out.
    fn next_event(&mut self) -> Option<Event> {
        if self.pending.is_empty() {
            return self.armed.take().map(Event::Timeout);
        }
        let index = self.rng.random_range(0..self.pending.len());
        let event = self.pending.swap_remove(index);
        if self.unlucky() {
            self.pending.push(event.clone());
        }
        Some(event)
    }

    fn execute(&mut self, commands: Vec<Command>) {
        for command in commands {
            assert!(self.closed.is_none(), "{command:?} after the end");
            self.carry_out(command);
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::JournalOpen => self.pending.push(Event::Opened),
            Command::Plan { epoch, excluding } => self.plan(epoch, &excluding),
            Command::Prepare { epoch, stage } => self.prepare(epoch, stage),
            Command::Commit { epoch, stage } => self.commit(epoch, stage),
            Command::Abort { epoch, stage } | Command::Release { epoch, stage } => {
                self.held.remove(&(epoch, stage.peer));
            }
            Command::Forward {
                epoch,
                step,
                position,
                sample,
                tokens,
            } => {
                self.forward(epoch, step, position, sample, &tokens);
            }
            Command::JournalToken { index, token } => {
                assert_eq!(index, self.journal.len() as u64, "journaled in order");
                self.journal.push(token);
                self.pending.push(Event::Journaled { index });
            }
            Command::Emit { index, text, drawn } => {
                assert_eq!(index, self.emitted.len() as u64, "emitted in order, once");
                assert_eq!(self.journal.get(index as usize), Some(&drawn.token));
                self.emitted.push(drawn.token);
                self.text.push_str(&text);
                self.pending.push(Event::Emitted { index });
            }
            Command::Arm(timer) => self.armed = Some(timer),
            Command::Close(outcome) => self.closed = Some(outcome),
        }
    }

    fn plan(&mut self, epoch: u64, excluding: &[PeerId]) {
        let left: Vec<u8> = (0..5).filter(|n| !excluding.contains(&peer(*n))).collect();
        let event = match left.len() {
            0..=2 => Event::NoPlan {
                epoch,
                failure: self.failure(),
            },
            _ => {
                self.route = route(&left[..2]);
                Event::Planned {
                    epoch,
                    route: self.route.clone(),
                }
            }
        };
        self.pending.push(event);
    }

    fn prepare(&mut self, epoch: u64, stage: usize) {
        assert!(epoch >= self.live_epoch, "epochs only grow");
        self.live_epoch = epoch;
        self.held.insert((epoch, self.route[stage].peer));
        let event = match self.unlucky() {
            true => Event::Refused {
                epoch,
                stage,
                failure: match self.rng.random() {
                    true => memory_in_use(),
                    false => self.failure(),
                },
            },
            false => Event::Prepared {
                epoch,
                stage,
                report: StageReport::default(),
            },
        };
        self.pending.push(event);
    }

    fn commit(&mut self, epoch: u64, stage: usize) {
        assert_eq!(epoch, self.live_epoch);
        let event = match self.unlucky() {
            true => Event::Refused {
                epoch,
                stage,
                failure: self.failure(),
            },
            false => Event::Committed { epoch, stage },
        };
        self.pending.push(event);
    }

    fn forward(&mut self, epoch: u64, step: u64, position: u64, sample: bool, tokens: &[u32]) {
        assert_eq!(epoch, self.live_epoch, "only the live epoch computes");
        assert!(tokens.len() <= CHUNK && !tokens.is_empty());
        let kv = self.kv.entry(epoch).or_default();
        assert_eq!(position, *kv, "no gap and no repeat");
        *kv += tokens.len() as u64;
        let position = *kv;
        for (offset, token) in tokens.iter().enumerate() {
            let at = position - tokens.len() as u64 + offset as u64;
            if at >= self.first_position {
                assert_eq!(*token, oracle(at), "the stages get what was drawn");
            }
        }
        if self.unlucky() {
            return;
        }
        if self.unlucky() {
            let failure = self.failure();
            return self.pending.push(Event::StepFailed { epoch, failure });
        }
        let token = if self.end_at == Some(position) {
            END
        } else {
            oracle(position)
        };
        let drawn = Drawn {
            token,
            logprob: 0.0,
            top: Vec::new(),
        };
        self.pending.push(match sample {
            true => Event::Token {
                epoch,
                step,
                position,
                drawn,
            },
            false => Event::Applied { epoch, step },
        });
    }
}

pub(super) fn memory_in_use() -> Failure {
    let message = "other sessions hold the memory";
    Failure::new(ErrorKind::Overloaded, MEMORY_IN_USE, message, "try again")
}

pub(super) fn first_route(stages: usize) -> Vec<RouteStage> {
    let numbers: Vec<u8> = (0..stages as u8).map(|n| 200 + n).collect();
    route(&numbers)
}

pub(super) fn machine(prompt: usize, max_new: u64, stages: usize, stop: Option<u32>) -> Machine {
    Machine::new(
        opening(prompt, max_new),
        first_route(stages),
        Box::new(Numbers { stop }),
    )
}

pub(super) fn expected(prompt: usize, count: u64) -> Vec<u32> {
    (0..count).map(|n| oracle(prompt as u64 + n)).collect()
}
