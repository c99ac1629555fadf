//! What a seed brings: the request, the peers, and what goes wrong, how much and when.

use rand::Rng;
use rand::rngs::StdRng;

use crate::session::machine::REPLICAS;
use crate::tolerance::FaultTolerance;

/// Milliseconds of simulated time.
pub(super) type Millis = u64;

/// What is to be expected of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// No fault happens, and none is seen.
    Undisturbed,
    /// The full answer, whatever happened.
    Completes,
    /// The full answer, or an error that says why; and no wrong token before it.
    EndsWell,
}

/// What a seed brings.
#[derive(Debug, Clone)]
pub(super) struct Weather {
    pub(super) promise: Promise,
    pub(super) level: FaultTolerance,
    pub(super) prompt: usize,
    pub(super) max_new: u64,
    pub(super) stop: Option<u32>,
    /// How many layers each peer takes; the first peer is the one that is asked first.
    pub(super) capacities: Vec<u32>,
    /// Which peers have memory for outputs.
    pub(super) remembers: Vec<bool>,
    /// The way of rebuilding that is taken where it is possible, if any.
    pub(super) rebuild: Option<&'static str>,
    /// Time that a stage takes for a step.
    pub(super) step: Millis,
    /// How long things go wrong, from the first step on.
    pub(super) window: Millis,
    /// Of a thousand messages each: lost, doubled, held up for long.
    pub(super) lost: u32,
    pub(super) doubled: u32,
    pub(super) delayed: u32,
    /// Of a thousand: stages that refuse, steps that fail.
    pub(super) refused: u32,
    pub(super) failed: u32,
    /// How many peers crash, stall and are slow, each at some time.
    pub(super) crashes: u32,
    pub(super) stalls: u32,
    pub(super) slow: u32,
    /// How often clocks jump, and how often some do not hear some others.
    pub(super) jumps: u32,
    pub(super) cuts: u32,
    pub(super) longest_cut: Millis,
    /// Whether those that crash come back while the session may wait for them.
    pub(super) return_soon: bool,
    /// Whether all connections break, for a moment, and nothing else happens.
    pub(super) breaks: bool,
    /// Whether the client reads slowly.
    pub(super) slow_client: bool,
    /// Whether the client goes away, or the journal fails, in the middle of it.
    pub(super) broken_off: bool,
    /// How often another route is offered to the session.
    pub(super) moves: u32,
    /// How often the coordinator crashes or the client is gone, for a while.
    pub(super) interruptions: u32,
}

impl Weather {
    pub(super) fn of(seed: u64, rng: &mut StdRng) -> Self {
        let fair = Self::fair(rng);
        match seed % 14 {
            0 => fair.safer(rng),
            1..=6 => Self::stormy(fair, rng).safer(rng),
            7 => Self::hopeless(fair, rng),
            8 => Self {
                promise: Promise::Completes,
                level: FaultTolerance::Low,
                breaks: true,
                ..fair
            },
            9..=11 => {
                let interruptions = rng.random_range(1..=4);
                Self {
                    interruptions,
                    ..Self::stormy(fair, rng).safer(rng)
                }
            }
            12 => Self::long(fair, rng).safer(rng),
            _ => {
                let levels = [FaultTolerance::None, FaultTolerance::Low];
                let level = levels[rng.random_range(0..2)];
                Self {
                    level,
                    promise: Promise::EndsWell,
                    broken_off: rng.random_bool(0.3),
                    ..Self::stormy(fair, rng)
                }
            }
        }
    }

    fn fair(rng: &mut StdRng) -> Self {
        let prompts = [1, 2, 9, 40, 255, 256, 257, 700];
        let peers = rng.random_range(1..=5);
        let capacities = (0..=peers).map(|_| rng.random_range(1..=6)).collect();
        Self {
            promise: Promise::Undisturbed,
            level: FaultTolerance::Medium,
            prompt: prompts[rng.random_range(0..prompts.len())],
            max_new: rng.random_range(1..=40),
            stop: rng.random_bool(0.2).then(|| rng.random_range(1..100)),
            capacities: roomy(capacities, rng),
            remembers: (0..=peers).map(|_| rng.random_bool(0.8)).collect(),
            rebuild: [None, Some("copy"), Some("replay"), Some("prefill")][rng.random_range(0..4)],
            step: rng.random_range(1..=100),
            window: 0,
            lost: 0,
            doubled: 0,
            delayed: 0,
            refused: 0,
            failed: 0,
            crashes: 0,
            stalls: 0,
            slow: 0,
            jumps: 0,
            cuts: 0,
            longest_cut: 8_000,
            return_soon: true,
            breaks: false,
            slow_client: rng.random_bool(0.1),
            broken_off: false,
            moves: [0, 0, 1, 4][rng.random_range(0..4)],
            interruptions: 0,
        }
    }

    /// In some swarms that are large enough, peers keep the journal.
    fn safer(self, rng: &mut StdRng) -> Self {
        let is_high = self.capacities.len() > REPLICAS && rng.random_bool(0.4);
        let level = match is_high {
            true => FaultTolerance::High,
            false => self.level,
        };
        Self { level, ..self }
    }

    /// Anything may happen, for less time than a session waits.
    fn stormy(fair: Self, rng: &mut StdRng) -> Self {
        Self {
            promise: Promise::Completes,
            max_new: rng.random_range(8..=40),
            window: rng.random_range(500..=20_000),
            lost: [0, 0, 10, 40][rng.random_range(0..4)],
            doubled: [0, 20, 100][rng.random_range(0..3)],
            delayed: [0, 0, 10, 50][rng.random_range(0..4)],
            refused: [0, 50, 200][rng.random_range(0..3)],
            failed: [0, 0, 20][rng.random_range(0..3)],
            crashes: rng.random_range(0..=4),
            stalls: rng.random_range(0..=2),
            slow: rng.random_range(0..=1),
            jumps: [0, 0, 1, 3][rng.random_range(0..4)],
            cuts: [0, 0, 1, 4][rng.random_range(0..4)],
            ..fair
        }
    }

    /// The same for longer than any session waits.
    fn hopeless(fair: Self, rng: &mut StdRng) -> Self {
        Self {
            promise: Promise::EndsWell,
            window: rng.random_range(30_000..=120_000),
            lost: [10, 100, 400][rng.random_range(0..3)],
            crashes: rng.random_range(3..=8),
            return_soon: rng.random_bool(0.3),
            broken_off: rng.random_bool(0.5),
            ..Self::stormy(fair, rng)
        }
    }

    /// A storm that outlasts what sessions wait for, and a client that comes back nevertheless.
    fn long(fair: Self, rng: &mut StdRng) -> Self {
        Self {
            cuts: rng.random_range(2..=12),
            longest_cut: [8_000, 80_000][rng.random_range(0..2)],
            max_new: rng.random_range(20..=80),
            interruptions: rng.random_range(2..=6),
            return_soon: true,
            broken_off: false,
            ..Self::hopeless(fair, rng)
        }
    }

    pub(super) fn one_in_thousand(share: u32, rng: &mut StdRng) -> bool {
        share > 0 && rng.random_range(0..1000) < share
    }
}

/// With room for all layers, and something to spare now and then.
fn roomy(mut capacities: Vec<u32>, rng: &mut StdRng) -> Vec<u32> {
    while capacities.iter().sum::<u32>() < super::toy::LAYERS {
        let index = rng.random_range(0..capacities.len());
        capacities[index] += 1;
    }
    capacities
}
