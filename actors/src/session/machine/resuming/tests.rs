use std::time::Duration;

use super::*;
use crate::error::ErrorKind;
use crate::session::event::Event;
use crate::session::machine::UNREAD_TOKENS;
use crate::session::machine::fixtures::{Numbers, peer, route};
use crate::session::machine::simulation::toy::VOCAB;
use crate::session::recovery::strategy;
use crate::tolerance::FaultTolerance;

const CLAIM: u64 = 3 << CHANCE_BITS;

fn drawn(token: u32) -> Drawn {
    Drawn {
        token,
        logprob: -0.5,
        top: vec![(token, -0.5)],
    }
}

/// A session whose journal holds these tokens, of which the client has so many.
fn resumed(tokens: &[u32], seen: u64, ended: Option<Ended>) -> Machine {
    let opening = Opening {
        prompt: vec![1, 2, 3],
        max_new: 100,
        vocab: VOCAB,
        row_bytes: 8,
        kv_bytes: 8,
    };
    let past = Past {
        tokens: tokens.iter().copied().map(drawn).collect(),
        ended,
        seen,
        claim: CLAIM,
    };
    let tolerance = Tolerance {
        strategy: strategy(FaultTolerance::Medium),
        salt: 1,
        peer_wait: Duration::from_secs(30),
        resumable: true,
        replicas: 0,
        rebuild: None,
        witnessed: false,
    };
    let text = Box::new(Numbers { stop: Some(99) });
    Machine::resumed(opening, past, text, tolerance)
}

/// The first commands, and those once the claim is durable, if one was needed.
fn begin(machine: &mut Machine) -> Vec<Command> {
    let commands = machine.start();
    match commands.as_slice() {
        [Command::JournalClaim { .. }] => machine.on(Event::Opened),
        _ => commands,
    }
}

fn emitted(commands: &[Command]) -> Vec<(u64, &str)> {
    let emits = commands.iter().filter_map(|command| match command {
        Command::Emit { index, text, .. } => Some((*index, text.as_str())),
        _ => None,
    });
    emits.collect()
}

#[test]
fn it_claims_the_session_then_emits_what_the_client_lacks_and_plans_above_all_old_epochs() {
    let mut machine = resumed(&[7, 8, 9], 1, None);
    assert_eq!(machine.start(), [Command::JournalClaim { claim: CLAIM }]);
    let commands = machine.on(Event::Opened);
    assert_eq!(emitted(&commands), [(1, "8 "), (2, "9 ")]);
    assert_eq!(machine.seen_chars(), 2);
    assert_eq!(machine.state(), "recovering");
    let Some(Command::Plan {
        epoch, excluding, ..
    }) = commands.last()
    else {
        panic!("{commands:?}");
    };
    assert!(excluding.is_empty());
    assert_eq!(claim_of(*epoch), CLAIM);
    let route = route(&[1]);
    let commands = machine.on(Event::Planned {
        epoch: *epoch,
        route,
        weighed: None,
    });
    let epoch = (CLAIM << 32) + 1;
    let prepare = Command::Prepare {
        epoch,
        stage: 0,
        keeps: true,
    };
    assert_eq!(commands, [prepare]);
}

#[test]
fn a_long_past_leaves_as_fast_as_the_client_takes_it() {
    let tokens: Vec<u32> = (0..90).map(|n| 1 + n % 50).collect();
    let mut machine = resumed(&tokens, 0, None);
    machine.start();
    let commands = machine.on(Event::Opened);
    let first = emitted(&commands).len() as u64;
    assert_eq!(first, UNREAD_TOKENS);
    let mut next = first;
    for index in 0..90 {
        let commands = machine.on(Event::Emitted { index });
        for (index, _) in emitted(&commands) {
            assert_eq!(index, next);
            next += 1;
        }
    }
    assert_eq!(next, 90);
}

#[test]
fn an_answer_of_which_nothing_is_missing_is_told_without_any_stage() {
    let done = |finish| Some(Ended::Done(finish));
    let cases = [
        (vec![7, 8], done(FinishReason::Stop), FinishReason::Stop),
        (vec![7, 8], done(FinishReason::Length), FinishReason::Length),
        (vec![7, 99], None, FinishReason::Stop),
        ([7; 100].to_vec(), None, FinishReason::Length),
    ];
    for (tokens, ended, expected) in cases {
        let count = tokens.len() as u64;
        let mut machine = resumed(&tokens, count - 1, ended);
        let commands = begin(&mut machine);
        assert_eq!(emitted(&commands).len(), 1, "{commands:?}");
        let commands = machine.on(Event::Emitted { index: count - 1 });
        let Some(Command::Close(Outcome::Done {
            finish,
            completion_tokens,
            ..
        })) = commands.last()
        else {
            panic!("{commands:?}");
        };
        assert_eq!((*finish, *completion_tokens), (expected, count));
    }
}

#[test]
fn a_client_that_has_every_token_gets_the_end_at_once() {
    let mut machine = resumed(&[7], 1, Some(Ended::Done(FinishReason::Stop)));
    let commands = machine.start();
    assert!(
        matches!(commands.as_slice(), [Command::Close(Outcome::Done { .. })]),
        "{commands:?}"
    );
}

#[test]
fn an_error_is_told_again_behind_the_tokens_before_it() {
    let failed = Ended::Failed("no_stand_in".into(), "nobody took over".into());
    let mut machine = resumed(&[7], 0, Some(failed));
    assert_eq!(emitted(&machine.start()), [(0, "7 ")]);
    let commands = machine.on(Event::Emitted { index: 0 });
    let [Command::Close(Outcome::Failed(failure))] = commands.as_slice() else {
        panic!("{commands:?}");
    };
    assert_eq!(failure.code, "no_stand_in");
    assert!(!failure.hint.is_empty());
}

#[test]
fn nothing_counts_that_comes_behind_a_stop_text() {
    let mut machine = resumed(&[99, 8, 9], 0, None);
    assert_eq!(emitted(&begin(&mut machine)), [(0, "")]);
    let commands = machine.on(Event::Emitted { index: 0 });
    assert!(matches!(commands.as_slice(), [Command::Close(_)]));
}

/// A session that goes on, and whose only stage is asked to prepare.
fn placing() -> (Machine, u64) {
    let mut machine = resumed(&[7], 1, None);
    machine.start();
    machine.on(Event::Opened);
    let epoch = machine.epoch();
    let route = route(&[1]);
    machine.on(Event::Planned {
        epoch,
        route,
        weighed: None,
    });
    (machine, epoch + 1)
}

#[test]
fn a_coordinator_that_hears_of_a_newer_one_gives_up_and_leaves_the_journal_open() {
    let refused = |epoch| Event::Refused {
        epoch,
        stage: 0,
        failure: Failure::new(ErrorKind::Unavailable, SESSION_MOVED, "a newer one", ""),
    };
    let (mut machine, epoch) = placing();
    assert_eq!(machine.on(refused(epoch - 1)), [], "that is long ago");
    let commands = machine.on(refused(epoch));
    assert!(
        matches!(commands.first(), Some(Command::Release { stage, .. }) if stage.peer == peer(1))
    );
    let Some(Command::Close(Outcome::Moved(failure))) = commands.last() else {
        panic!("{commands:?}");
    };
    assert_eq!(failure.code, SESSION_MOVED);
    assert!(failure.hint.contains("Last-Event-ID"), "{failure:?}");

    let (mut machine, _) = placing();
    let commands = machine.on(Event::Deposed);
    assert!(matches!(
        commands.last(),
        Some(Command::Close(Outcome::Moved(_)))
    ));
}

#[test]
fn a_session_that_is_to_stop_releases_everything_and_waits_for_whoever_comes() {
    let stop = Failure::unavailable("session_taken_up", "another client", "come back");
    for (event, code) in [
        (Event::Cancel, "client_gone"),
        (Event::Suspend(stop), "session_taken_up"),
    ] {
        let (mut machine, epoch) = placing();
        let commands = machine.on(event);
        let release =
            |command: &Command| matches!(command, Command::Release { epoch: e, .. } if *e == epoch);
        assert!(commands.iter().any(release), "{commands:?}");
        let Some(Command::Close(Outcome::Suspended(failure))) = commands.last() else {
            panic!("{commands:?}");
        };
        assert_eq!(failure.code, code);
        assert_eq!(machine.on(Event::Opened), [], "nothing follows");
    }
}

#[test]
fn claims_grow_whatever_chance_says_and_end_before_they_run_over() {
    let mut claim = 0;
    for chance in [u16::MAX, 0, 1] {
        let next = next_claim(claim, chance).expect("there is room");
        assert!(next > claim);
        claim = next;
    }
    assert_eq!(next_claim(HIGHEST_CLAIM, 0), None);
    assert_eq!(next_claim(u64::MAX, u16::MAX), None);
}
