//! Who wins when the present route and stand-ins are asked at once.

use std::time::Duration;

use super::super::fixtures::{self, peer, route};
use crate::session::event::{Command, Drawn, Event, StageReport, Timer};
use crate::session::machine::Machine;
use crate::session::recovery::wager::{Odds, Wager};
use crate::session::recovery::{FaultKind, Remedy};
use crate::tolerance::FaultTolerance;

const PROMPT: usize = 10;

fn prepared(machine: &mut Machine, epoch: u64, stage: usize, cached: u64) -> Vec<Command> {
    let report = StageReport {
        cached,
        ..StageReport::default()
    };
    machine.on(Event::Prepared {
        epoch,
        stage,
        report,
    })
}

/// A session on the peers 200 and 201 whose step was not answered in time.
fn in_doubt() -> (Machine, Vec<Command>) {
    let mut machine = fixtures::machine(FaultTolerance::High, PROMPT, 2);
    machine.start();
    machine.on(Event::Opened);
    for stage in [0, 1] {
        prepared(&mut machine, 1, stage, 0);
    }
    for stage in [0, 1] {
        machine.on(Event::Committed { epoch: 1, stage });
    }
    let commands = machine.on(Event::Timeout(Timer::Step {
        epoch: 1,
        step: 1,
        rows: 10,
    }));
    (machine, commands)
}

/// Peer 7 could stand in for peer 200, in so many seconds.
fn found(machine: &mut Machine, seconds: u64) -> Vec<Command> {
    let wager = Wager {
        stand_ins: Duration::from_secs(seconds),
        patience: Duration::from_secs(10),
        odds: Odds::default(),
    };
    machine.on(Event::StandInsFound {
        epoch: 1,
        route: route(&[7, 201]),
        wager,
    })
}

/// The same, and peer 7 gets ready in place of peer 200.
fn racing() -> Machine {
    let (mut machine, _) = in_doubt();
    let commands = found(&mut machine, 1);
    let [
        Command::Wagered {
            strategy, races, ..
        },
        prepare,
    ] = commands.as_slice()
    else {
        panic!("{commands:?}");
    };
    assert_eq!((*strategy, *races), ("parallel", true));
    let expected = Command::Prepare {
        epoch: 2,
        stage: 0,
        keeps: false,
    };
    assert_eq!(*prepare, expected);
    machine
}

fn token(machine: &mut Machine) -> Vec<Command> {
    let drawn = Drawn {
        token: 5,
        logprob: 0.0,
        top: Vec::new(),
    };
    machine.on(Event::Token {
        epoch: 1,
        step: 1,
        position: PROMPT as u64,
        drawn,
    })
}

#[test]
fn whoever_may_only_be_slow_is_asked_again_and_stand_ins_are_looked_for() {
    let (_, commands) = in_doubt();
    let is_race = |command: &Command| {
        matches!(
            command,
            Command::Recovering {
                fault: FaultKind::StepTimeout,
                strategy: "progressive",
                remedy: Remedy::Resume,
                replayed: 0,
                ..
            }
        )
    };
    assert!(commands.iter().any(is_race), "{commands:?}");
    let again = |command: &Command| matches!(command, Command::Forward { step: 1, .. });
    assert!(commands.iter().any(again), "{commands:?}");
    let expected = Command::FindStandIns {
        epoch: 1,
        rows: PROMPT as u32,
        excluding: vec![peer(200)],
    };
    assert_eq!(commands.last(), Some(&expected));
}

#[test]
fn a_token_of_the_present_route_lets_the_stand_ins_go() {
    let mut machine = racing();
    prepared(&mut machine, 2, 0, 0);
    let commands = token(&mut machine);
    let released = |command: &Command| match command {
        Command::Release { epoch, stage } => *epoch == 2 && stage.peer == peer(7),
        _ => false,
    };
    assert!(commands.iter().any(released), "{commands:?}");
    assert!(commands.contains(&Command::MoveDropped { cut_anew: false }));
    assert_eq!(machine.epoch(), 1);
}

#[test]
fn stand_ins_that_are_ready_first_have_the_session_and_nobody_waits_for_the_others() {
    let mut machine = racing();
    prepared(&mut machine, 2, 0, 0);
    let (epoch, stage) = (2, 0);
    let commands = machine.on(Event::Committed { epoch, stage });
    let follows = Command::Prepare {
        epoch,
        stage: 1,
        keeps: true,
    };
    assert_eq!(commands.last(), Some(&follows), "{commands:?}");
    assert_eq!(token(&mut machine), [], "it comes too late");
    prepared(&mut machine, epoch, 1, 10);
    let commands = machine.on(Event::Committed { epoch, stage: 1 });
    let goes_on = |command: &Command| {
        matches!(
            command,
            Command::Forward {
                epoch: 2,
                position: 0,
                ..
            }
        )
    };
    assert!(commands.iter().any(goes_on), "{commands:?}");
}

#[test]
fn stand_ins_that_are_dearer_than_the_wait_leave_the_present_route_alone() {
    let (mut machine, _) = in_doubt();
    let commands = found(&mut machine, 60);
    let [
        Command::Wagered {
            strategy, races, ..
        },
    ] = commands.as_slice()
    else {
        panic!("{commands:?}");
    };
    assert_eq!((*strategy, *races), ("progressive", false));
    assert!(!token(&mut machine).is_empty());
    assert_eq!(machine.epoch(), 1);
}

#[test]
fn stand_ins_that_are_found_when_the_answer_goes_on_are_not_needed() {
    let (mut machine, _) = in_doubt();
    token(&mut machine);
    assert_eq!(found(&mut machine, 1), []);
}

#[test]
fn who_does_not_answer_and_has_no_stand_in_is_asked_again_and_then_left() {
    let (mut machine, _) = in_doubt();
    let timeout = |epoch| {
        Event::Timeout(Timer::Step {
            epoch,
            step: 1,
            rows: 10,
        })
    };
    let commands = machine.on(timeout(1));
    let restarts = |command: &Command| {
        matches!(
            command,
            Command::Recovering {
                strategy: "progressive",
                remedy: Remedy::Restart,
                ..
            }
        )
    };
    assert!(commands.iter().any(restarts), "{commands:?}");
}
