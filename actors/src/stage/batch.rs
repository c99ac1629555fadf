//! What a stage computes next: continuous batching. Pure: steps come in, batches go out.
//!
//! A batch takes the first waiting step of each sequence: every decode row, which costs next to
//! nothing beside the weights that are read anyway, and chunks of prompts up to [`PROMPT_ROWS`].
//! Sequences take turns. The first chunk in turn is always taken and none overtakes another, so
//! a prompt waits for at most one batch per sequence before it, and a decode row for none.
//!
//! Sequences that will be back at once can be expected. Without that, the first that is back after
//! a batch would be computed alone and the others, which come a moment later, after it: two passes
//! over the weights where one would do, for ever.

use std::collections::{HashMap, HashSet, VecDeque};

use accel_inference::SeqId;

/// Rows of prompts in one batch, unless a single chunk is larger. One chunk of a coordinator
/// (256 rows) makes full use of the arithmetic; more would only make the tokens of the others,
/// which share the batch, wait longer. Short prompts share the budget.
pub(super) const PROMPT_ROWS: usize = 256;

/// Steps that wait, and whose turn it is.
#[derive(Debug)]
pub(super) struct Scheduler<T> {
    /// Per sequence in order; no queue is empty.
    waiting: HashMap<SeqId, VecDeque<Waiting<T>>>,
    /// The sequences in `waiting`, each once; the first is served first.
    turns: VecDeque<SeqId>,
    /// Sequences whose next step is worth a moment's wait.
    expected: HashSet<SeqId>,
    steps: usize,
    limit: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    rows: usize,
    step: T,
}

impl<T> Scheduler<T> {
    /// A scheduler that lets `limit` steps wait.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            expected: HashSet::new(),
            steps: 0,
            limit,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps == 0
    }

    /// Lets a step wait behind those of its sequence; given back when too many wait.
    pub(super) fn push(&mut self, seq: SeqId, rows: usize, step: T) -> Result<(), T> {
        if self.steps >= self.limit {
            return Err(step);
        }
        let queue = self.waiting.entry(seq).or_default();
        if queue.is_empty() {
            self.turns.push_back(seq);
        }
        queue.push_back(Waiting { rows, step });
        self.expected.remove(&seq);
        self.steps += 1;
        Ok(())
    }

    /// Expects a next step of these sequences, and of no others any more.
    pub(super) fn expect(&mut self, sequences: impl Iterator<Item = SeqId>) {
        self.expected = sequences.collect();
    }

    /// Whether something waits that would better be computed together with what is expected.
    pub(super) fn should_linger(&self) -> bool {
        self.steps > 0 && !self.expected.is_empty()
    }

    /// Drops all that waits for a sequence.
    pub(super) fn forget(&mut self, seq: SeqId) {
        self.expected.remove(&seq);
        let Some(queue) = self.waiting.remove(&seq) else {
            return;
        };
        self.steps -= queue.len();
        self.turns.retain(|other| *other != seq);
    }

    /// Takes what is to be computed together now; empty only when nothing waits.
    pub(super) fn batch(&mut self) -> Vec<T> {
        let (mut batch, mut prompt_rows) = (Vec::new(), 0);
        let (mut passed_over, mut served) = (VecDeque::new(), VecDeque::new());
        for seq in std::mem::take(&mut self.turns) {
            let rows = self.rows_of(seq);
            if rows > 1 {
                let overtakes = !passed_over.is_empty();
                let fits = prompt_rows == 0 || prompt_rows + rows <= PROMPT_ROWS;
                if overtakes || !fits {
                    passed_over.push_back(seq);
                    continue;
                }
                prompt_rows += rows;
            }
            batch.extend(self.pop(seq));
            if self.waiting.contains_key(&seq) {
                served.push_back(seq);
            }
        }
        passed_over.append(&mut served);
        self.turns = passed_over;
        batch
    }

    /// Takes all that waits, in no order, for a stage that can compute no more.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.turns.clear();
        self.steps = 0;
        let queues = self.waiting.drain();
        let waiting = queues.flat_map(|(_, queue)| queue);
        waiting.map(|waiting| waiting.step).collect()
    }

    /// Rows of the first step that waits for a sequence.
    fn rows_of(&self, seq: SeqId) -> usize {
        let first = self.waiting.get(&seq).and_then(VecDeque::front);
        first.map_or(0, |first| first.rows)
    }

    fn pop(&mut self, seq: SeqId) -> Option<T> {
        let queue = self.waiting.get_mut(&seq)?;
        let first = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&seq);
        }
        self.steps -= 1;
        Some(first.step)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 24;

    /// A step by its sequence, its number in the sequence, and its rows.
    type Step = (SeqId, u64, usize);

    #[derive(Debug, Clone)]
    enum Act {
        Push(SeqId, usize),
        Forget(SeqId),
        Batch,
    }

    fn act() -> impl Strategy<Value = Act> {
        let seq = 0..6u64;
        let rows = prop_oneof![Just(1usize), 2..=100usize, Just(256), 257..=512usize];
        prop_oneof![
            6 => (seq.clone(), rows).prop_map(|(seq, rows)| Act::Push(seq, rows)),
            1 => seq.prop_map(Act::Forget),
            3 => Just(Act::Batch),
        ]
    }

    /// What must be true of the scheduler, kept beside it the slow way.
    struct Model {
        scheduler: Scheduler<Step>,
        waiting: BTreeMap<SeqId, VecDeque<Step>>,
        pushed: u64,
        /// Batches for which the first step of a sequence has waited.
        passed_over: BTreeMap<SeqId, usize>,
        /// Chunks that a sequence got while another's waited: (waiting, served).
        overtaken: BTreeMap<(SeqId, SeqId), usize>,
    }

    impl Model {
        fn new() -> Self {
            Self {
                scheduler: Scheduler::new(LIMIT),
                waiting: BTreeMap::new(),
                pushed: 0,
                passed_over: BTreeMap::new(),
                overtaken: BTreeMap::new(),
            }
        }

        fn count(&self) -> usize {
            self.waiting.values().map(VecDeque::len).sum()
        }

        fn push(&mut self, seq: SeqId, rows: usize) {
            let step = (seq, self.pushed, rows);
            let is_full = self.count() >= LIMIT;
            let pushed = self.scheduler.push(seq, rows, step);
            assert_eq!(pushed, if is_full { Err(step) } else { Ok(()) });
            if !is_full {
                self.pushed += 1;
                self.waiting.entry(seq).or_default().push_back(step);
            }
        }

        fn forget(&mut self, seq: SeqId) {
            self.scheduler.forget(seq);
            self.waiting.remove(&seq);
            self.passed_over.remove(&seq);
            self.overtaken
                .retain(|(waiting, served), _| *waiting != seq && *served != seq);
        }

        fn batch(&mut self) {
            let before = self.waiting.clone();
            let batch = self.scheduler.batch();
            assert_eq!(batch.is_empty(), before.is_empty(), "work is never left");
            for step in &batch {
                let queue = self.waiting.get_mut(&step.0).expect("it was waiting");
                assert_eq!(queue.pop_front().as_ref(), Some(step), "in order, once");
            }
            self.waiting.retain(|_, queue| !queue.is_empty());
            self.check_budget(&batch);
            self.check_fairness(&before, &batch);
        }

        fn check_budget(&self, batch: &[Step]) {
            let chunks: Vec<usize> = batch.iter().map(|step| step.2).filter(|r| *r > 1).collect();
            let rows: usize = chunks.iter().sum();
            assert!(rows <= PROMPT_ROWS || chunks.len() == 1, "{batch:?}");
        }

        fn check_fairness(&mut self, before: &BTreeMap<SeqId, VecDeque<Step>>, batch: &[Step]) {
            let served: Vec<SeqId> = batch.iter().map(|step| step.0).collect();
            for (seq, queue) in before {
                if served.contains(seq) {
                    self.passed_over.remove(seq);
                    self.overtaken.retain(|(waiting, _), _| waiting != seq);
                    continue;
                }
                let rows = queue.front().expect("no queue is empty").2;
                assert!(rows > 1, "a decode row is in the very next batch");
                let waited = self.passed_over.entry(*seq).or_default();
                *waited += 1;
                assert!(*waited < 6, "a chunk waits for each sequence once");
                for step in batch.iter().filter(|step| step.2 > 1) {
                    let chunks = self.overtaken.entry((*seq, step.0)).or_default();
                    *chunks += 1;
                    assert!(*chunks < 2, "nobody waits while another gets two");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn nothing_is_lost_repeated_reordered_or_starved(
            acts in proptest::collection::vec(act(), 1..200),
        ) {
            let mut model = Model::new();
            for act in acts {
                match act {
                    Act::Push(seq, rows) => model.push(seq, rows),
                    Act::Forget(seq) => model.forget(seq),
                    Act::Batch => model.batch(),
                }
            }
            while model.count() > 0 {
                model.batch();
            }
            prop_assert!(model.scheduler.is_empty() && model.scheduler.batch().is_empty());
        }

        #[test]
        fn draining_gives_everything_that_waits(
            steps in proptest::collection::vec((0..6u64, 1..300usize), 0..LIMIT),
        ) {
            let mut model = Model::new();
            for (seq, rows) in steps {
                model.push(seq, rows);
            }
            let mut drained = model.scheduler.drain();
            drained.sort_by_key(|step| step.1);
            let mut expected: Vec<Step> = model.waiting.into_values().flatten().collect();
            expected.sort_by_key(|step| step.1);
            prop_assert_eq!(drained, expected);
            prop_assert!(model.scheduler.is_empty() && model.scheduler.batch().is_empty());
        }
    }

    #[test]
    fn lingering_is_for_those_who_are_expected_and_only_while_others_wait() {
        let mut scheduler = Scheduler::new(LIMIT);
        scheduler.expect([1, 2, 3].into_iter());
        assert!(!scheduler.should_linger(), "nobody would be held up");
        scheduler.push(1, 1, "back").unwrap();
        assert!(scheduler.should_linger());
        scheduler.forget(2);
        assert!(scheduler.should_linger());
        scheduler.push(3, 1, "back").unwrap();
        assert!(!scheduler.should_linger(), "all are back or gone");
        scheduler.expect([4].into_iter());
        scheduler.expect([].into_iter());
        assert!(!scheduler.should_linger());
    }

    #[test]
    fn decode_rows_and_a_chunk_share_a_batch_and_prompts_take_turns() {
        let mut scheduler = Scheduler::new(LIMIT);
        for (seq, rows, name) in [
            (1, 256, "long 1"),
            (1, 256, "long 2"),
            (2, 1, "decode a"),
            (3, 200, "short"),
            (4, 50, "shorter"),
            (5, 1, "decode b"),
            (5, 1, "decode b, next"),
        ] {
            scheduler.push(seq, rows, name).unwrap();
        }
        assert_eq!(scheduler.batch(), ["long 1", "decode a", "decode b"]);
        assert_eq!(
            scheduler.batch(),
            ["short", "shorter", "decode b, next"],
            "the second chunk of the long prompt waits for the others"
        );
        assert_eq!(scheduler.batch(), ["long 2"]);
        assert!(scheduler.is_empty());
    }
}
