//! One compute thread per loaded stage: it owns the stage, takes work from a bounded queue and
//! hands results to the session's outlet. A panic in a kernel ends the thread, not the node.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use accel_inference::{Logits, SeqId, Stage, StageError, StageInput};
use tokio::sync::{mpsc, oneshot};

use super::outlet::{Outlet, StepName};
use crate::telemetry::Telemetry;

/// Steps that may wait for a stage, over all sessions.
const QUEUE: usize = 256;
/// The code of failures by a panic in the engine.
const PANICKED: &str = "stage_panicked";

/// A step to be computed.
pub(super) struct StepWork {
    pub(super) seq: SeqId,
    pub(super) name: StepName,
    pub(super) input: StageInput,
    pub(super) outlet: Arc<Outlet>,
}

pub(super) enum Work {
    Open {
        seq: SeqId,
        max_tokens: usize,
        reply: oneshot::Sender<Result<(), StageError>>,
    },
    Step(Box<StepWork>),
    Close(SeqId),
}

/// A loaded stage, ready to compute.
pub(crate) struct Engine {
    queue: mpsc::Sender<Work>,
    weights_bytes: u64,
    numerics: String,
}

impl Engine {
    /// Gives the stage a thread of its own, which ends when the engine is dropped.
    pub(super) fn spawn(stage: Box<dyn Stage>, telemetry: Telemetry) -> std::io::Result<Self> {
        let (queue, work) = mpsc::channel(QUEUE);
        let engine = Self {
            queue,
            weights_bytes: stage.weights_bytes(),
            numerics: stage.numerics().to_owned(),
        };
        std::thread::Builder::new()
            .name(format!("stage {}", stage.range()))
            .spawn(move || compute(stage, work, &telemetry))?;
        Ok(engine)
    }

    pub(super) fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    pub(super) fn numerics(&self) -> &str {
        &self.numerics
    }

    /// Whether its thread ended, which only a panic does while the engine is there.
    pub(super) fn is_dead(&self) -> bool {
        self.queue.is_closed()
    }

    /// Reserves a KV cache.
    pub(super) async fn open(&self, seq: SeqId, max_tokens: usize) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let work = Work::Open {
            seq,
            max_tokens,
            reply,
        };
        let queued = self.queue.send(work).await;
        queued.map_err(|_| "the stage's thread has died".to_owned())?;
        match answer.await {
            Ok(opened) => opened.map_err(|error| error.to_string()),
            Err(_) => Err("the stage's thread has died".to_owned()),
        }
    }

    /// Queues a step; refused when the queue is full or the thread is dead.
    pub(super) fn step(&self, work: StepWork) -> Result<(), &'static str> {
        let queued = self.queue.try_send(Work::Step(Box::new(work)));
        queued.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "the stage has too many steps waiting",
            mpsc::error::TrySendError::Closed(_) => "the stage's thread has died",
        })
    }

    /// Frees a KV cache. When the queue is full, it waits for its turn in the background.
    pub(super) fn close(&self, seq: SeqId) {
        if let Err(mpsc::error::TrySendError::Full(work)) = self.queue.try_send(Work::Close(seq)) {
            let queue = self.queue.clone();
            actix::spawn(async move {
                // A thread that is gone has freed everything.
                let _ = queue.send(work).await;
            });
        }
    }
}

fn compute(mut stage: Box<dyn Stage>, mut work: mpsc::Receiver<Work>, telemetry: &Telemetry) {
    while let Some(next) = work.blocking_recv() {
        match next {
            Work::Open {
                seq,
                max_tokens,
                reply,
            } => {
                let opened = stage.open(seq, max_tokens);
                if reply.send(opened).is_err() {
                    stage.close(seq);
                }
            }
            Work::Step(step) => {
                if run_step(stage.as_mut(), *step, telemetry).is_err() {
                    return refuse_all(work);
                }
            }
            Work::Close(seq) => stage.close(seq),
        }
    }
}

/// After a panic nothing that the stage holds can be trusted: what waits is refused, and the next
/// session loads it anew.
fn refuse_all(mut work: mpsc::Receiver<Work>) {
    work.close();
    while let Ok(next) = work.try_recv() {
        if let Work::Step(step) = next {
            step.outlet
                .refuse(step.name.step, PANICKED, "the stage failed in another step");
        }
    }
}

/// The stage panicked; its caller was told.
struct Panicked;

fn run_step(stage: &mut dyn Stage, work: StepWork, telemetry: &Telemetry) -> Result<(), Panicked> {
    let StepWork {
        seq,
        name,
        input,
        outlet,
    } = work;
    let position = usize::try_from(name.position).unwrap_or(usize::MAX);
    let wanted = if name.sample {
        Logits::Last
    } else {
        Logits::None
    };
    let started = Instant::now();
    let step = AssertUnwindSafe(|| stage.step(seq, position, input, wanted));
    let Ok(output) = std::panic::catch_unwind(step) else {
        outlet.refuse(name.step, PANICKED, "the stage panicked; its log says more");
        return Err(Panicked);
    };
    telemetry.step_computed(name.rows, started.elapsed());
    outlet.deliver(name, output);
    Ok(())
}

#[cfg(test)]
mod tests {
    use accel_inference::{LayerRange, SamplingParams, StageOutput, StepRequest};
    use accel_p2p::PeerId;
    use accel_p2p::wire::{PeerEndpoint, SessionId, TensorFrame};

    use super::*;
    use crate::session::table::SessionTable;
    use crate::stage::outlet::Next;
    use crate::testing::{Hub, peers_of};

    /// A stage with a broken kernel.
    struct Broken;

    impl Stage for Broken {
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

        fn run(&mut self, _: Vec<StepRequest>) -> Vec<Result<StageOutput, StageError>> {
            panic!("on purpose");
        }

        fn truncate(&mut self, _: SeqId, _: usize) -> Result<(), StageError> {
            Ok(())
        }

        fn len(&self, _: SeqId) -> Option<usize> {
            None
        }

        fn close(&mut self, _: SeqId) {}
    }

    fn work(outlet: &Arc<Outlet>, step: u64) -> StepWork {
        StepWork {
            seq: 1,
            name: StepName {
                step,
                position: 0,
                rows: 1,
                sample: true,
            },
            input: StageInput::Tokens(vec![1]),
            outlet: Arc::clone(outlet),
        }
    }

    #[actix::test]
    async fn a_panic_in_a_kernel_is_told_to_the_coordinator_and_ends_only_that_stage() {
        let hub = Arc::new(Hub::default());
        let (coordinator, mut frames) = hub.observer();
        let endpoint = PeerEndpoint {
            peer: coordinator,
            tensor_addrs: Vec::new(),
        };
        let peers = peers_of(&hub, PeerId::random());
        let next = Next::Sample(SamplingParams::default());
        let table = Arc::new(SessionTable::new(1));
        let outlet = Outlet::open(SessionId([1; 16]), 1, next, endpoint, peers, table);
        let engine = Engine::spawn(Box::new(Broken), Telemetry::new()).unwrap();

        engine.step(work(&outlet, 1)).unwrap();
        let frame = frames.recv().await.unwrap();
        assert!(
            matches!(&frame, TensorFrame::Failed { code, .. } if code == PANICKED),
            "{frame:?}"
        );
        while !engine.is_dead() {
            tokio::task::yield_now().await;
        }
        assert!(engine.step(work(&outlet, 2)).is_err());
    }
}
