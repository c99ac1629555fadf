//! The router: takes requests on. It bounds how many sessions run and how many requests wait,
//! prepares what a session needs (model, prompt, placement) in tasks of its own, and starts the
//! session's actor. It ends with its node; what it has started goes on without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use accel_inference::KvFormat;
use accel_p2p::wire::SessionId;
use actix::{Actor, Context, Handler, Message, ResponseFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::config::Limits;
use crate::error::GenerateError;
use crate::models::{Card, Models};
use crate::placement::{Placement, Wanted};
use crate::prompt;
use crate::replica::choose::expected;
use crate::request::{GenerateRequest, Generation, Resumption};
use crate::resume::{self, Resume};
use crate::session::actor::{SessionActor, SessionDeps, SessionSpec};
use crate::session::bench::{Bench, Case};
use crate::session::jury::Lane;
use crate::session::machine::{Machine, Opening, REPLICAS, Tolerance};
use crate::session::record::{OpeningRecord, read_token};
use crate::session::recovery::strategy;
use crate::session::text::AnswerText;
use crate::supervisor::supervised;
use crate::telemetry::Telemetry;
use crate::tolerance::FaultTolerance;

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

impl Handler<Resume> for Router {
    type Result = ResponseFuture<Result<Resumption, GenerateError>>;

    fn handle(&mut self, message: Resume, _: &mut Context<Self>) -> Self::Result {
        let deps = Arc::clone(&self.deps);
        Box::pin(async move { resume::take_up(&deps, message).await })
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
    let level = request.fault_tolerance;
    let level = level.unwrap_or(deps.session.fault_tolerance);
    let (model, wanted) = (&card.model, Wanted::default());
    let placement = match level == FaultTolerance::Critical {
        true => {
            placer
                .place_lanes(model, &shape, max_tokens, &wanted)
                .await?
                .first
        }
        false => placer.place(model, &shape, max_tokens, &wanted).await?,
    };

    let record = OpeningRecord {
        version: OpeningRecord::version(),
        model: card.model.cid.to_string(),
        name: card.model.name.clone(),
        prompt,
        sampling: request.sampling,
        max_new: u64::from(max_new),
        stop: request.stop,
        numerics: placement.plan.numerics.clone(),
        fault_tolerance: level,
        form: request.form,
    };
    let text = AnswerText::new(Arc::clone(&card.tokenizer), stop);
    let id = SessionId::random();
    check_replicas(deps, id, &record).await?;
    let tolerance = tolerance(deps, id, &record);
    let route = placement.route.clone();
    let machine = Machine::new(opening(&record, &card), route, Box::new(text), tolerance);
    let begun = Begun {
        id,
        record,
        placement,
        records: Vec::new(),
        is_over: false,
        permit,
    };
    Ok(begin(deps, card, begun, machine))
}

/// A request that is to be kept elsewhere is not begun where nobody is there for that.
async fn check_replicas(
    deps: &RouterDeps,
    id: SessionId,
    record: &OpeningRecord,
) -> Result<(), GenerateError> {
    if !record.is_replicated() {
        return Ok(());
    }
    let there = expected(&deps.session.placer, id, REPLICAS).await;
    match there >= REPLICAS {
        true => Ok(()),
        false => Err(GenerateError::TooFewReplicas {
            there,
            needed: REPLICAS,
        }),
    }
}

/// What the machine has to know of a request.
pub(crate) fn opening(record: &OpeningRecord, card: &Card) -> Opening {
    let kv = KvFormat::of_numerics(&record.numerics);
    let shape = &card.header.shape;
    Opening {
        prompt: record.prompt.clone(),
        max_new: record.max_new,
        vocab: card.header.shape.vocab,
        kv_bytes: kv.map_or(0, |kv| shape.kv_bytes_per_token_layer(kv)),
        row_bytes: u64::from(card.header.shape.hidden) * size_of::<f32>() as u64,
    }
}

pub(crate) fn tolerance(deps: &RouterDeps, id: SessionId, record: &OpeningRecord) -> Tolerance {
    Tolerance {
        strategy: strategy(record.fault_tolerance),
        salt: salt(id),
        peer_wait: deps.session.limits.peer_wait,
        resumable: record.is_resumable(),
        replicas: if record.is_replicated() { REPLICAS } else { 0 },
        rebuild: deps.session.rebuild,
        witnessed: is_witnessed(deps, id, record),
    }
}

/// A session that is ready to run.
pub(crate) struct Begun {
    pub(crate) id: SessionId,
    pub(crate) record: OpeningRecord,
    pub(crate) placement: Placement,
    /// The records of its tokens so far.
    pub(crate) records: Vec<Vec<u8>>,
    /// Whether the journal has its outcome already.
    pub(crate) is_over: bool,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Starts the session's actor.
pub(crate) fn begin(deps: &RouterDeps, card: Card, begun: Begun, machine: Machine) -> Generation {
    let (events, receiver) = mpsc::channel(EVENTS);
    let Begun {
        id,
        record,
        placement,
        records,
        is_over,
        permit,
    } = begun;
    let bench = bench(deps, id, &record, &card, &records).map(|bench| {
        if !placement.route.is_empty() {
            bench.begin_over(&placement.route);
        }
        (bench, Lane::Primary)
    });
    let generation = Generation {
        id: id.to_string(),
        cid: record.model.clone(),
        model: record.name.clone(),
        prompt_tokens: record.prompt.len(),
        events: receiver,
    };
    let spec = SessionSpec {
        id,
        model: card.model,
        shape: Arc::clone(&card.header.shape),
        tokenizer: card.tokenizer,
        sampling: record.sampling,
        max_tokens: (record.prompt.len() as u64 + record.max_new) as u32,
        opening: record,
        placement,
        records,
        is_over,
        events,
        _permit: Some(permit),
        bench,
    };
    SessionActor::launch(Arc::clone(&deps.session), spec, machine);
    generation
}

/// Whether its stages sign what they compute.
fn is_witnessed(deps: &RouterDeps, id: SessionId, record: &OpeningRecord) -> bool {
    record.fault_tolerance == FaultTolerance::Critical || deps.session.audits.has(id)
}

/// What the lanes of a session that is computed twice have in common.
fn bench(
    deps: &RouterDeps,
    id: SessionId,
    record: &OpeningRecord,
    card: &Card,
    records: &[Vec<u8>],
) -> Option<Arc<Bench>> {
    if !is_witnessed(deps, id, record) {
        return None;
    }
    let opening = opening(record, card);
    let drawn = records
        .iter()
        .filter_map(|bytes| read_token(bytes, opening.vocab).ok());
    let mut tokens = record.prompt.clone();
    tokens.extend(drawn.map(|drawn| drawn.token));
    let case = Case {
        nonce: nonce(),
        model: card.model.clone(),
        shape: Arc::clone(&card.header.shape),
        tokenizer: Arc::clone(&card.tokenizer),
        record: record.clone(),
        opening,
    };
    Some(Bench::new(Arc::clone(&deps.session), case, tokens))
}

/// Bits that nobody can foretell.
fn nonce() -> [u8; 32] {
    let halves = [(); 2].map(|()| SessionId::random().bytes());
    let mut nonce = [0; 32];
    nonce.copy_from_slice(&halves.concat());
    nonce
}

/// Some bits of the session's id, which is random.
fn salt(session: SessionId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = session.bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
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
