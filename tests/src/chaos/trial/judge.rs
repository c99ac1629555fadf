//! Compares what was heard with the undisturbed answer, and asks whether what the node tells of its
//! recoveries makes sense: the node that the end of the answer came from.

use std::time::Duration;

use serde_json::Value;

use super::{Landed, SessionOutcome, is_whole, millis, strike::Striker};
use crate::{
    Answer,
    chaos::{
        listen::Heard,
        plan::{Plan, Target},
        swarm::{Directory, Swarm},
    },
};

/// Recoveries that a node shows; it counts all.
const SHOWN: usize = 32;
/// A peer that was told to stop does its part for so long, if nobody takes it over.
const SERVES: Duration = Duration::from_secs(10);
/// A token that takes longer than this is computed, not merely written.
const FAST: Duration = Duration::from_millis(20);

/// Judges every answer of a trial.
pub(super) struct Judge<'a> {
    fault_tolerance: &'static str,
    landed: &'a [Landed],
    /// What nodes told before they were struck.
    told: &'a [(String, Vec<Value>)],
    nodes: &'a Directory,
    problems: &'a mut Vec<String>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        plan: &Plan,
        striker: &'a Striker,
        swarm: &'a Swarm,
        problems: &'a mut Vec<String>,
    ) -> Self {
        Self {
            fault_tolerance: plan.fault_tolerance,
            landed: &striker.landed,
            told: &striker.told,
            nodes: swarm.directory(),
            problems,
        }
    }

    pub(super) async fn all(
        &mut self,
        heard: &[Heard],
        expected: &[Answer],
    ) -> Vec<SessionOutcome> {
        let mut outcomes = Vec::new();
        for (index, (heard, expected)) in heard.iter().zip(expected).enumerate() {
            let mut found = answer(heard, expected);
            if heard.came_back > 0 && !self.has_hit(Target::Coordinator) {
                let why = heard.broke.join("; ");
                found.push(format!(
                    "its stream broke, and nothing had happened to its node: {why}"
                ));
            }
            let view = self.view(heard, &mut found).await;
            if let Some(view) = &view {
                found.extend(self.account(index, view, heard, expected));
            }
            let found = found.iter().map(|what| format!("answer {index}: {what}"));
            self.problems.extend(found);
            outcomes.push(self.outcome(heard, expected, view));
        }
        outcomes
    }

    /// The account of the node that the answer ended at; none where that was lost after the end.
    async fn view(&self, heard: &Heard, found: &mut Vec<String>) -> Option<Value> {
        let (Some(session), Some(node)) = (&heard.session, self.nodes.client(&heard.at)) else {
            found.push("the answer has no session".to_owned());
            return None;
        };
        let error = match node.session(session).await {
            Ok(view) => return Some(view),
            Err(error) => error,
        };
        let was_struck_later = self.landed.iter().any(|landed| {
            landed.peer_id.as_ref() == Some(&heard.at)
                && heard.ended.is_some()
                && (landed.target == Target::Coordinator || landed.at >= heard.ended)
        });
        if !was_struck_later {
            found.push(format!("no view of the session: {error:#}"));
        }
        None
    }

    /// What is wrong with a node's account.
    fn account(&self, index: usize, view: &Value, heard: &Heard, expected: &Answer) -> Vec<String> {
        let mut problems = view_problems(view, expected, heard);
        if view["fault_tolerance"] != self.fault_tolerance {
            problems.push(format!("it was asked for {}: {view}", self.fault_tolerance));
        }
        if index == 0 && !may_be_ahead(heard) {
            problems.extend(self.watched_problems(view, heard));
        }
        problems
    }

    /// What holds for the session that the faults were aimed at.
    fn watched_problems(&self, view: &Value, heard: &Heard) -> Vec<String> {
        let mut problems = Vec::new();
        let needed = |target| {
            let landed = self.landed.iter();
            landed.filter(move |landed| {
                let did_its_part = landed.lets_move && ended_within(heard, landed, SERVES);
                landed.must_recover && landed.target == target && !did_its_part
            })
        };
        let has_resumed = self.has_hit(Target::Coordinator);
        let has_moved = view["moves"].as_array().is_some_and(|all| !all.is_empty());
        let mut unmoved = needed(Target::Peer).filter(|landed| !(landed.lets_move && has_moved));
        if unmoved.next().is_some() && view["recoveries"] == 0 && !has_resumed {
            problems.push(format!("a stage was killed and nothing recovered: {view}"));
        }
        if needed(Target::Coordinator).next().is_some() && heard.came_back == 0 {
            problems.push(format!("its coordinator was lost, and it went on: {view}"));
        }
        let gone: Vec<&str> = needed(Target::Peer)
            .filter_map(|landed| landed.peer_id.as_deref())
            .collect();
        let hops = view["route"].as_array().into_iter().flatten();
        let mut peers = hops.filter_map(|hop| hop["peer_id"].as_str());
        if peers.any(|peer| gone.contains(&peer)) {
            problems.push(format!("a killed peer is on the route at the end: {view}"));
        }
        problems
    }

    fn has_hit(&self, target: Target) -> bool {
        let mut landed = self.landed.iter();
        landed.any(|landed| landed.target == target && landed.peer_id.is_some())
    }

    fn outcome(&self, heard: &Heard, expected: &Answer, view: Option<Value>) -> SessionOutcome {
        let first = self.landed.iter().find_map(|landed| landed.at);
        SessionOutcome {
            session: heard.session.clone(),
            complete: is_whole(heard, expected),
            equal: heard.text == expected.text && heard.tokens == expected.tokens,
            error: heard.error.clone(),
            prompt_tokens: expected.prompt_tokens,
            tokens: heard.tokens.len(),
            came_back: heard.came_back,
            recoveries: self.recoveries(heard, view),
            silence_ms: first.and_then(|at| heard.longest_silence(at)).map(millis),
            usual_ms: heard.usual_silence().map(millis),
        }
    }

    /// What was told of recoveries by all nodes that coordinated a session.
    fn recoveries(&self, heard: &Heard, view: Option<Value>) -> Vec<Value> {
        let last = view.and_then(|view| view["recovery_log"].as_array().cloned());
        let told = self.told.iter();
        let told = told.filter(|(session, _)| heard.session.as_ref() == Some(session));
        let mut recoveries: Vec<Value> = Vec::new();
        for entry in told.flat_map(|(_, log)| log).chain(last.iter().flatten()) {
            if !recoveries.contains(entry) {
                recoveries.push(entry.clone());
            }
        }
        recoveries
    }
}

fn answer(heard: &Heard, expected: &Answer) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(error) = &heard.error {
        problems.push(format!("lost: {error}"));
    } else if !heard.has_ended() {
        problems.push(format!("hangs after {} tokens", heard.tokens.len()));
    } else if !is_whole(heard, expected) {
        problems.push(format!(
            "ends with {:?}, not {}",
            heard.finish, expected.finish
        ));
    }
    // A lost answer must be right as far as it goes.
    let upto = heard.tokens.len().min(expected.tokens.len());
    if heard.tokens.get(..upto) != expected.tokens.get(..upto) {
        let at = heard
            .tokens
            .iter()
            .zip(&expected.tokens)
            .position(|(a, b)| a != b);
        problems.push(format!("wrong from token {at:?} on"));
    } else if heard.error.is_none() && heard.has_ended() && heard.text != expected.text {
        problems.push(format!("{:?} instead of {:?}", heard.text, expected.text));
    }
    problems
}

fn view_problems(view: &Value, expected: &Answer, heard: &Heard) -> Vec<String> {
    let mut problems = Vec::new();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            problems.push(format!("{what}: {view}"));
        }
    };
    let log = view["recovery_log"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let count = view["recoveries"].as_u64().unwrap_or(u64::MAX) as usize;
    check(
        log.len() == count.min(SHOWN),
        "recoveries and their log differ",
    );
    if heard.error.is_none() && heard.has_ended() {
        check(view["state"] == "done", "an answer that ended is not done");
        let tokens = view["tokens"].as_u64().unwrap_or_default() as usize;
        check(
            tokens == expected.tokens.len(),
            "the number of tokens is wrong",
        );
        let stalled = log
            .last()
            .is_none_or(|last| last["stall_ms"]["tag"] == "measured");
        check(stalled, "a recovery that succeeded has no measured stall");
    }
    let behind: Vec<u64> = log
        .iter()
        .filter_map(|entry| entry["after_tokens"].as_u64())
        .collect();
    check(
        behind.len() == log.len() && behind.is_sorted(),
        "recoveries go backwards",
    );
    let most = expected.tokens.len() as u64;
    check(
        behind.last().is_none_or(|last| *last <= most),
        "a recovery behind the end",
    );
    for entry in log {
        check(
            ["progressive", "parallel", "coordinated"]
                .map(Value::from)
                .contains(&entry["strategy"]),
            "a strategy that no level of the trials has",
        );
        let positions = expected.prompt_tokens + entry["after_tokens"].as_u64().unwrap_or_default();
        let replayed = entry["tokens_replayed"].as_u64().unwrap_or(u64::MAX);
        check(
            replayed <= positions,
            "more positions replayed than there were",
        );
    }
    problems
}

/// Whether the stages may be far ahead of what is emitted: a small model computes faster than the
/// journal writes, and then a stage can be killed that had done its part already.
fn may_be_ahead(heard: &Heard) -> bool {
    heard.usual_silence().is_none_or(|usual| usual < FAST)
}

/// Whether the answer was over so soon after the fault.
fn ended_within(heard: &Heard, landed: &Landed, time: Duration) -> bool {
    let (Some(ended), Some(at)) = (heard.ended, landed.at) else {
        return false;
    };
    ended.saturating_duration_since(at) < time
}
