//! The actor's part in steps: the frames for stages, and the connections that they take.

use std::time::Instant;

use accel_p2p::wire::{ControlRequest, CopyOrder, StepInput, TensorFrame};
use actix::{AsyncContext, Context};

use super::actor::SessionActor;
use super::event::{Command, RouteStage};
use super::pump;

impl SessionActor {
    /// Sends what some stage is to compute or to give.
    pub(super) fn send_step(&mut self, command: Command, context: &mut Context<Self>) {
        if let Some((epoch, stage, frame)) = self.frame(command) {
            self.forward(epoch, stage, frame, context);
        }
    }

    /// The frame of a step, and who gets it under which epoch.
    fn frame(&self, command: Command) -> Option<(u64, usize, TensorFrame)> {
        let session = self.spec.id;
        match command {
            Command::Forward {
                epoch,
                step,
                position,
                sample,
                until,
                tokens,
            } => {
                let frame = TensorFrame::Step {
                    session,
                    epoch,
                    step,
                    position,
                    sample,
                    until: until as u32,
                    input: StepInput::Tokens(tokens),
                };
                Some((epoch, 0, frame))
            }
            Command::Replay {
                epoch,
                step,
                stage,
                position,
                rows,
                until,
            } => {
                let frame = TensorFrame::Replay {
                    session,
                    epoch,
                    step,
                    position,
                    rows,
                    until: until as u32,
                };
                Some((epoch, stage, frame))
            }
            Command::Copy {
                epoch,
                step,
                donor,
                stage,
                position,
                rows,
            } => {
                let order = CopyOrder {
                    session,
                    epoch,
                    step,
                    position,
                    rows,
                    to: self.endpoint(self.stage(epoch, stage)?.peer),
                };
                Some((epoch, donor, TensorFrame::Copy(order)))
            }
            _ => None,
        }
    }

    /// Tells a stage that it is needed no more.
    pub(super) fn end(&self, stage: &RouteStage, request: ControlRequest) {
        self.deps.link.end(stage.peer, request);
    }

    /// Sends a step to a stage. The first of an epoch shows that its stages are ready.
    fn forward(
        &mut self,
        epoch: u64,
        stage: usize,
        frame: TensorFrame,
        context: &mut Context<Self>,
    ) {
        if self.begun < epoch && epoch == self.machine.epoch() {
            self.begun = epoch;
            let now = Instant::now();
            if self.placed.is_none() {
                self.placed = Some(now);
                self.chronicle.moved(now);
            }
            self.chronicle.placed(now);
            self.warm_stand_ins();
        }
        let name = (epoch, stage);
        if !self.ways.contains_key(&name) {
            let Some(to) = self.machine.party(epoch, stage) else {
                return;
            };
            let endpoint = self.endpoint(to.peer);
            let link = self.deps.link.clone();
            let way = pump::to_stage(link, endpoint, epoch, context.address());
            self.ways.insert(name, way);
        }
        // Whoever takes no more steps tells why by itself.
        if !self.ways.get(&name).is_some_and(|way| way.send(frame)) {
            tracing::debug!(session = %self.spec.id, stage, "a step was not sent");
        }
    }
}
