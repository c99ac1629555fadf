//! From a seed and a number to a trial. Pure: no clock, no process, no file.

use serde::Serialize;

use super::dice::Dice;

/// Prompts and answers that trials draw from, so that few undisturbed answers serve many trials.
pub const REQUESTS: u32 = 24;
const SHORTEST_MS: u64 = 50;

/// What requests survive, as they say it.
pub const MEDIUM: &str = "medium";
/// The same, with their node and its disk.
pub const HIGH: &str = "high";

/// What bounds every trial of a run.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Layers of the model.
    pub layers: u32,
    /// Least and most tokens of an answer.
    pub answer: (u32, u32),
    /// The same, where a fault gives answers time to end.
    pub long_answer: (u32, u32),
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
    /// Whom it hits.
    pub target: Target,
    /// Whether the node is gone for the rest of the trial.
    pub for_good: bool,
    /// Whether the node gives its answers time to end, and hands over those that do not.
    pub hands_over: bool,
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A peer.
    Peer,
    /// The node that coordinates the watched answer.
    Coordinator,
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
    /// Whether the last node has the whole model, too: the asked one may be gone.
    pub spare_model: bool,
    /// What the requests are to survive.
    pub fault_tolerance: &'static str,
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
    /// Whom it hits.
    pub target: Target,
    /// When.
    pub when: When,
    /// Of peers: whether it hits one that computes for the watched session, or just any.
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
    let (nodes, level) = size(&mut dice, shape);
    let mut drawn = Drawn::new(level, nodes);
    let mut blows = blows(&mut dice, nodes, shape, &mut drawn);
    // Some trials have room for one more loss than comes.
    let lost = drawn.lost + dice.below(2) as usize;
    let survivors = nodes.saturating_sub(lost).max(2) as u32;
    sort_answers(&mut blows);
    Plan {
        trial,
        nodes,
        layers: shape.layers,
        max_layers: shape.layers.div_ceil(survivors),
        spare_model: blows.iter().any(|blow| blow.target == Target::Coordinator),
        fault_tolerance: level,
        requests: requests(&mut dice, seed, shape, &blows, drawn.hands_over),
        blows,
    }
}

/// How many nodes, and what the answers survive. Two peers keep a copy of what is to survive its node,
/// and a third one is there to go on.
fn size(dice: &mut Dice, shape: &Shape) -> (usize, &'static str) {
    let (small, large) = (3 + dice.below(3) as usize, 4 + dice.below(2) as usize);
    let is_high = dice.below(2) == 0;
    if !shape.faults.iter().any(|kind| kind.is_survived(MEDIUM)) {
        return (large, HIGH);
    }
    match is_high && small > 3 {
        true => (small, HIGH),
        false => (small, MEDIUM),
    }
}

impl Kind {
    /// Whether a coordinator of such an answer may be hit.
    fn is_survived(&self, level: &str) -> bool {
        self.target == Target::Peer || !self.for_good || level == HIGH
    }
}

/// What was drawn of a trial so far, and what may still be.
struct Drawn {
    level: &'static str,
    /// Nodes that may be lost for good.
    spare: usize,
    lost: usize,
    lost_coordinator: bool,
    hands_over: bool,
}

impl Drawn {
    /// With `high`, three nodes must be left: one that goes on, and two with copies. Otherwise two: with
    /// one, nothing would be split, and nobody could be lost.
    fn new(level: &'static str, nodes: usize) -> Self {
        Self {
            level,
            spare: nodes - if level == HIGH { 3 } else { 2 },
            lost: 0,
            lost_coordinator: false,
            hands_over: false,
        }
    }

    fn may_have(&self, kind: &Kind) -> bool {
        // Of a node that stops, one peer has the answer: with `medium`, it must not be lost then.
        let only_copy = self.level == MEDIUM
            && (kind.for_good && self.hands_over || kind.hands_over && self.lost > 0);
        // Two nodes have the whole model.
        let is_second =
            kind.for_good && kind.target == Target::Coordinator && self.lost_coordinator;
        let fits = self.spare > 0 || !kind.for_good;
        fits && !only_copy && !is_second && kind.is_survived(self.level)
    }

    fn take(&mut self, kind: &Kind) {
        let is_coordinator = kind.target == Target::Coordinator;
        self.spare -= usize::from(kind.for_good);
        self.lost += usize::from(kind.for_good);
        self.lost_coordinator |= kind.for_good && is_coordinator;
        self.hands_over |= kind.hands_over && is_coordinator;
    }
}

/// One fault, or up to nodes − 1; every third of the coordinator, and with `high` every second.
fn blows(dice: &mut Dice, nodes: usize, shape: &Shape, drawn: &mut Drawn) -> Vec<Blow> {
    let more = dice.below(nodes as u64 - 1) as usize;
    let count = 1 + if dice.below(2) == 0 { 0 } else { more };
    let sides = if drawn.level == HIGH { 2 } else { 3 };
    let mut blows: Vec<Blow> = Vec::new();
    while blows.len() < count {
        let target = match dice.below(sides) {
            0 => Target::Coordinator,
            _ => Target::Peer,
        };
        let possible = shape.faults.iter().filter(|kind| drawn.may_have(kind));
        let possible: Vec<Kind> = possible.copied().collect();
        let wished = possible.iter().filter(|kind| kind.target == target);
        let wished: Vec<Kind> = wished.copied().collect();
        let Some(kind) = dice.choose(if wished.is_empty() {
            &possible
        } else {
            &wished
        }) else {
            break;
        };
        drawn.take(&kind);
        blows.push(Blow {
            fault: kind.name,
            target: kind.target,
            when: when(dice, blows.is_empty()),
            on_route: dice.below(5) > 0,
            pick: dice.below(16) as u32,
            lasts_ms: dice.span(SHORTEST_MS, shape.longest_ms),
        });
    }
    blows
}

/// One request, or eight. Where a fault gives answers time to end, there are eight long ones, which make
/// each other slow: or else none would be left to be handed over.
fn requests(
    dice: &mut Dice,
    seed: u64,
    shape: &Shape,
    blows: &[Blow],
    is_long: bool,
) -> Vec<Request> {
    let sessions = if is_long || dice.below(3) == 0 { 8 } else { 1 };
    let in_prefill = blows.first().is_some_and(|blow| blow.when == When::Prefill);
    let mut requests: Vec<Request> = Vec::new();
    while requests.len() < sessions {
        let is_watched = requests.is_empty();
        let request = if is_watched && in_prefill {
            long_request(seed, dice.below(4), shape)
        } else if is_long {
            long_answer(seed, dice.below(4), shape)
        } else {
            request(seed, dice.below(u64::from(REQUESTS)) as u32, shape)
        };
        requests.push(request);
    }
    requests
}

fn when(dice: &mut Dice, is_first: bool) -> When {
    match (dice.below(10), is_first) {
        (0..2, true) => When::Prefill,
        (0..4, false) => When::Recovery,
        _ => When::Answer(dice.below(900) as u32),
    }
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

fn long_answer(seed: u64, which: u64, shape: &Shape) -> Request {
    let (least, most) = shape.long_answer;
    let id = REQUESTS + 4 + which as u32;
    let mut dice = Dice::new(seed ^ 0x10_4e6a, which);
    Request {
        answer: dice.span(u64::from(least), u64::from(most)) as u32,
        ..request(seed, id, shape)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 6] = [
        kind("gone", Target::Peer, true),
        kind("away", Target::Peer, false),
        kind("slow", Target::Peer, false),
        kind("asked-gone", Target::Coordinator, true),
        kind("asked-away", Target::Coordinator, false),
        Kind {
            hands_over: true,
            ..kind("asked-stops", Target::Coordinator, false)
        },
    ];

    const fn kind(name: &'static str, target: Target, for_good: bool) -> Kind {
        Kind {
            name,
            target,
            for_good,
            hands_over: false,
        }
    }

    fn shape(layers: u32, kinds: &[Kind]) -> Shape {
        Shape {
            layers,
            answer: (60, 120),
            long_answer: (200, 300),
            prompt: (4, 60),
            long_prompt: 700,
            longest_ms: 8_000,
            faults: kinds.to_vec(),
        }
    }

    fn count(plan: &Plan, name: &str) -> usize {
        plan.blows.iter().filter(|blow| blow.fault == name).count()
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_trial(seed: u64, trial: u32) {
            let shape = shape(30, &KINDS);
            prop_assert_eq!(plan(seed, trial, &shape), plan(seed, trial, &shape));
        }

        #[test]
        fn a_trial_keeps_its_limits(seed: u64, trial: u32, layers in 5..80_u32, only in 0..7_usize) {
            let kinds = KINDS.get(only..=only).unwrap_or(&KINDS);
            let shape = shape(layers, kinds);
            let plan = plan(seed, trial, &shape);
            prop_assert!((3..=5).contains(&plan.nodes));
            prop_assert!([1, 8].contains(&plan.requests.len()));
            prop_assert!((1..plan.nodes).contains(&plan.blows.len()));
            let lost = count(&plan, "gone") + count(&plan, "asked-gone");
            let is_high = plan.fault_tolerance == HIGH;
            let least = if is_high { 3 } else { 2 };
            prop_assert!(plan.nodes - lost >= least);
            prop_assert!(!is_high || plan.nodes >= 4);
            // Whoever survives can hold the model, and nobody can hold it alone.
            let survivors = (plan.nodes - lost) as u32;
            prop_assert!(plan.max_layers * survivors >= layers);
            prop_assert!(plan.max_layers < layers);
            for request in &plan.requests {
                let most = if count(&plan, "asked-stops") > 0 { 300 } else { 120 };
                prop_assert!((60..=most).contains(&request.answer));
                prop_assert!((4..=60).contains(&request.words) || request.words == 700);
            }
            for blow in &plan.blows {
                prop_assert!((SHORTEST_MS..=8_000).contains(&blow.lasts_ms));
            }
        }

        #[test]
        fn nothing_is_lost_that_an_answer_does_not_survive(seed: u64, trial: u32) {
            let plan = plan(seed, trial, &shape(30, &KINDS));
            let gone = count(&plan, "asked-gone");
            prop_assert!(gone <= 1, "the model is on two nodes");
            prop_assert!(gone == 0 || plan.fault_tolerance == HIGH);
            let (stops, lost) = (count(&plan, "asked-stops"), count(&plan, "gone"));
            prop_assert!(plan.fault_tolerance == HIGH || stops == 0 || lost == 0);
            let of_asked = plan.blows.iter().any(|blow| blow.fault.starts_with("asked"));
            prop_assert_eq!(plan.spare_model, of_asked);
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
                prop_assert!(asked.id < REQUESTS + 8);
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
        for level in [MEDIUM, HIGH] {
            assert!(plans.iter().any(|plan| plan.fault_tolerance == level));
        }
        assert!(blows.iter().any(|blow| blow.when == When::Prefill));
        assert!(blows.iter().any(|blow| blow.when == When::Recovery));
    }
}
