//! Plays one trial: asks, strikes when the plan says so, heals, and judges what was heard.

mod judge;
mod meter;
mod strike;

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::{
    baseline::{Baseline, chat},
    listen::{Heard, Listener},
    plan::{Plan, Target},
    swarm::Swarm,
};
use crate::{Answer, Node};
use meter::{Bytes, Meter};
use strike::Striker;

/// An answer that has not ended by then hangs. It is many times what the slowest one needs.
const LIMIT: Duration = Duration::from_secs(110);
const TICK: Duration = Duration::from_millis(3);

/// What came of a trial.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// What was to be done.
    pub plan: Plan,
    /// The trials that the same nodes had served before.
    pub served_before: Vec<u32>,
    /// What was done.
    pub blows: Vec<Landed>,
    /// What the clients heard.
    pub sessions: Vec<SessionOutcome>,
    /// Everything that is not as it must be; empty in a good trial.
    pub problems: Vec<String>,
    /// Milliseconds from the first request to the end of the last answer.
    pub took_ms: f64,
    /// Milliseconds after that until all nodes saw each other again; absent if they did not.
    pub healed_ms: Option<f64>,
    /// Bytes of the model that nodes fetched meanwhile, as far as they could still be asked.
    pub model_bytes_fetched: u64,
    /// Frames whose bits were changed.
    pub frames_damaged: u64,
    /// Bytes that they sent over the tensor plane.
    pub tensor_bytes: u64,
    /// What that is without faults, by what the same nodes sent for one undisturbed answer.
    pub usual_tensor_bytes: u64,
}

impl Outcome {
    /// A trial that could not be played.
    pub fn unplayed(plan: &Plan, error: &anyhow::Error) -> Self {
        Self {
            plan: plan.clone(),
            served_before: Vec::new(),
            blows: Vec::new(),
            sessions: Vec::new(),
            problems: vec![format!("could not be played: {error:#}")],
            took_ms: 0.0,
            healed_ms: None,
            model_bytes_fetched: 0,
            frames_damaged: 0,
            tensor_bytes: 0,
            usual_tensor_bytes: 0,
        }
    }
}

/// A fault as it came.
#[derive(Clone, Debug, Serialize)]
pub struct Landed {
    /// Its kind.
    pub fault: &'static str,
    /// Whether it was meant for a peer or for the coordinator.
    pub target: Target,
    /// Whom it hit; absent where the answer was over before, or nobody was there to be hit.
    pub peer_id: Option<String>,
    /// Whether that peer computed for the watched session.
    pub on_route: bool,
    /// The state of the watched session.
    pub state: String,
    /// Tokens of the watched answer that were heard by then.
    pub after_tokens: usize,
    /// Whether the session needed the node: it was on the route, for good, or had to be gone on with
    /// elsewhere or later, with tokens to come.
    pub must_recover: bool,
    /// Whether the session may have moved away from it before it was gone.
    #[serde(skip)]
    lets_move: bool,
    #[serde(skip)]
    at: Option<Instant>,
}

/// An answer as its client heard it.
#[derive(Debug, Serialize)]
pub struct SessionOutcome {
    /// The session.
    pub session: Option<String>,
    /// Whether it ended as the undisturbed one does, whatever it said.
    pub complete: bool,
    /// Whether every byte and every token id is that of the undisturbed one.
    pub equal: bool,
    /// The error in which it ended.
    pub error: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub tokens: usize,
    /// How often its client came back.
    pub came_back: usize,
    /// What nodes tell of its recoveries: coordinators that were lost, as far as they were asked before,
    /// and the last one.
    pub recoveries: Vec<Value>,
    /// The longest silence that its client heard after the first fault.
    pub silence_ms: Option<f64>,
    /// The usual time between two tokens.
    pub usual_ms: Option<f64>,
}

/// Plays a trial. An error means that it could not be played: the swarm is of no use any more.
/// `usual` is the bytes that one position needs without faults.
pub async fn play(
    plan: &Plan,
    swarm: &mut Swarm,
    baseline: &mut Baseline,
    model: &str,
    usual: f64,
    logs: &Path,
) -> Result<Outcome> {
    let mut expected = Vec::new();
    for request in &plan.requests {
        expected.push(baseline.answer(request).await?);
    }
    let served_before = swarm.served.clone();
    swarm.begin(plan.trial);
    let meter = Meter::start(swarm).await;
    let started = Instant::now();
    let mut listeners = Vec::new();
    let mut striker = Striker::new(plan, expected.first().context("an answer")?, meter);
    let played = disturb(plan, swarm, model, &mut listeners, &mut striker).await;
    let took = started.elapsed();
    let mut problems: Vec<String> = played
        .err()
        .map(|error| format!("{error:#}"))
        .into_iter()
        .collect();
    problems.extend(striker.problems.iter().cloned());
    let heard: Vec<Heard> = listeners.iter().map(Listener::heard).collect();
    let mut judge = judge::Judge::new(plan, &striker, swarm, &mut problems);
    let sessions = judge.all(&heard, &expected).await;
    drop(listeners);
    let healing = Instant::now();
    let healed = heal(swarm, &mut striker).await;
    let healed_ms = healed.is_ok().then(|| millis(healing.elapsed()));
    if let Err(error) = healed {
        problems.push(format!("the swarm does not heal: {error:#}"));
    }
    if !problems.is_empty() {
        swarm.keep_logs(logs)?;
    }
    let bytes = striker.meter.finish(swarm).await;
    let positions: u64 = expected.iter().map(positions).sum();
    Ok(Outcome {
        plan: plan.clone(),
        served_before,
        blows: striker.landed,
        sessions,
        problems,
        took_ms: millis(took),
        healed_ms,
        model_bytes_fetched: bytes.model,
        frames_damaged: swarm.take_damaged(),
        tensor_bytes: bytes.tensor,
        usual_tensor_bytes: (usual * positions as f64) as u64,
    })
}

/// The bytes over the tensor plane that one position needs when nothing happens: the first answer of a
/// plan, without its faults.
pub async fn usual_bytes(
    plan: &Plan,
    swarm: &Swarm,
    baseline: &mut Baseline,
    model: &str,
) -> Result<f64> {
    let request = plan.requests.first().context("a request")?;
    let expected = baseline.answer(request).await?;
    let meter = Meter::start(swarm).await;
    let request = chat(request, model, Some(plan.fault_tolerance));
    let text = swarm.asked()?.client.stream(&request).await?.text().await?;
    if text != expected.text {
        bail!(
            "an answer that nothing disturbed is {text:?}, not {:?}",
            expected.text
        );
    }
    let Bytes { tensor, .. } = meter.finish(swarm).await;
    Ok(tensor as f64 / positions(&expected).max(1) as f64)
}

fn positions(answer: &Answer) -> u64 {
    answer.prompt_tokens + answer.tokens.len() as u64
}

/// Asks everything, strikes when it is time, and waits for the answers.
async fn disturb(
    plan: &Plan,
    swarm: &mut Swarm,
    model: &str,
    listeners: &mut Vec<Listener>,
    striker: &mut Striker,
) -> Result<()> {
    let known = sessions(swarm.asked()?).await?;
    let deadline = Instant::now() + LIMIT;
    let asked = swarm.asked()?.peer_id.clone();
    for request in &plan.requests {
        let request = chat(request, model, Some(plan.fault_tolerance));
        listeners.push(Listener::start(swarm.directory(), &asked, request));
        // A request that finds too few peers is refused, and rightly so: all are to be sessions
        // before anything happens.
        let new = new_sessions(swarm, &known, listeners, deadline).await?;
        if striker.session.is_none() {
            striker.session = new.first().cloned();
        }
    }
    while !listeners.iter().all(Listener::has_ended) {
        if Instant::now() > deadline {
            bail!("an answer has not ended after {} s", LIMIT.as_secs());
        }
        striker.tick(swarm, listeners).await?;
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

async fn heal(swarm: &mut Swarm, striker: &mut Striker) -> Result<()> {
    striker.undo_all(swarm).await?;
    swarm.make_whole().await
}

async fn sessions(node: &Node) -> Result<BTreeSet<String>> {
    let listing = node.client.get("/api/v1/sessions").await?.body;
    let rows = listing["sessions"]
        .as_array()
        .context("a list of sessions")?;
    let ids = rows.iter().filter_map(|row| row["id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

/// Waits until everything that was asked is a session, or over.
async fn new_sessions(
    swarm: &Swarm,
    known: &BTreeSet<String>,
    listeners: &[Listener],
    deadline: Instant,
) -> Result<Vec<String>> {
    loop {
        let over = listeners.iter().filter(|listener| listener.has_ended());
        let over = over.count();
        let now = sessions(swarm.asked()?).await?;
        let new: Vec<String> = now.difference(known).cloned().collect();
        if new.len() >= listeners.len() || (over > 0 && new.len() + over >= listeners.len()) {
            return Ok(new);
        }
        if Instant::now() > deadline {
            bail!("a request did not become a session");
        }
        tokio::time::sleep(TICK).await;
    }
}

fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 10_000.0).round() / 10.0
}

/// What an undisturbed answer says of itself.
fn is_whole(heard: &Heard, expected: &Answer) -> bool {
    heard.error.is_none() && heard.finish.as_deref() == Some(expected.finish.as_str())
}
