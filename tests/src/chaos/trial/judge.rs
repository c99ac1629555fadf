//! Compares what was heard with the undisturbed answer, and asks whether what the node tells of its
//! recoveries makes sense.

use std::time::Duration;

use serde_json::Value;

use super::{Landed, SessionOutcome, is_whole, millis};
use crate::{Answer, Node, chaos::listen::Heard};

/// Recoveries that a node shows; it counts all.
const SHOWN: usize = 32;
/// A token that takes longer than this is computed, not merely written.
const FAST: Duration = Duration::from_millis(20);

/// Judges every answer of a trial.
pub(super) async fn all(
    asked: &Node,
    heard: &[Heard],
    expected: &[Answer],
    landed: &[Landed],
    problems: &mut Vec<String>,
) -> Vec<SessionOutcome> {
    let mut outcomes = Vec::new();
    for (index, (heard, expected)) in heard.iter().zip(expected).enumerate() {
        let mut found = answer(heard, expected);
        let view = match &heard.session {
            Some(session) => asked.client.session(session).await,
            None => Err(anyhow::anyhow!("the stream named no session")),
        };
        let recoveries = match view {
            Ok(view) => {
                found.extend(view_problems(&view, expected, heard));
                if index == 0 && !may_be_ahead(heard) {
                    found.extend(watched_problems(&view, landed));
                }
                view["recovery_log"].as_array().cloned().unwrap_or_default()
            }
            Err(error) => {
                found.push(format!("no view of the session: {error:#}"));
                Vec::new()
            }
        };
        problems.extend(
            found
                .into_iter()
                .map(|what| format!("answer {index}: {what}")),
        );
        outcomes.push(outcome(heard, expected, landed, recoveries));
    }
    outcomes
}

fn outcome(
    heard: &Heard,
    expected: &Answer,
    landed: &[Landed],
    recoveries: Vec<Value>,
) -> SessionOutcome {
    let first = landed.iter().find_map(|landed| landed.at);
    SessionOutcome {
        session: heard.session.clone(),
        complete: is_whole(heard, expected),
        equal: heard.text == expected.text && heard.tokens == expected.tokens,
        error: heard.error.clone(),
        prompt_tokens: expected.prompt_tokens,
        tokens: heard.tokens.len(),
        recoveries,
        silence_ms: first.and_then(|at| heard.longest_silence(at)).map(millis),
        usual_ms: heard.usual_silence().map(millis),
    }
}

fn answer(heard: &Heard, expected: &Answer) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(error) = &heard.error {
        problems.push(format!("lost: {error}"));
    } else if !heard.ended {
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
    } else if heard.error.is_none() && heard.ended && heard.text != expected.text {
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
    if heard.error.is_none() && heard.ended {
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
            entry["strategy"] == "progressive",
            "another strategy than asked for",
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

/// What holds for the session that the faults were aimed at.
fn watched_problems(view: &Value, landed: &[Landed]) -> Vec<String> {
    let mut problems = Vec::new();
    if landed.iter().any(|landed| landed.must_recover) && view["recoveries"] == 0 {
        problems.push(format!("a stage was killed and nothing recovered: {view}"));
    }
    let gone: Vec<&str> = landed
        .iter()
        .filter(|landed| landed.must_recover)
        .filter_map(|landed| landed.peer_id.as_deref())
        .collect();
    let hops = view["route"].as_array();
    let mut peers = hops
        .into_iter()
        .flatten()
        .filter_map(|hop| hop["peer_id"].as_str());
    if peers.any(|peer| gone.contains(&peer)) {
        problems.push(format!("a killed peer is on the route at the end: {view}"));
    }
    problems
}
