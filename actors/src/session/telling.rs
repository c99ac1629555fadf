//! The actor's part in telling: what goes to the journal and to the client, and how it ends.

use std::time::Instant;

use accel_inference::Tokenizer;
use actix::{ActorContext, Context};

use super::actor::SessionActor;
use super::event::{Drawn, Outcome};
use super::pump::JournalItem;
use super::record::outcome_record;
use super::show::error_view;
use crate::error::Failure;
use crate::request::{GenEvent, TopToken};
use crate::views::ReplicaView;

impl SessionActor {
    pub(super) fn journal(&self, item: JournalItem) {
        if self.journal.try_send(item).is_err() {
            tracing::error!(session = %self.spec.id, "the journal's queue is full");
        }
    }

    pub(super) fn emit(&mut self, index: u64, text: String, drawn: Drawn) {
        let tokenizer = &self.spec.tokenizer;
        let top = drawn.top.iter().map(|(token, logprob)| TopToken {
            token: *token,
            text: tokenizer.decode(&[*token]),
            bytes: bytes_of(tokenizer, *token),
            logprob: *logprob,
        });
        let top = top.collect();
        let Drawn { token, logprob, .. } = drawn;
        if index >= self.machine.tokens_before() {
            let first = || (Instant::now(), index + 1);
            self.first_token.get_or_insert_with(first);
        }
        if !self.is_beside() {
            self.deps.telemetry.token();
        }
        let bytes = bytes_of(tokenizer, token);
        self.tell(GenEvent::Token {
            index,
            token,
            text,
            bytes,
            logprob,
            top,
        });
    }

    fn tell(&self, event: GenEvent) {
        // The machine lets fewer tokens be unread than the queue holds.
        if self.client.try_send(event).is_err() {
            tracing::debug!(session = %self.spec.id, "the client is gone");
        }
    }

    pub(super) fn close(&mut self, outcome: Outcome, context: &mut Context<Self>) {
        let (state, error) = match &outcome {
            Outcome::Done {
                finish,
                completion_tokens,
                text_tail,
            } => {
                self.tell(GenEvent::Done {
                    finish: *finish,
                    completion_tokens: *completion_tokens,
                    text_tail: text_tail.clone(),
                });
                ("done", None)
            }
            Outcome::Failed(failure) => {
                tracing::warn!(session = %self.spec.id, code = failure.code, %failure, "failed");
                self.tell(failed(failure, Vec::new()));
                ("failed", Some(error_view(failure)))
            }
            Outcome::Cancelled => {
                let message = "the session was cancelled";
                let hint = "send the request again, to another node if this one is stopping";
                let failure = Failure::unavailable("cancelled", message, hint);
                self.tell(failed(&failure, Vec::new()));
                ("cancelled", None)
            }
            Outcome::Suspended(failure) => {
                tracing::info!(session = %self.spec.id, code = failure.code, "suspended");
                self.tell(failed(failure, self.kept_by()));
                ("suspended", None)
            }
            Outcome::HandedOver(failure) => {
                tracing::info!(session = %self.spec.id, "handed over");
                self.tell(failed(failure, self.kept_by()));
                self.journal(JournalItem::Keep(self.spec.opening.to_bytes()));
                ("moved", Some(error_view(failure)))
            }
            Outcome::Moved(failure) => {
                tracing::warn!(session = %self.spec.id, %failure, "another coordinator goes on");
                self.tell(failed(failure, self.kept_by()));
                ("moved", Some(error_view(failure)))
            }
        };
        if let Some(record) = outcome_record(&outcome).filter(|_| !self.spec.is_over) {
            self.replicator.finish(&record);
            self.journal(JournalItem::Close(record));
        }
        self.show();
        let is_over = self.spec.is_over;
        self.deps.table.update(self.spec.id, |view| {
            // Of one that was over before, it is shown already how it ended.
            if !is_over || view.state == "placing" {
                state.clone_into(&mut view.state);
                view.error = error;
            }
        });
        if !self.spec.is_over && !self.is_beside() {
            self.deps.telemetry.session_ended(state);
        }
        if let Some((bench, lane)) = &self.spec.bench {
            bench.closed(self.spec.id, *lane, &outcome);
        }
        self.deps.table.detach(self.spec.id);
        context.stop();
    }
}

fn bytes_of(tokenizer: &Tokenizer, token: u32) -> Vec<u8> {
    tokenizer.token_bytes(token).unwrap_or_default().to_vec()
}

fn failed(failure: &Failure, replicas: Vec<ReplicaView>) -> GenEvent {
    GenEvent::Failed {
        kind: failure.kind,
        code: failure.code.clone(),
        message: failure.message.clone(),
        hint: failure.hint.clone(),
        replicas,
    }
}
