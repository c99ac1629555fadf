//! Counts and percentiles of groups of trials. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::chaos::trial::{Landed, Outcome, SessionOutcome};

/// Percentiles of so many values.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub count: usize,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub most: f64,
}

impl Spread {
    /// By nearest rank: every percentile is a value that was measured.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
            values.get(index).copied().unwrap_or_default()
        };
        Self {
            count: values.len(),
            p50: rank(50),
            p95: rank(95),
            p99: rank(99),
            most: rank(100),
        }
    }
}

/// What is counted of a group of trials.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub trials: usize,
    pub failed: usize,
    pub answers: usize,
    pub complete: usize,
    pub equal: usize,
    pub blows: usize,
    pub landed: usize,
    pub on_route: usize,
    pub recoveries: usize,
    pub stall: Spread,
    pub silence: Spread,
    /// Positions computed again, for each position of the answers that recovered.
    pub extra_compute: Option<f64>,
    /// Bytes over the tensor plane beyond the usual ones, for each usual one.
    pub extra_bytes: Option<f64>,
    /// Times that clients came back.
    pub came_back: usize,
    pub model_bytes: u64,
    pub damaged: u64,
}

impl Group {
    pub(super) fn of(trials: &[&Outcome]) -> Self {
        let sessions: Vec<&SessionOutcome> =
            trials.iter().flat_map(|trial| &trial.sessions).collect();
        let blows: Vec<_> = trials.iter().flat_map(|trial| &trial.blows).collect();
        let recovered = sessions
            .iter()
            .filter(|session| !session.recoveries.is_empty());
        let disturbed = sessions
            .iter()
            .filter(|session| session.came_back > 0 || !session.recoveries.is_empty());
        let entries: Vec<&Value> = sessions
            .iter()
            .flat_map(|session| &session.recoveries)
            .collect();
        let number = |entry: &&Value| entry["tokens_replayed"].as_u64().unwrap_or_default();
        let replayed: u64 = entries.iter().map(number).sum();
        let positions: u64 = recovered
            .map(|session| session.prompt_tokens + session.tokens as u64)
            .sum();
        Self {
            trials: trials.len(),
            failed: trials
                .iter()
                .filter(|trial| !trial.problems.is_empty())
                .count(),
            answers: sessions.len(),
            complete: sessions.iter().filter(|session| session.complete).count(),
            equal: sessions.iter().filter(|session| session.equal).count(),
            blows: trials.iter().map(|trial| trial.plan.blows.len()).sum(),
            landed: blows.iter().filter(|blow| blow.peer_id.is_some()).count(),
            on_route: blows.iter().filter(|blow| blow.on_route).count(),
            recoveries: entries.len(),
            stall: stalls(&entries),
            silence: Spread::of(disturbed.filter_map(|session| session.silence_ms).collect()),
            extra_compute: (positions > 0).then(|| replayed as f64 / positions as f64),
            extra_bytes: extra_bytes(trials),
            came_back: sessions.iter().map(|session| session.came_back).sum(),
            damaged: trials.iter().map(|trial| trial.frames_damaged).sum(),
            model_bytes: trials.iter().map(|trial| trial.model_bytes_fetched).sum(),
        }
    }
}

/// Below nothing where lost nodes could not be asked for their last bytes, or fewer stages were left.
fn extra_bytes(trials: &[&Outcome]) -> Option<f64> {
    let usual: u64 = trials.iter().map(|trial| trial.usual_tensor_bytes).sum();
    let sent: u64 = trials.iter().map(|trial| trial.tensor_bytes).sum();
    (usual > 0).then(|| sent as f64 / usual as f64 - 1.0)
}

/// The pauses that nodes tell of.
pub(super) fn stalls(entries: &[&Value]) -> Spread {
    let values = entries
        .iter()
        .filter_map(|entry| entry["stall_ms"]["value"].as_f64());
    Spread::of(values.collect())
}

/// The kind of fault that a trial belongs to; none where it had several, or none that hit.
pub(super) fn only_kind(trial: &Outcome) -> Option<&'static str> {
    let mut landed = hits(trial);
    let first = landed.next()?.fault;
    landed.all(|blow| blow.fault == first).then_some(first)
}

/// The strategies that led recoveries in a trial.
pub(super) fn strategies(trial: &Outcome) -> BTreeSet<&str> {
    let entries = trial
        .sessions
        .iter()
        .flat_map(|session| &session.recoveries);
    entries
        .filter_map(|entry| entry["strategy"].as_str())
        .collect()
}

/// Whether those that nothing happened to could hold the whole model. Where they could not, an
/// answer has to wait until the fault passes.
pub(super) fn has_stand_in(trial: &Outcome) -> bool {
    let hit: BTreeSet<&str> = hits(trial)
        .filter_map(|blow| blow.peer_id.as_deref())
        .collect();
    let rest = trial.plan.nodes.saturating_sub(hit.len()) as u32;
    rest * trial.plan.max_layers >= trial.plan.layers
}

fn hits(trial: &Outcome) -> impl Iterator<Item = &Landed> {
    trial.blows.iter().filter(|blow| blow.peer_id.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let spread = Spread::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((spread.p50, spread.p95), (100.0, 190.0));
        assert_eq!((spread.p99, spread.most), (198.0, 200.0));
        assert_eq!(Spread::of(Vec::new()), Spread::default());
        assert_eq!(Spread::of(vec![7.0]).p99, 7.0);
    }
}
