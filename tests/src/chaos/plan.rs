//! From a seed and a number to a trial. Pure: no clock, no process, no file.
//!
//! The generator is SplitMix64, written out here because a trial must stay the same when a
//! dependency changes its mind about random numbers.

use serde::Serialize;

/// Prompts and answers that trials draw from, so that few undisturbed answers serve many trials.
pub const REQUESTS: u32 = 24;
const SHORTEST_MS: u64 = 50;

/// What bounds every trial of a run.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Layers of the model.
    pub layers: u32,
    /// Least and most tokens of an answer.
    pub answer: (u32, u32),
    /// Least and most words of an ordinary prompt.
    pub prompt: (u32, u32),
    /// Words of a prompt whose reading takes long enough to be disturbed.
    pub long_prompt: u32,
    /// The longest that a passing fault lasts.
    pub longest_ms: u64,
    /// The kinds of fault.
    pub faults: Vec<Kind>,
}

/// What the plan knows of a kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Whether the node is gone for the rest of the trial.
    pub for_good: bool,
}

/// One trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Its number within the run.
    pub trial: u32,
    /// Nodes, the asked one among them.
    pub nodes: usize,
    /// Layers of the model.
    pub layers: u32,
    /// The most layers that each takes.
    pub max_layers: u32,
    /// What is asked, all at once. The first one is watched: faults are timed by its answer.
    pub requests: Vec<Request>,
    /// The faults, one after another.
    pub blows: Vec<Blow>,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Request {
    /// Which of the drawn ones.
    pub id: u32,
    /// Words of the prompt.
    pub words: u32,
    /// The most tokens of the answer.
    pub answer: u32,
    /// Greedy, or sampled with a temperature.
    pub greedy: bool,
    /// The seed of the sampler.
    pub seed: u64,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blow {
    /// The name of its kind.
    pub fault: &'static str,
    /// When.
    pub when: When,
    /// Whether it hits a peer that computes for the watched session, or just any.
    pub on_route: bool,
    /// Which of these.
    pub pick: u32,
    /// How long a passing fault lasts.
    pub lasts_ms: u64,
}

/// When a fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Once so many thousandths of the watched answer were heard.
    Answer(u32),
    /// While the stages read the prompt of the watched session.
    Prefill,
    /// While the watched session recovers from the fault before.
    Recovery,
}

/// The trial with this number.
pub fn plan(seed: u64, trial: u32, shape: &Shape) -> Plan {
    let mut dice = Dice::new(seed, u64::from(trial));
    let nodes = 3 + dice.below(3) as usize;
    let mut blows = blows(&mut dice, nodes, shape);
    let lost = blows.iter().filter(|blow| is_for_good(blow, shape)).count();
    let survivors = (nodes - lost) as u32;
    let in_prefill = blows.first().is_some_and(|blow| blow.when == When::Prefill);
    let sessions = if dice.below(3) == 0 { 8 } else { 1 };
    let first = match in_prefill {
        true => long_request(seed, dice.below(4), shape),
        false => request(seed, dice.below(u64::from(REQUESTS)) as u32, shape),
    };
    let mut requests = vec![first];
    while requests.len() < sessions {
        requests.push(request(seed, dice.below(u64::from(REQUESTS)) as u32, shape));
    }
    sort_answers(&mut blows);
    Plan {
        trial,
        nodes,
        layers: shape.layers,
        max_layers: shape.layers.div_ceil(survivors),
        requests,
        blows,
    }
}

/// One to nodes − 1 faults. At most nodes − 2 peers are lost for good: with only the asked one
/// left, nothing would be split, and nobody could be lost.
fn blows(dice: &mut Dice, nodes: usize, shape: &Shape) -> Vec<Blow> {
    let count = 1 + dice.below(nodes as u64 - 1) as usize;
    let mut spare = nodes - 2;
    let mut blows: Vec<Blow> = Vec::new();
    while blows.len() < count {
        let kinds: Vec<Kind> = shape
            .faults
            .iter()
            .copied()
            .filter(|kind| spare > 0 || !kind.for_good)
            .collect();
        let Some(kind) = dice.choose(&kinds) else {
            break;
        };
        spare -= usize::from(kind.for_good);
        let when = when(dice, blows.is_empty());
        blows.push(Blow {
            fault: kind.name,
            when,
            on_route: dice.below(5) > 0,
            pick: dice.below(16) as u32,
            lasts_ms: dice.span(SHORTEST_MS, shape.longest_ms),
        });
    }
    blows
}

fn when(dice: &mut Dice, is_first: bool) -> When {
    match (dice.below(10), is_first) {
        (0..2, true) => When::Prefill,
        (0..4, false) => When::Recovery,
        _ => When::Answer(dice.below(900) as u32),
    }
}

fn is_for_good(blow: &Blow, shape: &Shape) -> bool {
    let kind = shape.faults.iter().find(|kind| kind.name == blow.fault);
    kind.is_some_and(|kind| kind.for_good)
}

/// Faults come in the order of the answer; those that wait for a recovery keep their places.
fn sort_answers(blows: &mut [Blow]) {
    let mut marks: Vec<u32> = blows.iter().filter_map(|blow| mark(blow.when)).collect();
    marks.sort_unstable();
    let timed = blows.iter_mut().filter(|blow| mark(blow.when).is_some());
    for (blow, mark) in timed.zip(marks) {
        blow.when = When::Answer(mark);
    }
}

fn mark(when: When) -> Option<u32> {
    match when {
        When::Answer(mark) => Some(mark),
        When::Prefill | When::Recovery => None,
    }
}

/// One of the requests that the trials of a seed share.
fn request(seed: u64, id: u32, shape: &Shape) -> Request {
    let mut dice = Dice::new(seed ^ 0x005e_ed0f_a5ec, u64::from(id));
    let within = |dice: &mut Dice, (least, most): (u32, u32)| {
        dice.span(u64::from(least), u64::from(most)) as u32
    };
    Request {
        id,
        words: within(&mut dice, shape.prompt),
        answer: within(&mut dice, shape.answer),
        greedy: dice.below(3) == 0,
        seed: dice.below(1 << 32),
    }
}

fn long_request(seed: u64, which: u64, shape: &Shape) -> Request {
    let id = REQUESTS + which as u32;
    Request {
        words: shape.long_prompt,
        ..request(seed, id, shape)
    }
}

/// SplitMix64.
struct Dice(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Dice {
    fn new(seed: u64, stream: u64) -> Self {
        let mut dice = Self(seed.wrapping_add(stream.wrapping_mul(0xd134_2543_de82_ef95)));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is small: the bias of the remainder does not matter.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Between two numbers, as often between 1 and 10 as between 10 and 100.
    fn span(&mut self, least: u64, most: u64) -> u64 {
        let part = self.below(1 << 20) as f64 / f64::from(1 << 20);
        let ratio = most as f64 / least.max(1) as f64;
        let value = least as f64 * ratio.powf(part);
        (value.round() as u64).clamp(least, most)
    }

    fn choose<T: Copy>(&mut self, among: &[T]) -> Option<T> {
        among.get(self.below(among.len() as u64) as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 3] = [
        Kind {
            name: "gone",
            for_good: true,
        },
        Kind {
            name: "away",
            for_good: false,
        },
        Kind {
            name: "slow",
            for_good: false,
        },
    ];

    fn shape(layers: u32, kinds: &[Kind]) -> Shape {
        Shape {
            layers,
            answer: (60, 120),
            prompt: (4, 60),
            long_prompt: 700,
            longest_ms: 8_000,
            faults: kinds.to_vec(),
        }
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_trial(seed: u64, trial: u32) {
            let shape = shape(30, &KINDS);
            prop_assert_eq!(plan(seed, trial, &shape), plan(seed, trial, &shape));
        }

        #[test]
        fn a_trial_keeps_its_limits(seed: u64, trial: u32, layers in 5..80_u32, only in 0..4_usize) {
            let kinds = KINDS.get(only..=only).unwrap_or(&KINDS);
            let shape = shape(layers, kinds);
            let plan = plan(seed, trial, &shape);
            prop_assert!((3..=5).contains(&plan.nodes));
            prop_assert!([1, 8].contains(&plan.requests.len()));
            prop_assert!((1..plan.nodes).contains(&plan.blows.len()));
            let lost = plan.blows.iter().filter(|blow| blow.fault == "gone").count();
            prop_assert!(plan.nodes - lost >= 2);
            // Whoever survives can hold the model, and nobody can hold it alone.
            let survivors = (plan.nodes - lost) as u32;
            prop_assert!(plan.max_layers * survivors >= layers);
            prop_assert!(plan.max_layers < layers);
            for request in &plan.requests {
                prop_assert!((60..=120).contains(&request.answer));
                prop_assert!((4..=60).contains(&request.words) || request.words == 700);
            }
            for blow in &plan.blows {
                prop_assert!((SHORTEST_MS..=8_000).contains(&blow.lasts_ms));
            }
        }

        #[test]
        fn faults_come_in_the_order_of_the_answer(seed: u64, trial: u32) {
            let plan = plan(seed, trial, &shape(30, &KINDS));
            let marks: Vec<u32> = plan.blows.iter().filter_map(|blow| mark(blow.when)).collect();
            prop_assert!(marks.is_sorted());
            let later = plan.blows.iter().skip(1);
            prop_assert!(later.clone().all(|blow| blow.when != When::Prefill));
            prop_assert!(plan.blows.first().is_none_or(|blow| blow.when != When::Recovery));
        }

        #[test]
        fn requests_come_out_of_a_small_pool(seed: u64, trial: u32) {
            let shape = shape(30, &KINDS);
            for asked in plan(seed, trial, &shape).requests {
                prop_assert!(asked.id < REQUESTS + 4);
                if asked.id < REQUESTS {
                    prop_assert_eq!(&asked, &request(seed, asked.id, &shape));
                }
            }
        }
    }

    #[test]
    fn many_trials_have_every_size_kind_and_time() {
        let shape = shape(30, &KINDS);
        let plans: Vec<Plan> = (0..200).map(|trial| plan(1, trial, &shape)).collect();
        for nodes in 3..=5 {
            assert!(plans.iter().any(|plan| plan.nodes == nodes));
            assert!(plans.iter().any(|plan| plan.blows.len() == nodes - 1));
        }
        let blows: Vec<&Blow> = plans.iter().flat_map(|plan| &plan.blows).collect();
        for kind in KINDS {
            assert!(blows.iter().any(|blow| blow.fault == kind.name));
        }
        assert!(blows.iter().any(|blow| blow.when == When::Prefill));
        assert!(blows.iter().any(|blow| blow.when == When::Recovery));
    }
}
