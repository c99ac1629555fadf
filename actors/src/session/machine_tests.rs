use std::collections::{BTreeMap, BTreeSet};

use accel_inference::LayerRange;
use accel_p2p::PeerId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::event::{Command, Drawn, Event, Outcome, RouteStage, StageReport, Timer};
use super::machine::{CHUNK, Machine, Opening};
use super::text::{Piece, TextPipe};
use crate::error::Failure;
use crate::request::FinishReason;

const END: u32 = 0;
const VOCAB: u32 = 100;

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
fn oracle(position: u64) -> u32 {
    1 + (position.wrapping_mul(7919) % u64::from(VOCAB - 1)) as u32
}

fn peer(n: u8) -> PeerId {
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend([n; 32]);
    PeerId::from_bytes(&bytes).expect("an identity multihash of an ed25519 key")
}

fn route(peers: &[u8]) -> Vec<RouteStage> {
    let stage = |(index, n): (usize, &u8)| RouteStage {
        peer: peer(*n),
        layers: LayerRange::new(index as u32, index as u32 + 1),
    };
    peers.iter().enumerate().map(stage).collect()
}

fn opening(prompt: usize, max_new: u64) -> Opening {
    Opening {
        prompt: (0..prompt as u32).map(|n| n % VOCAB).collect(),
        max_new,
        vocab: VOCAB,
    }
}

/// Stages, journal and client around a machine; checks the rules at every command.
struct World {
    rng: StdRng,
    /// How often, of a hundred times, something goes wrong.
    faults: u32,
    pending: Vec<Event>,
    armed: Option<Timer>,
    held: BTreeSet<(u64, PeerId)>,
    live_epoch: u64,
    kv: BTreeMap<u64, u64>,
    journal: Vec<u32>,
    emitted: Vec<u32>,
    text: String,
    end_at: Option<u64>,
    first_position: u64,
    route: Vec<RouteStage>,
    closed: Option<Outcome>,
}

impl World {
    fn new(seed: u64, faults: u32, prompt: usize, stages: usize) -> Self {
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

    fn run(&mut self, machine: &mut Machine) {
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
            Command::Plan { excluding } => self.plan(&excluding),
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

    fn plan(&mut self, excluding: &[PeerId]) {
        let left: Vec<u8> = (0..5).filter(|n| !excluding.contains(&peer(*n))).collect();
        let event = match left.len() {
            0..=2 => Event::NoPlan,
            _ => {
                self.route = route(&left[..2]);
                Event::Planned(self.route.clone())
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
                failure: self.failure(),
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

fn first_route(stages: usize) -> Vec<RouteStage> {
    let numbers: Vec<u8> = (0..stages as u8).map(|n| 200 + n).collect();
    route(&numbers)
}

fn machine(prompt: usize, max_new: u64, stages: usize, stop: Option<u32>) -> Machine {
    Machine::new(
        opening(prompt, max_new),
        first_route(stages),
        Box::new(Numbers { stop }),
    )
}

fn expected(prompt: usize, count: u64) -> Vec<u32> {
    (0..count).map(|n| oracle(prompt as u64 + n)).collect()
}

#[test]
fn without_faults_every_order_of_events_gives_the_same_answer() {
    for seed in 0..300 {
        let prompt = [1, 2, CHUNK, CHUNK + 1, 3 * CHUNK + 7][seed as usize % 5];
        let mut world = World::new(seed, 0, prompt, 1 + seed as usize % 4);
        let mut machine = machine(prompt, 20, 1 + seed as usize % 4, None);
        world.run(&mut machine);
        let done = Outcome::Done {
            finish: FinishReason::Length,
            completion_tokens: 20,
            text_tail: String::new(),
        };
        assert_eq!(world.closed, Some(done), "seed {seed}");
        assert_eq!(world.emitted, expected(prompt, 20), "seed {seed}");
        assert!(world.held.is_empty(), "seed {seed}: everything is released");
    }
}

#[test]
fn with_faults_nothing_is_emitted_twice_changed_or_left_behind() {
    for seed in 0..2000 {
        let prompt = 1 + seed as usize % 600;
        let mut world = World::new(seed, 1 + seed as u32 % 15, prompt, 2);
        let mut machine = machine(prompt, 12, 2, None);
        world.run(&mut machine);
        let outcome = world.closed.clone();
        assert!(outcome.is_some(), "seed {seed}: it ends");
        let count = world.emitted.len() as u64;
        assert_eq!(world.emitted, expected(prompt, count), "seed {seed}");
        if matches!(outcome, Some(Outcome::Done { .. })) {
            assert_eq!(count, 12, "seed {seed}: done means complete");
        }
        assert!(
            world.held.is_empty(),
            "seed {seed}: {:?} still held",
            world.held
        );
    }
}

#[test]
fn the_end_token_ends_the_answer_and_is_not_part_of_it() {
    let mut world = World::new(1, 0, 10, 2);
    world.end_at = Some(13);
    let mut machine = machine(10, 50, 2, None);
    world.run(&mut machine);
    let Some(Outcome::Done {
        finish,
        completion_tokens,
        ..
    }) = world.closed
    else {
        panic!("{:?}", world.closed);
    };
    assert_eq!((finish, completion_tokens), (FinishReason::Stop, 3));
    assert_eq!(world.emitted, expected(10, 3));
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let stop = oracle(12);
    let mut world = World::new(1, 0, 10, 2);
    let mut machine = machine(10, 50, 2, Some(stop));
    world.run(&mut machine);
    let Some(Outcome::Done { finish, .. }) = world.closed else {
        panic!("{:?}", world.closed);
    };
    assert_eq!(finish, FinishReason::Stop);
    assert_eq!(world.text, format!("{} {} ", oracle(10), oracle(11)));
}

/// Drives a machine to the point where its first step is under way.
fn running(prompt: usize) -> (Machine, Vec<Command>) {
    let mut machine = machine(prompt, 50, 2, None);
    machine.on(Event::Opened);
    for stage in 0..2 {
        machine.on(Event::Prepared {
            epoch: 1,
            stage,
            report: StageReport::default(),
        });
    }
    machine.on(Event::Committed { epoch: 1, stage: 0 });
    let commands = machine.on(Event::Committed { epoch: 1, stage: 1 });
    (machine, commands)
}

fn token(step: u64, position: u64, token: u32) -> Event {
    let drawn = Drawn {
        token,
        logprob: -1.0,
        top: Vec::new(),
    };
    Event::Token {
        epoch: 1,
        step,
        position,
        drawn,
    }
}

#[test]
fn a_token_is_journaled_before_it_is_emitted_while_the_next_step_is_under_way() {
    let (mut machine, _) = running(5);
    let commands = machine.on(token(1, 5, 7));
    assert!(matches!(
        commands.first(),
        Some(Command::JournalToken { index: 0, token: 7 })
    ));
    assert!(
        commands
            .iter()
            .any(|command| matches!(command, Command::Forward { step: 2, .. }))
    );
    assert!(
        !commands
            .iter()
            .any(|command| matches!(command, Command::Emit { .. }))
    );
    let commands = machine.on(Event::Journaled { index: 0 });
    assert!(matches!(
        commands.as_slice(),
        [Command::Emit { index: 0, .. }]
    ));
}

#[test]
fn a_repeated_or_outdated_token_changes_nothing() {
    let (mut machine, _) = running(5);
    machine.on(token(1, 5, 7));
    assert_eq!(machine.on(token(1, 5, 7)), []);
    let drawn = Drawn {
        token: 9,
        logprob: 0.0,
        top: Vec::new(),
    };
    assert_eq!(
        machine.on(Event::Token {
            epoch: 0,
            step: 2,
            position: 6,
            drawn
        }),
        []
    );
}

#[test]
fn a_token_that_cannot_be_ends_the_session_with_an_error() {
    for impossible in [token(1, 6, 7), token(1, 5, VOCAB)] {
        let (mut machine, _) = running(5);
        let commands = machine.on(impossible);
        let Some(Command::Close(Outcome::Failed(failure))) = commands.last() else {
            panic!("{commands:?}");
        };
        assert_eq!(failure.code, "bad_token");
    }
}

#[test]
fn a_peer_lost_in_mid_answer_fails_the_session_and_releases_the_others() {
    let (mut machine, _) = running(5);
    assert_eq!(
        machine.on(Event::PeerLost(peer(9))),
        [],
        "a stranger does not matter"
    );
    let commands = machine.on(Event::PeerLost(peer(201)));
    let releases = commands
        .iter()
        .filter(|c| matches!(c, Command::Release { .. }))
        .count();
    assert_eq!(releases, 2);
    let Some(Command::Close(Outcome::Failed(failure))) = commands.last() else {
        panic!("{commands:?}");
    };
    assert_eq!(failure.code, "peer_lost");
    assert!(!failure.hint.is_empty());
}

#[test]
fn a_refusal_before_the_first_token_tries_another_route_under_a_new_epoch() {
    let mut machine = machine(5, 50, 2, None);
    machine.on(Event::Opened);
    let failure = Failure::unavailable("no_memory", "no memory", "free some");
    let commands = machine.on(Event::Refused {
        epoch: 1,
        stage: 1,
        failure: failure.clone(),
    });
    assert_eq!(commands.len(), 3, "{commands:?}");
    assert_eq!(
        commands[2],
        Command::Plan {
            excluding: vec![peer(201)]
        }
    );
    let commands = machine.on(Event::Planned(route(&[1])));
    assert_eq!(commands, [Command::Prepare { epoch: 2, stage: 0 }]);
    machine.on(Event::Refused {
        epoch: 2,
        stage: 0,
        failure: failure.clone(),
    });
    let commands = machine.on(Event::NoPlan);
    assert_eq!(commands, [Command::Close(Outcome::Failed(failure))]);
}

#[test]
fn a_client_that_does_not_read_pauses_its_session() {
    let (mut machine, _) = running(5);
    let mut step = 1;
    loop {
        let commands = machine.on(token(step, 4 + step, 7));
        machine.on(Event::Journaled { index: step - 1 });
        if !commands
            .iter()
            .any(|command| matches!(command, Command::Forward { .. }))
        {
            break;
        }
        step += 1;
        assert!(step < 50, "it never pauses");
    }
    let commands = machine.on(Event::Emitted { index: 0 });
    assert!(
        commands
            .iter()
            .any(|command| matches!(command, Command::Forward { .. }))
    );
}

#[test]
fn cancelling_releases_everything_at_once() {
    let (mut machine, _) = running(5);
    let commands = machine.on(Event::Cancel);
    assert_eq!(commands.last(), Some(&Command::Close(Outcome::Cancelled)));
    assert_eq!(machine.on(token(1, 5, 7)), [], "nothing follows");
}
