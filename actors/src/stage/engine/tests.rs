use accel_inference::{LayerRange, SamplingParams, StageError, StageOutput};
use accel_p2p::PeerId;
use accel_p2p::wire::{PeerEndpoint, SessionId, TensorFrame};
use tokio::sync::mpsc;

use super::*;
use crate::session::table::SessionTable;
use crate::stage::batch::PROMPT_ROWS;
use crate::stage::outlet::{Next, Place};
use crate::testing::{Hub, PATIENCE, peers_of};

/// A batch: sequences with their rows.
type Batch = Vec<(SeqId, usize)>;

/// What a stage does with a batch once it may go on.
enum Go {
    Answer,
    Panic,
}

/// A stage that says which batches it is given and computes each only when told to.
struct Puppet {
    batches: mpsc::Sender<Batch>,
    go: mpsc::Receiver<Go>,
}

impl Stage for Puppet {
    fn range(&self) -> LayerRange {
        LayerRange::whole(1)
    }

    fn weights_bytes(&self) -> u64 {
        0
    }

    fn numerics(&self) -> &str {
        "test-1"
    }

    fn open(&mut self, _: SeqId, _: usize) -> Result<(), StageError> {
        Ok(())
    }

    fn run(&mut self, batch: Vec<StepRequest>) -> Vec<Result<StageOutput, StageError>> {
        let rows = |request: &StepRequest| match &request.input {
            StageInput::Tokens(tokens) => tokens.len(),
            StageInput::Hidden { rows, .. } => *rows,
        };
        let seen = batch.iter().map(|request| (request.seq, rows(request)));
        self.batches.blocking_send(seen.collect()).unwrap();
        match self.go.blocking_recv() {
            Some(Go::Answer) => {}
            Some(Go::Panic) | None => panic!("on purpose"),
        }
        batch.iter().map(|request| Ok(output(request))).collect()
    }

    fn truncate(&mut self, _: SeqId, _: usize) -> Result<(), StageError> {
        Ok(())
    }

    fn export(&self, seq: SeqId, _: std::ops::Range<usize>) -> Result<Vec<u8>, StageError> {
        Err(StageError::UnknownSequence { seq })
    }

    fn import(&mut self, seq: SeqId, _: usize, _: &[u8]) -> Result<(), StageError> {
        Err(StageError::UnknownSequence { seq })
    }

    fn len(&self, _: SeqId) -> Option<usize> {
        None
    }

    fn close(&mut self, _: SeqId) {}
}

fn output(request: &StepRequest) -> StageOutput {
    match request.want_logits {
        Logits::None => StageOutput::Nothing,
        _ => StageOutput::Logits {
            rows: 1,
            data: vec![0.0, 1.0].into(),
        },
    }
}

/// An engine with a puppet, and a coordinator that watches.
struct Theatre {
    engine: Engine,
    batches: mpsc::Receiver<Batch>,
    go: mpsc::Sender<Go>,
    frames: mpsc::Receiver<TensorFrame>,
    outlets: Vec<Arc<Outlet>>,
}

impl Theatre {
    /// With sessions 0, 1, … whose sequences have the same numbers.
    fn open(sessions: u8) -> Self {
        let hub = Arc::new(Hub::default());
        let (coordinator, frames) = hub.observer();
        let outlet = |session: u8| {
            let endpoint = PeerEndpoint {
                peer: coordinator,
                tensor_addrs: Vec::new(),
            };
            let peers = peers_of(&hub, PeerId::random());
            let next = Next::Sample(SamplingParams::default());
            let table = Arc::new(SessionTable::new(1));
            let place = Place {
                session: SessionId([session; 16]),
                epoch: 1,
                at: 0,
            };
            Outlet::open(place, next, None, None, endpoint, peers, table)
        };
        let (batches, seen) = mpsc::channel(1);
        let (go, told) = mpsc::channel(1);
        let puppet = Puppet { batches, go: told };
        Self {
            engine: Engine::spawn(Box::new(puppet), Telemetry::new()).unwrap(),
            batches: seen,
            go,
            frames,
            outlets: (0..sessions).map(outlet).collect(),
        }
    }

    fn step(&self, seq: SeqId, step: u64, rows: usize) -> Result<(), &'static str> {
        self.engine.step(self.work(seq, step, rows))
    }

    fn work(&self, seq: SeqId, step: u64, rows: usize) -> StepWork {
        StepWork {
            seq,
            name: StepName {
                step,
                position: 0,
                rows: rows as u64,
                sample: rows == 1,
                until: 0,
            },
            input: StageInput::Tokens(vec![1; rows]),
            outlet: Arc::clone(&self.outlets[seq as usize]),
        }
    }

    /// The batch that the stage has begun with.
    async fn batch(&mut self) -> Batch {
        let batch = tokio::time::timeout(PATIENCE, self.batches.recv()).await;
        batch.expect("a batch comes").expect("the thread lives")
    }

    async fn go(&self, go: Go) {
        self.go.send(go).await.unwrap();
    }

    /// The next frames for the coordinator: session, step, and the code and message of a failure.
    async fn told(&mut self, count: usize) -> Vec<(u8, u64, String)> {
        let mut told = Vec::new();
        for _ in 0..count {
            let frame = tokio::time::timeout(PATIENCE, self.frames.recv()).await;
            let frame = frame.expect("a frame comes").expect("the hub is there");
            let session = frame.session().0[0];
            told.push(match frame {
                TensorFrame::Failed {
                    step,
                    code,
                    message,
                    ..
                } => (session, step, format!("{code}: {message}")),
                TensorFrame::Token { step, .. } | TensorFrame::Applied { step, .. } => {
                    (session, step, "done".to_owned())
                }
                other => panic!("{other:?}"),
            });
        }
        told.sort();
        told
    }
}

fn done(session: u8, step: u64) -> (u8, u64, String) {
    (session, step, "done".to_owned())
}

#[actix::test]
async fn a_long_prompt_delays_a_decode_row_by_no_more_than_the_step_that_is_under_way() {
    let mut theatre = Theatre::open(2);
    let chunks = 6;
    for chunk in 1..=chunks {
        theatre.step(0, chunk, PROMPT_ROWS).unwrap();
    }
    assert_eq!(theatre.batch().await, [(0, PROMPT_ROWS)]);
    for chunk in 1..chunks {
        // A token is wanted while a chunk is computed: it shares the very next step.
        theatre.step(1, chunk, 1).unwrap();
        theatre.go(Go::Answer).await;
        let mut batch = theatre.batch().await;
        batch.sort_unstable();
        assert_eq!(batch, [(0, PROMPT_ROWS), (1, 1)]);
    }
    theatre.go(Go::Answer).await;
    let mut expected: Vec<_> = (1..=chunks).map(|chunk| done(0, chunk)).collect();
    expected.extend((1..chunks).map(|step| done(1, step)));
    assert_eq!(theatre.told(expected.len()).await, expected);
}

#[actix::test]
async fn what_becomes_ready_during_a_step_is_computed_together_once_per_session() {
    let mut theatre = Theatre::open(4);
    theatre.step(0, 1, 1).unwrap();
    assert_eq!(theatre.batch().await, [(0, 1)]);
    for (seq, step, rows) in [(1, 1, 1), (2, 1, 1), (3, 1, 100), (2, 2, 1), (3, 2, 1)] {
        theatre.step(seq, step, rows).unwrap();
    }
    theatre.go(Go::Answer).await;
    assert_eq!(theatre.batch().await, [(1, 1), (2, 1), (3, 100)]);
    theatre.go(Go::Answer).await;
    assert_eq!(theatre.batch().await, [(2, 1), (3, 1)]);
    theatre.go(Go::Answer).await;
    let expected = [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1), (3, 2)];
    let expected = expected.map(|(session, step)| done(session, step));
    assert_eq!(theatre.told(6).await, expected);
}

#[actix::test]
async fn sessions_that_are_about_to_be_back_are_waited_for_so_that_they_stay_together() {
    let theatre = Theatre::open(4);
    let queue = Arc::new(Queue::new());
    let push = |seq, step| queue.step(theatre.work(seq, step, 1)).unwrap();
    let next = |patience| {
        let turn = queue.next(patience).expect("the queue goes on");
        let sequences = turn.batch.iter().map(|work| work.seq);
        sequences.collect::<Vec<_>>()
    };
    for seq in 0..4 {
        push(seq, 1);
    }
    assert_eq!(next(Duration::ZERO), [0, 1, 2, 3]);

    push(0, 2);
    let computing = std::thread::spawn({
        let queue = Arc::clone(&queue);
        move || queue.next(PATIENCE).map(|turn| turn.batch.len())
    });
    queue.close(1);
    push(2, 2);
    assert!(!computing.is_finished(), "3 is not back yet");
    push(3, 2);
    assert_eq!(computing.join().unwrap(), Some(3));

    push(0, 3);
    assert_eq!(next(Duration::ZERO), [0], "patience has an end");
    push(2, 3);
    assert_eq!(next(Duration::from_millis(1)), [2], "0 is not back");
}

#[actix::test]
async fn closing_drops_what_waits_for_the_session_and_nothing_else() {
    let mut theatre = Theatre::open(3);
    theatre.step(0, 1, 1).unwrap();
    assert_eq!(theatre.batch().await, [(0, 1)]);
    for seq in [1, 2] {
        theatre.step(seq, 1, PROMPT_ROWS).unwrap();
        theatre.step(seq, 2, 1).unwrap();
    }
    theatre.engine.close(1);
    for expected in [(2, PROMPT_ROWS), (2, 1)] {
        theatre.go(Go::Answer).await;
        assert_eq!(theatre.batch().await, [expected]);
    }
    theatre.go(Go::Answer).await;
    let expected = [done(0, 1), done(2, 1), done(2, 2)];
    assert_eq!(theatre.told(3).await, expected);
}

#[actix::test]
async fn a_sequence_is_opened_between_two_batches_however_much_waits() {
    let mut theatre = Theatre::open(1);
    for step in 1..=3 {
        theatre.step(0, step, PROMPT_ROWS).unwrap();
    }
    theatre.batch().await;
    let (opened, ()) = tokio::join!(theatre.engine.open(7, 10), theatre.go(Go::Answer));
    assert_eq!(opened, Ok(()));
    assert_eq!(theatre.batch().await, [(0, PROMPT_ROWS)]);
}

#[actix::test]
async fn a_full_queue_refuses_steps() {
    let mut theatre = Theatre::open(1);
    theatre.step(0, 0, 1).unwrap();
    theatre.batch().await;
    let taken = (1..1000).take_while(|step| theatre.step(0, *step, 1).is_ok());
    assert_eq!(taken.count(), 256);
}

#[actix::test]
async fn a_panic_in_a_kernel_is_told_to_every_coordinator_and_ends_only_that_stage() {
    let mut theatre = Theatre::open(3);
    theatre.step(0, 1, 1).unwrap();
    theatre.batch().await;
    for (seq, step) in [(1, 1), (2, 1), (2, 2)] {
        theatre.step(seq, step, 1).unwrap();
    }
    theatre.go(Go::Answer).await;
    assert_eq!(theatre.batch().await, [(1, 1), (2, 1)]);
    theatre.go(Go::Panic).await;
    let panicked = format!("{PANICKED}: the stage panicked; its log says more");
    let expected = [
        done(0, 1),
        (1, 1, panicked.clone()),
        (2, 1, panicked),
        (
            2,
            2,
            format!("{PANICKED}: the stage failed in another step"),
        ),
    ];
    assert_eq!(theatre.told(4).await, expected);
    assert!(theatre.engine.is_dead());
    assert_eq!(theatre.step(0, 2, 1), Err(DEAD));
    assert_eq!(theatre.engine.open(9, 10).await, Err(DEAD.to_owned()));
}
