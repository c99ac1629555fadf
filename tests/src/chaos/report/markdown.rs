//! The report for people.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;

use super::{
    Report,
    figures::{Group, Spread, has_stand_in, only_kind, stalls, strategies},
};
use crate::chaos::trial::Outcome;

const BY_FAULT: &str = "## By fault

A stand-in is there where the nodes that were not hit can hold the model; otherwise the answer has to wait until a fault passes. \
Tensor bytes are those beyond what the same answers need without faults, per byte of that. Of the model, megabytes (10⁶) \
are what nodes fetched in a trial.

| fault | level | stand-in | trials | faults | complete | equal | recoveries | pause p50 / p95 / p99 / most, ms \
| silence p50 / p95 / p99 / most, ms | computed again | tensor bytes | MB of the model |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
";

const BY_STRATEGY: &str = "## By strategy

Trials by the strategy that led all recoveries in them.

| strategy | trials | faults | complete | equal | recoveries | pause p50 / p95 / p99 / most, ms \
| silence p50 / p95 / p99 / most, ms | computed again | tensor bytes | MB of the model |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
";

pub(super) fn text(report: &Report) -> String {
    let parts = [
        heading(report),
        overview(report),
        by_fault(report),
        by_strategy(report),
        by_remedy(report),
        failures(report),
        report
            .rpc_peers
            .as_ref()
            .map(|found| found.markdown())
            .unwrap_or_default(),
    ];
    let parts = parts.iter().filter(|part| !part.is_empty());
    parts.map(String::as_str).collect::<Vec<_>>().join("\n")
}

fn heading(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "# Chaos, {}\n\n`{}`\n\nSeed {}, {} trials, {} s. {}, computed with {} on {} cores of {}, {}; \
         load when it began: {}. Every figure is measured.\n\n",
        report.date,
        report.command.trim(),
        report.seed,
        report.outcomes.len(),
        report.seconds,
        report.model,
        machine.accel,
        machine.cores,
        machine.processor,
        machine.kernel,
        machine.load,
    );
    if let Some(batch) = report.stopped_before {
        let _ = writeln!(
            text,
            "Time was up: trials from {batch} on were not played.\n"
        );
    }
    for (name, about) in &report.faults {
        let _ = writeln!(text, "- `{name}`: {about}");
    }
    for (name, why) in &report.left_out {
        let _ = writeln!(text, "- `{name}`: **left out** here: {why}");
    }
    text
}

fn overview(report: &Report) -> String {
    let all: Vec<&Outcome> = report.outcomes.iter().collect();
    let group = Group::of(&all);
    let healing = all.iter().filter_map(|trial| trial.healed_ms).collect();
    let usual = all
        .iter()
        .flat_map(|trial| &trial.sessions)
        .filter_map(|session| session.usual_ms);
    let mut text = String::from("## All trials\n\n| | |\n|---|---:|\n");
    for (what, figure) in [
        ("trials", group.trials.to_string()),
        ("trials with something wrong", group.failed.to_string()),
        ("answers", group.answers.to_string()),
        ("complete answers", share(group.complete, group.answers)),
        (
            "answers equal to the undisturbed ones",
            share(group.equal, group.answers),
        ),
        ("faults planned", group.blows.to_string()),
        (
            "faults that came before the answer was over",
            group.landed.to_string(),
        ),
        (
            "of these, on a peer that computed for it",
            group.on_route.to_string(),
        ),
        ("recoveries", group.recoveries.to_string()),
        (
            "pause told by the node, ms, p50 / p95 / p99 / most",
            spread(&group.stall),
        ),
        (
            "longest silence at the client, ms, p50 / p95 / p99 / most",
            spread(&group.silence),
        ),
        (
            "usual time between two tokens, ms, p50 / p95 / p99 / most",
            spread(&Spread::of(usual.collect())),
        ),
        (
            "positions computed again, per position of the answers that recovered",
            ratio(group.extra_compute),
        ),
        (
            "bytes over the tensor plane beyond the usual ones, per usual one",
            ratio(group.extra_bytes),
        ),
        (
            "bytes of the model fetched meanwhile",
            group.model_bytes.to_string(),
        ),
        ("frames that were damaged", group.damaged.to_string()),
        ("times that clients came back", group.came_back.to_string()),
        (
            "until all nodes saw each other again, ms, p50 / p95 / p99 / most",
            spread(&Spread::of(healing)),
        ),
    ] {
        let _ = writeln!(text, "| {what} | {figure} |");
    }
    text + "\nPauses are of answers that recovered, silences of those and of answers whose client came back; a silence \
            counts from the token before it, or from the request.\n"
}

fn by_fault(report: &Report) -> String {
    let mut groups: BTreeMap<(&str, &str, bool), Vec<&Outcome>> = BTreeMap::new();
    for trial in &report.outcomes {
        let none = trial.blows.iter().all(|blow| blow.peer_id.is_none());
        let name = match only_kind(trial) {
            Some(kind) => kind,
            None if none => "none in time",
            None => "several kinds",
        };
        let key = (name, trial.plan.fault_tolerance, has_stand_in(trial));
        groups.entry(key).or_default().push(trial);
    }
    let mut text = String::from(BY_FAULT);
    for ((name, level, stand_in), trials) in &groups {
        let stand_in = if *stand_in { "yes" } else { "no" };
        let cells = cells(&Group::of(trials));
        let _ = writeln!(text, "| {name} | {level} | {stand_in} | {cells} |");
    }
    text
}

fn by_strategy(report: &Report) -> String {
    let mut groups: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
    for trial in &report.outcomes {
        let strategies = strategies(trial);
        let name = match strategies.first() {
            None => "nothing was recovered",
            Some(only) if strategies.len() == 1 => only,
            Some(_) => "several",
        };
        groups.entry(name).or_default().push(trial);
    }
    let mut text = String::from(BY_STRATEGY);
    for (name, trials) in &groups {
        let _ = writeln!(text, "| {name} | {} |", cells(&Group::of(trials)));
    }
    text
}

/// What is told of a group of trials, in the columns of the tables.
fn cells(group: &Group) -> String {
    format!(
        "{} | {} | {} | {} | {} | {} | {} | {} | {} | {:.1}",
        group.trials,
        group.landed,
        share(group.complete, group.answers),
        share(group.equal, group.answers),
        group.recoveries,
        spread(&group.stall),
        spread(&group.silence),
        ratio(group.extra_compute),
        ratio(group.extra_bytes),
        group.model_bytes as f64 / 1e6 / group.trials.max(1) as f64,
    )
}

fn by_remedy(report: &Report) -> String {
    let mut groups: BTreeMap<[&str; 3], Vec<&Value>> = BTreeMap::new();
    let sessions = report.outcomes.iter().flat_map(|trial| &trial.sessions);
    for entry in sessions.flat_map(|session| &session.recoveries) {
        let key = ["strategy", "fault", "remedy"].map(|key| entry[key].as_str().unwrap_or("?"));
        groups.entry(key).or_default().push(entry);
    }
    let mut text = String::from(
        "## By recovery\n\n| strategy | what the node noticed | remedy | times | that brought a token | pause p50 / \
         p95 / p99 / most, ms |\n|---|---|---|---:|---:|---:|\n",
    );
    for ([strategy, fault, remedy], entries) in &groups {
        let pause = stalls(entries);
        let _ = writeln!(
            text,
            "| {strategy} | {fault} | {remedy} | {} | {} | {} |",
            entries.len(),
            pause.count,
            spread(&pause),
        );
    }
    text
}

fn failures(report: &Report) -> String {
    let mut text = String::from("## Trials with something wrong\n\n");
    let failed: Vec<&Outcome> = report
        .outcomes
        .iter()
        .filter(|trial| !trial.problems.is_empty())
        .collect();
    if failed.is_empty() {
        text.push_str("None.\n");
    }
    for trial in failed {
        let number = trial.plan.trial;
        let _ = writeln!(text, "- Trial {number}: `{}{number}`", report.replay);
        if !trial.served_before.is_empty() {
            let before: Vec<String> = trial.served_before.iter().map(u32::to_string).collect();
            let _ = writeln!(
                text,
                "  (the same nodes had served trials {})",
                before.join(",")
            );
        }
        for problem in &trial.problems {
            let line = problem.replace('\n', " ");
            let _ = writeln!(text, "  - {}", line.chars().take(900).collect::<String>());
        }
    }
    text
}

fn share(part: usize, whole: usize) -> String {
    format!("{part} of {whole}")
}

fn spread(spread: &Spread) -> String {
    match spread.count {
        0 => "–".to_owned(),
        _ => format!(
            "{:.0} / {:.0} / {:.0} / {:.0}",
            spread.p50, spread.p95, spread.p99, spread.most
        ),
    }
}

fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"))
}
