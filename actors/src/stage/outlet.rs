//! Where the results of a session's steps go: hidden rows to the next stage, tokens and failures
//! to the coordinator. The last few results are kept, so that a repeated step is answered again
//! without being computed again. Hidden rows are kept besides, where there is memory, to be sent
//! again to a next stage that is built anew.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use accel_inference::{SamplingParams, StageError, StageOutput};
use accel_p2p::PeerId;
use accel_p2p::wire::{PeerEndpoint, SessionId, SignedClaim, StepInput, TensorFrame};
use tokio::sync::mpsc;

use super::fence::MOST_ROWS;
use super::outputs::Outputs;
use super::scribe::{NO_ACCOUNT, Scribe};
use super::server::COPY_FAILED;
use crate::peers::Peers;
use crate::session::table::SessionTable;

/// Results that are kept for repeats: as many as may be under way at once.
const KEPT: usize = 4;
/// Results that may wait to be sent.
const QUEUE: usize = 16;

/// The code of failures because the stage behind cannot be reached.
pub(crate) const NEXT_STAGE_LOST: &str = "next_stage_lost";

/// Which step a result belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepName {
    pub(super) step: u64,
    pub(super) position: u64,
    pub(super) rows: u64,
    pub(super) sample: bool,
    /// Number of the last stage that is to apply it.
    pub(super) until: u32,
}

/// Which stage of which session's plan an outlet belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) session: SessionId,
    pub(super) epoch: u64,
    /// Number of the stage in the route.
    pub(super) at: u32,
}

/// What follows a stage.
pub(super) enum Next {
    /// Another stage.
    Stage(PeerEndpoint),
    /// Nothing: this one samples.
    Sample(SamplingParams),
}

/// See the module.
pub(super) struct Outlet {
    place: Place,
    next: Next,
    outputs: Option<Arc<Outputs>>,
    scribe: Option<Scribe>,
    queue: mpsc::Sender<TensorFrame>,
    kept: Mutex<VecDeque<(u64, TensorFrame)>>,
}

impl Outlet {
    /// Opens the outlet and starts the task that sends what comes out of it; the task ends when
    /// the outlet is dropped.
    pub(super) fn open(
        place: Place,
        next: Next,
        outputs: Option<Arc<Outputs>>,
        scribe: Option<Scribe>,
        coordinator: PeerEndpoint,
        peers: Arc<dyn Peers>,
        sessions: Arc<SessionTable>,
    ) -> Arc<Self> {
        let (queue, frames) = mpsc::channel(QUEUE);
        let onward = match &next {
            Next::Stage(endpoint) => Some(endpoint.clone()),
            Next::Sample(_) => None,
        };
        let mailer = Mailer {
            place,
            onward,
            coordinator,
            peers,
            sessions,
        };
        actix::spawn(mailer.run(frames));
        Arc::new(Self {
            place,
            next,
            outputs,
            scribe,
            queue,
            kept: Mutex::default(),
        })
    }

    /// Passes on the result of a step.
    pub(super) fn deliver(&self, name: StepName, output: Result<StageOutput, StageError>) {
        let frame = match output {
            Ok(output) => self.claimed(name, self.frame(name, output)),
            Err(error) => self.failed(name.step, "step_failed", &error.to_string()),
        };
        self.answer(name.step, frame);
    }

    /// A step is about to be computed: of a witnessed session, what it brings goes to the account,
    /// unless it is not what the stages before say.
    pub(super) fn given(
        &self,
        name: StepName,
        input: &StepInput,
        claims: Vec<SignedClaim>,
    ) -> Result<(), &'static str> {
        match &self.scribe {
            Some(scribe) => scribe.given(name, input, claims),
            None => Ok(()),
        }
    }

    /// A result that a token depends on, with what the stages up to here say about it.
    fn claimed(&self, name: StepName, frame: TensorFrame) -> TensorFrame {
        let Some(scribe) = &self.scribe else {
            return frame;
        };
        let Some(claims) = scribe.claims(name, &frame) else {
            return frame;
        };
        match claims {
            Ok(claims) => TensorFrame::Claimed {
                frame: Box::new(frame),
                claims,
            },
            Err(reason) => self.failed(name.step, NO_ACCOUNT, reason),
        }
    }

    /// Tells the coordinator what became of rows for the KV cache.
    pub(super) fn imported(&self, name: StepName, done: Result<(), String>) {
        let frame = match done {
            Ok(()) => self.applied(name),
            Err(reason) => self.failed(name.step, COPY_FAILED, &reason),
        };
        self.answer(name.step, frame);
    }

    fn answer(&self, step: u64, frame: TensorFrame) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((step, frame.clone()));
        drop(kept);
        self.mail(frame);
    }

    /// Answers a repeated step from what is kept. One that is still being computed is answered
    /// in its time.
    pub(super) fn repeat(&self, step: u64) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = kept.front().map_or(0, |(step, _)| *step);
        let found = kept.iter().find(|(known, _)| *known == step);
        let answer = match found {
            Some((_, frame)) => Some(frame.clone()),
            None if step < oldest => {
                Some(self.failed(step, "step_forgotten", "the step is too old to be repeated"))
            }
            None => None,
        };
        drop(kept);
        if let Some(frame) = answer {
            self.mail(frame);
        }
    }

    /// Sends outputs that were kept to the next stage, as a step for it.
    pub(super) fn replay(&self, name: StepName) {
        let outputs = self.outputs.as_ref().filter(|_| name.rows <= MOST_ROWS);
        let rows = outputs.and_then(|outputs| outputs.read(name.position, name.rows));
        match (rows, &self.next) {
            (Some(data), Next::Stage(_)) => {
                let input = StepInput::Hidden {
                    rows: name.rows as u32,
                    data: data.into(),
                };
                self.mail(self.step(name, input));
            }
            _ => self.refuse(
                name.step,
                "outputs_missing",
                "the outputs asked for are not here",
            ),
        }
    }

    /// Tells the coordinator that a step cannot be carried out.
    pub(super) fn refuse(&self, step: u64, code: &str, message: &str) {
        self.mail(self.failed(step, code, message));
    }

    /// Whether tokens come out.
    pub(super) fn samples(&self) -> bool {
        matches!(self.next, Next::Sample(_))
    }

    /// Whether results go to this peer as the next stage.
    pub(super) fn leads_to(&self, peer: PeerId) -> bool {
        matches!(&self.next, Next::Stage(endpoint) if endpoint.peer == peer)
    }

    /// Passes the failure of the next stage on to the coordinator.
    pub(super) fn pass_on(&self, failure: TensorFrame) {
        if matches!(failure, TensorFrame::Failed { .. }) {
            self.mail(failure);
        }
    }

    fn failed(&self, step: u64, code: &str, message: &str) -> TensorFrame {
        TensorFrame::failed(self.place.session, self.place.epoch, step, code, message)
    }

    fn mail(&self, frame: TensorFrame) {
        if self.queue.try_send(frame).is_err() {
            // The coordinator sends few steps at a time; one that sends more loses answers.
            tracing::warn!(session = %self.place.session, "too many results wait; one is dropped");
        }
    }

    /// The token at the position behind the step's last row.
    fn draw(&self, name: StepName, logits: &[f32], params: &SamplingParams) -> TensorFrame {
        let position = name.position + name.rows;
        match accel_inference::sample(logits, params, position) {
            Ok(drawn) => TensorFrame::Token {
                session: self.place.session,
                epoch: self.place.epoch,
                step: name.step,
                position,
                token: drawn.token,
                logprob: drawn.logprob,
                top: drawn.top,
            },
            Err(error) => self.failed(name.step, "sampling_failed", &error.to_string()),
        }
    }

    fn step(&self, name: StepName, input: StepInput) -> TensorFrame {
        TensorFrame::Step {
            session: self.place.session,
            epoch: self.place.epoch,
            step: name.step,
            position: name.position,
            sample: name.sample,
            until: name.until,
            input,
        }
    }

    fn applied(&self, name: StepName) -> TensorFrame {
        TensorFrame::Applied {
            session: self.place.session,
            epoch: self.place.epoch,
            step: name.step,
            length: name.position + name.rows,
        }
    }

    fn frame(&self, name: StepName, output: StageOutput) -> TensorFrame {
        match (output, &self.next) {
            (StageOutput::Hidden { rows, data }, Next::Stage(_)) => {
                let input = StepInput::hidden(rows as u32, &data);
                self.keep(name.position, &input);
                match name.until > self.place.at {
                    true => self.step(name, input),
                    false => self.applied(name),
                }
            }
            (StageOutput::Nothing, Next::Sample(_)) => self.applied(name),
            (StageOutput::Logits { data, .. }, Next::Sample(params)) => {
                self.draw(name, &data, params)
            }
            _ => self.failed(
                name.step,
                "wrong_stage",
                "the layers of this stage do not fit its route",
            ),
        }
    }

    fn keep(&self, position: u64, input: &StepInput) {
        let StepInput::Hidden { rows, data } = input else {
            return;
        };
        if let Some(outputs) = &self.outputs {
            outputs.push(position, data);
        }
        if let Some(scribe) = &self.scribe {
            scribe.made(position, *rows, data);
        }
    }
}

/// The step that a frame for another stage is.
fn step_of(frame: &TensorFrame) -> Option<u64> {
    match frame {
        TensorFrame::Step { step, .. } => Some(*step),
        TensorFrame::Claimed { frame, .. } => step_of(frame),
        _ => None,
    }
}

/// Sends the frames of one outlet, in order.
struct Mailer {
    place: Place,
    onward: Option<PeerEndpoint>,
    coordinator: PeerEndpoint,
    peers: Arc<dyn Peers>,
    sessions: Arc<SessionTable>,
}

impl Mailer {
    async fn run(self, mut frames: mpsc::Receiver<TensorFrame>) {
        while let Some(frame) = frames.recv().await {
            match (step_of(&frame), &self.onward) {
                (Some(step), Some(next)) => {
                    if let Err(failure) = self.peers.send(next, frame).await {
                        let (code, message) = (NEXT_STAGE_LOST, failure.message);
                        let Place { session, epoch, .. } = self.place;
                        let told = TensorFrame::failed(session, epoch, step, code, &message);
                        self.to_coordinator(told).await;
                    }
                }
                _ => self.to_coordinator(frame).await,
            }
        }
    }

    async fn to_coordinator(&self, frame: TensorFrame) {
        let own = self.peers.endpoint().peer;
        if self.coordinator.peer == own {
            return self.sessions.deliver(own, frame).await;
        }
        if let Err(failure) = self.peers.send(&self.coordinator, frame).await {
            tracing::warn!(session = %self.place.session, %failure, "the coordinator cannot be told");
        }
    }
}
