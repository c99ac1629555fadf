//! One compute thread per loaded stage: it owns the stage, takes batches from a bounded queue and
//! hands results to the sessions' outlets. A panic in a kernel ends the thread, not the node.

mod pace;
mod toil;

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_inference::{Logits, SeqId, Stage, StageInput, StepRequest};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::outlet::{Outlet, StepName};
use super::queue::{DEAD, Order, Queue, Turn};
use crate::telemetry::Telemetry;
use pace::Pace;
use toil::Toil;

/// The code of failures by a panic in the engine.
const PANICKED: &str = "stage_panicked";

/// For sessions that are about to be back, a stage lingers this share of the time that its last
/// step took: little beside a second pass over the weights.
const LINGERING_SHARE: u32 = 8;
/// The longest that it lingers.
const LINGERING: Duration = Duration::from_millis(5);

/// Keys and values for a cache, as another stage gave them.
pub(super) struct ImportWork {
    pub(super) seq: SeqId,
    pub(super) name: StepName,
    pub(super) data: Bytes,
    pub(super) outlet: Arc<Outlet>,
}

/// A step to be computed.
pub(super) struct StepWork {
    pub(super) seq: SeqId,
    pub(super) name: StepName,
    pub(super) input: StageInput,
    pub(super) outlet: Arc<Outlet>,
}

impl StepWork {
    pub(super) fn rows(&self) -> usize {
        match &self.input {
            StageInput::Tokens(tokens) => tokens.len(),
            StageInput::Hidden { rows, .. } => *rows,
        }
    }

    /// Whether the session's next step comes as soon as the coordinator has this one's token: no
    /// other stage is in between.
    pub(super) fn will_be_back(&self) -> bool {
        let is_whole = matches!(self.input, StageInput::Tokens(_)) && self.outlet.samples();
        is_whole && self.name.sample
    }

    /// What is computed, and who is told.
    fn split(self) -> (StepRequest, Addressee) {
        let StepWork {
            seq,
            name,
            input,
            outlet,
        } = self;
        let request = StepRequest {
            seq,
            position: usize::try_from(name.position).unwrap_or(usize::MAX),
            input,
            want_logits: if name.sample {
                Logits::Last
            } else {
                Logits::None
            },
        };
        (request, Addressee { name, outlet })
    }
}

/// Who is told what became of a step.
struct Addressee {
    name: StepName,
    outlet: Arc<Outlet>,
}

/// A loaded stage, ready to compute.
pub(crate) struct Engine {
    queue: Arc<Queue>,
    weights_bytes: u64,
    numerics: String,
    pace: Arc<Pace>,
    toil: Arc<Toil>,
}

impl Engine {
    /// Gives the stage a thread of its own, which ends when the engine is dropped.
    pub(super) fn spawn(stage: Box<dyn Stage>, telemetry: Telemetry) -> std::io::Result<Self> {
        let (queue, pace) = (Arc::new(Queue::new()), Arc::new(Pace::default()));
        let toil = Arc::new(Toil::default());
        let engine = Self {
            queue: Arc::clone(&queue),
            weights_bytes: stage.weights_bytes(),
            numerics: stage.numerics().to_owned(),
            pace: Arc::clone(&pace),
            toil: Arc::clone(&toil),
        };
        std::thread::Builder::new()
            .name(format!("stage {}", stage.range()))
            .spawn(move || compute(stage, &Hold(queue), (&pace, &toil), &telemetry))?;
        Ok(engine)
    }

    pub(super) fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    pub(super) fn numerics(&self) -> &str {
        &self.numerics
    }

    /// Nanoseconds for a row of a prompt; 0 while that was not measured.
    pub(super) fn prefill_ns(&self) -> u64 {
        self.pace.row_ns()
    }

    /// How long it takes for a token now, in percent of what it takes at best.
    pub(super) fn toil(&self) -> u32 {
        self.toil.percent(Instant::now())
    }

    /// Whether its thread ended, which only a panic does while the engine is there.
    pub(super) fn is_dead(&self) -> bool {
        self.queue.has_ended()
    }

    /// Reserves a KV cache.
    pub(super) async fn open(&self, seq: SeqId, max_tokens: usize) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.queue.open(seq, max_tokens, reply)?;
        match answer.await {
            Ok(opened) => opened.map_err(|error| error.to_string()),
            Err(_) => Err(DEAD.to_owned()),
        }
    }

    /// Drops the steps that wait for a KV cache, and says how many positions it holds once what is
    /// being computed has come to its end.
    pub(super) async fn hold(&self, seq: SeqId) -> Result<usize, String> {
        let (reply, answer) = oneshot::channel();
        self.queue.hold(seq, reply)?;
        match answer.await {
            Ok(Some(length)) => Ok(length),
            Ok(None) => Err("the KV cache is not there any more".to_owned()),
            Err(_) => Err(DEAD.to_owned()),
        }
    }

    /// Keys and values of some positions, for another stage.
    pub(super) async fn export(
        &self,
        seq: SeqId,
        positions: Range<usize>,
    ) -> Result<Vec<u8>, String> {
        let (reply, answer) = oneshot::channel();
        self.queue.export(seq, positions, reply)?;
        match answer.await {
            Ok(rows) => rows.map_err(|error| error.to_string()),
            Err(_) => Err(DEAD.to_owned()),
        }
    }

    /// Queues rows that go into a KV cache.
    pub(super) fn import(&self, work: ImportWork) -> Result<(), &'static str> {
        self.queue.import(work)
    }

    /// Forgets the positions of a KV cache behind `length`, before any step that follows.
    pub(super) fn cut(
        &self,
        seq: SeqId,
        length: usize,
        max_tokens: usize,
    ) -> Result<(), &'static str> {
        self.queue.cut(seq, length, max_tokens)
    }

    /// Queues a step; refused when the queue is full or the thread is dead.
    pub(super) fn step(&self, work: StepWork) -> Result<(), &'static str> {
        self.queue.step(work)
    }

    /// Frees a KV cache and drops the steps that wait for it.
    pub(super) fn close(&self, seq: SeqId) {
        self.queue.close(seq);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Whoever could be told holds the engine.
        self.queue.end();
    }
}

/// The thread's hold on its queue. After a panic nothing that the stage holds can be trusted:
/// what waits is refused, and the next session loads it anew.
struct Hold(Arc<Queue>);

impl Drop for Hold {
    fn drop(&mut self) {
        for StepWork { name, outlet, .. } in self.0.end() {
            outlet.refuse(name.step, PANICKED, "the stage failed in another step");
        }
    }
}

fn compute(
    mut stage: Box<dyn Stage>,
    hold: &Hold,
    (pace, toil): (&Pace, &Toil),
    telemetry: &Telemetry,
) {
    let mut patience = Duration::ZERO;
    while let Some(Turn { orders, batch }) = hold.0.next(patience) {
        for order in orders {
            carry_out(stage.as_mut(), order);
        }
        if batch.is_empty() {
            continue;
        }
        let rows = batch.iter().map(StepWork::rows).sum();
        let Ok(took) = run(stage.as_mut(), batch, telemetry) else {
            return;
        };
        pace.saw(rows, took);
        toil.saw(rows, took, Instant::now());
        patience = LINGERING.min(took / LINGERING_SHARE);
    }
}

fn carry_out(stage: &mut dyn Stage, order: Order) {
    match order {
        Order::Open {
            seq,
            max_tokens,
            reply,
        } => {
            let opened = stage.open(seq, max_tokens);
            if reply.send(opened).is_err() {
                stage.close(seq);
            }
        }
        Order::Hold { seq, reply } => {
            // Nobody may want to know any more.
            let _ = reply.send(stage.len(seq));
        }
        Order::Cut {
            seq,
            length,
            max_tokens,
        } => cut(stage, seq, length, max_tokens),
        Order::Export {
            seq,
            positions,
            reply,
        } => {
            // Nobody may want them any more.
            let _ = reply.send(stage.export(seq, positions));
        }
        Order::Import(work) => {
            let done = import(stage, &work);
            work.outlet.imported(work.name, done);
        }
        Order::Close(seq) => stage.close(seq),
    }
}

/// As many rows as were said, or none.
fn import(stage: &mut dyn Stage, work: &ImportWork) -> Result<(), String> {
    let position = usize::try_from(work.name.position).unwrap_or(usize::MAX);
    let done = stage.import(work.seq, position, &work.data);
    done.map_err(|error| error.to_string())?;
    let length = work.name.position + work.name.rows;
    if stage.len(work.seq).map(|len| len as u64) == Some(length) {
        return Ok(());
    }
    let undone = stage.truncate(work.seq, position);
    undone.map_err(|error| error.to_string())?;
    Err("the payload has not as many rows as it says".to_owned())
}

/// A cache that cannot be cut is closed: its next step fails, and the session is placed again.
fn cut(stage: &mut dyn Stage, seq: SeqId, length: usize, max_tokens: usize) {
    // A cache that gave up what lies behind a window can be emptied all the same.
    let done = match length {
        0 => {
            stage.close(seq);
            stage.open(seq, max_tokens)
        }
        length => stage.truncate(seq, length),
    };
    if let Err(error) = done {
        tracing::warn!(%error, "a KV cache cannot be gone on with");
        stage.close(seq);
    }
}

/// The stage panicked; the sessions of the batch were told.
struct Panicked;

/// Computes a batch and tells its sessions; says how long computing took.
fn run(
    stage: &mut dyn Stage,
    batch: Vec<StepWork>,
    telemetry: &Telemetry,
) -> Result<Duration, Panicked> {
    let rows = batch.iter().map(StepWork::rows).sum();
    let (requests, untold): (Vec<_>, VecDeque<_>) = batch.into_iter().map(StepWork::split).unzip();
    let (sessions, mut untold) = (requests.len(), untold);
    let started = Instant::now();
    let step = AssertUnwindSafe(|| {
        let outcomes = stage.run(requests);
        let took = started.elapsed();
        telemetry.stages().batch_computed(rows, sessions, took);
        for outcome in outcomes {
            if let Some(Addressee { name, outlet }) = untold.front() {
                outlet.deliver(*name, outcome);
            }
            untold.pop_front();
        }
        took
    });
    let computed = std::panic::catch_unwind(step);
    if let (Ok(took), true) = (computed, untold.is_empty()) {
        return Ok(took);
    }
    for Addressee { name, outlet } in untold {
        outlet.refuse(name.step, PANICKED, "the stage panicked; its log says more");
    }
    Err(Panicked)
}

#[cfg(test)]
mod tests;
