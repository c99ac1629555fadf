//! The router: takes requests on. It bounds how many sessions run and how many requests wait,
//! prepares what a session needs (model, prompt, placement) in tasks of its own, and starts the
//! session's actor. It ends with its node; what it has started goes on without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use accel_p2p::wire::SessionId;
use actix::{Actor, Context, Handler, Message, ResponseFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::config::Limits;
use crate::error::GenerateError;
use crate::models::{Card, Models};
use crate::placement::Wanted;
use crate::prompt;
use crate::request::{GenEvent, GenerateRequest, Generation};
use crate::session::actor::{SessionActor, SessionDeps, SessionSpec};
use crate::session::machine::{Machine, Opening, Tolerance};
use crate::session::record::OpeningRecord;
use crate::session::recovery::strategy;
use crate::session::text::AnswerText;
use crate::supervisor::supervised;
use crate::telemetry::Telemetry;

/// Messages that may wait; requests wait elsewhere.
const MAILBOX: usize = 256;
/// Pieces of an answer that a client may leave unread.
const EVENTS: usize = 64;
/// When a client that was turned away should try again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What the router works with.
pub(crate) struct RouterDeps {
    pub(crate) models: Arc<Models>,
    pub(crate) session: Arc<SessionDeps>,
    pub(crate) telemetry: Telemetry,
}

/// A request for an answer, with its place among those that may run.
#[derive(Message)]
#[rtype(result = "Result<Generation, GenerateError>")]
pub(crate) struct Generate {
    pub(crate) request: GenerateRequest,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// How much runs and waits. Outlives the router, so that a restart admits no more than allowed.
pub(crate) struct Admission {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    limits: Limits,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            running: Arc::new(Semaphore::new(limits.max_sessions)),
            waiting: AtomicUsize::new(0),
            limits,
        }
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// No request is admitted from now on.
    pub(crate) fn close(&self) {
        self.running.close();
    }

    /// Waits for a place among the running, if there is room to wait. Whoever hangs up meanwhile
    /// drops this future, and with it the place in the queue.
    pub(crate) async fn admit(&self) -> Result<OwnedSemaphorePermit, GenerateError> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(permit);
        }
        if self.running.is_closed() {
            return Err(GenerateError::ShuttingDown);
        }
        let place = self.queue()?;
        let permit = Arc::clone(&self.running).acquire_owned().await;
        drop(place);
        permit.map_err(|_| GenerateError::ShuttingDown)
    }

    fn queue(&self) -> Result<WaitingPlace<'_>, GenerateError> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = WaitingPlace(&self.waiting);
        if waiting >= self.limits.max_waiting {
            return Err(GenerateError::Overloaded {
                running: self.limits.max_sessions,
                waiting,
                retry_after: RETRY_AFTER,
            });
        }
        Ok(place)
    }
}

/// A place in the queue, given up when dropped: also when the client hangs up.
struct WaitingPlace<'a>(&'a AtomicUsize);

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module.
pub(crate) struct Router {
    deps: Arc<RouterDeps>,
}

impl Router {
    pub(crate) fn new(deps: Arc<RouterDeps>) -> Self {
        Self { deps }
    }
}

impl Actor for Router {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

supervised!(Router);

impl Handler<Generate> for Router {
    type Result = ResponseFuture<Result<Generation, GenerateError>>;

    fn handle(&mut self, message: Generate, _: &mut Context<Self>) -> Self::Result {
        let deps = Arc::clone(&self.deps);
        Box::pin(async move {
            let taken = take_on(&deps, message).await;
            let result = match &taken {
                Ok(_) => "accepted",
                Err(error) => error.code(),
            };
            deps.telemetry.request(result);
            taken
        })
    }
}

async fn take_on(deps: &RouterDeps, message: Generate) -> Result<Generation, GenerateError> {
    let Generate {
        mut request,
        permit,
    } = message;
    let stop = prompt::check(&mut request)?;
    let card = deps.models.card(&request.model).await?;
    let prompt = prompt::tokens(&card, request.input.clone()).await?;
    let shape = Arc::clone(&card.header.shape);
    let default_answer = deps.session.limits.default_answer;
    let max_new = prompt::room(&prompt, shape.context, request.max_tokens, default_answer)?;
    let max_tokens = prompt.len() as u32 + max_new;
    let placer = &deps.session.placer;
    let placement = placer
        .place(&card.model, &shape, max_tokens, &Wanted::default())
        .await?;

    let (events, receiver) = mpsc::channel(EVENTS);
    let generation = generation(&card, prompt.len(), receiver);
    let text = AnswerText::new(Arc::clone(&card.tokenizer), stop);
    let opening = Opening {
        prompt: prompt.clone(),
        max_new: u64::from(max_new),
        vocab: shape.vocab,
    };
    let level = request.fault_tolerance;
    let level = level.unwrap_or(deps.session.fault_tolerance);
    let tolerance = Tolerance {
        strategy: strategy(level),
        salt: salt(generation.0),
        peer_wait: deps.session.limits.peer_wait,
    };
    let route = placement.route.clone();
    let machine = Machine::new(opening, route, Box::new(text), tolerance);
    let record = OpeningRecord::new(
        card.model.cid.to_string(),
        prompt,
        request.sampling,
        u64::from(max_new),
        request.stop,
    );
    let spec = SessionSpec {
        id: generation.0,
        model: card.model,
        shape,
        tokenizer: card.tokenizer,
        opening: record,
        sampling: request.sampling,
        max_tokens,
        fault_tolerance: level,
        placement,
        events,
        _permit: permit,
    };
    SessionActor::launch(Arc::clone(&deps.session), spec, machine);
    Ok(generation.1)
}

/// Some bits of the session's id, which is random.
fn salt(session: SessionId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = session.bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn generation(
    card: &Card,
    prompt_tokens: usize,
    events: mpsc::Receiver<GenEvent>,
) -> (SessionId, Generation) {
    let session = SessionId::random();
    let generation = Generation {
        id: session.to_string(),
        cid: card.model.cid.to_string(),
        model: card.model.name.clone(),
        prompt_tokens,
        events,
    };
    (session, generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max_sessions: usize, max_waiting: usize) -> Arc<Admission> {
        let limits = Limits {
            max_sessions,
            max_waiting,
            ..Limits::default()
        };
        Arc::new(Admission::new(limits))
    }

    #[tokio::test]
    async fn beyond_what_runs_and_waits_a_request_is_turned_away_with_a_time_to_return() {
        let admission = admission(1, 1);
        let running = admission.admit().await.unwrap();
        let waiter = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.admit().await.map(|_| ()) }
        });
        while admission.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let error = admission.admit().await.unwrap_err();
        assert!(matches!(error, GenerateError::Overloaded { .. }), "{error}");
        assert!(error.retry_after().is_some());
        drop(running);
        waiter.await.unwrap().unwrap();
        assert_eq!(admission.waiting(), 0);
    }

    #[tokio::test]
    async fn a_client_that_hangs_up_while_it_waits_gives_up_its_place() {
        let admission = admission(1, 1);
        let _running = admission.admit().await.unwrap();
        let waiting = Box::pin(admission.admit());
        let polled = futures::future::select(waiting, Box::pin(std::future::ready(()))).await;
        assert_eq!(admission.waiting(), 1);
        drop(polled);
        assert_eq!(admission.waiting(), 0);
    }

    #[tokio::test]
    async fn a_stopping_node_admits_nobody() {
        let admission = admission(1, 1);
        admission.close();
        assert!(matches!(
            admission.admit().await,
            Err(GenerateError::ShuttingDown)
        ));
    }
}
