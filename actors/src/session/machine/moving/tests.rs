//! A session that goes over to other peers while it runs.

use super::super::fixtures::{self, first_peers, peer, route};
use super::*;
use crate::error::Failure;
use crate::session::event::{Drawn, Event};
use crate::tolerance::FaultTolerance;

const PROMPT: usize = 100;

/// A session on the peers 200 and 201 that has drawn a token.
fn running() -> Machine {
    let mut machine = fixtures::machine(FaultTolerance::Medium, PROMPT, 2);
    machine.start();
    machine.on(Event::Opened);
    for stage in [0, 1] {
        prepared(&mut machine, 1, stage, 0);
    }
    for stage in [0, 1] {
        machine.on(Event::Committed { epoch: 1, stage });
    }
    token(&mut machine);
    machine
}

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

/// The step under way draws one.
fn token(machine: &mut Machine) -> Vec<Command> {
    let step = machine.step;
    let drawn = Drawn {
        token: 5,
        logprob: 0.0,
        top: Vec::new(),
    };
    let index = machine.tokens();
    let commands = machine.on(Event::Token {
        epoch: machine.epoch(),
        step,
        position: PROMPT as u64 + index,
        drawn,
    });
    machine.on(Event::Journaled { index });
    machine.on(Event::Emitted { index });
    commands
}

/// The second stage is to go to peer 7.
fn offered() -> (Machine, Vec<Command>) {
    let mut machine = running();
    let mut better = route(&first_peers(2));
    better[1].peer = peer(7);
    let commands = machine.on(Event::MoveOffered { route: better });
    (machine, commands)
}

fn refusal() -> Failure {
    Failure::unavailable("insufficient_memory", "no", "wait")
}

fn released(epoch: u64, n: u8) -> Command {
    let mut stage = route(&first_peers(2)).remove(1);
    stage.peer = peer(n);
    Command::Release { epoch, stage }
}

#[test]
fn a_newcomer_gets_ready_while_tokens_come_and_then_the_others_follow() {
    let (mut machine, commands) = offered();
    let (epoch, stage) = (2, 1);
    let keeps = false;
    let prepare = Command::Prepare {
        epoch,
        stage,
        keeps,
    };
    assert_eq!(commands, [prepare]);
    let donor = Some(peer(201));
    let length = 0;
    let commit = Command::Commit {
        epoch,
        stage,
        length,
        donor,
    };
    assert_eq!(prepared(&mut machine, epoch, stage, 0), [commit]);
    let mut commands = machine.on(Event::Committed { epoch, stage });
    for (position, rows) in [(0, 64), (64, 36)] {
        let step = machine.step;
        let copy = Command::Copy {
            epoch,
            step,
            donor: 3,
            stage,
            position,
            rows,
        };
        assert_eq!(
            commands,
            [copy, Command::Arm(Timer::Feed { epoch, step })],
            "what all stages have, from the one that has the same layers"
        );
        commands = machine.on(Event::Applied { epoch, step, stage });
    }
    assert_eq!(commands, [], "a step of the present route is under way");
    let before = vec![peer(200), peer(201)];
    let mut commands = token_of(&mut machine, 2);
    let prepare = Command::Prepare {
        epoch,
        stage: 0,
        keeps: true,
    };
    assert_eq!(
        commands.split_off(1),
        [
            Command::Switching {
                before,
                cuts_anew: false
            },
            prepare
        ]
    );
    let commands = prepared(&mut machine, epoch, 0, 101);
    let commit = Command::Commit {
        epoch,
        stage: 0,
        length: 100,
        donor: None,
    };
    assert_eq!(commands, [Command::Arm(Timer::Commit { epoch }), commit]);
    let commands = machine.on(Event::Committed { epoch, stage: 0 });
    assert_eq!(commands.first(), Some(&released(2, 201)));
    let Some(Command::Forward {
        epoch: 2,
        position: 100,
        sample: true,
        tokens,
        ..
    }) = commands.get(1)
    else {
        panic!("{commands:?}");
    };
    assert_eq!(tokens.len(), 2, "what the newcomer lacks, with the next");
    assert_eq!(token(&mut machine).first(), Some(&Command::Moved));
    assert_eq!(machine.epoch(), 2);
}

/// The first step of the first route, which took the whole prompt, was followed by this one.
fn token_of(machine: &mut Machine, step: u64) -> Vec<Command> {
    let drawn = Drawn {
        token: 6,
        logprob: 0.0,
        top: Vec::new(),
    };
    machine.on(Event::Token {
        epoch: 1,
        step,
        position: PROMPT as u64 + 1,
        drawn,
    })
}

#[test]
fn a_move_that_fails_is_dropped_and_the_answer_goes_on_as_it_was() {
    let epoch = 2;
    let failures = [
        Event::Refused {
            epoch,
            stage: 1,
            failure: refusal(),
        },
        Event::StepFailed {
            epoch,
            culprit: Some(peer(201)),
            failure: refusal(),
        },
        Event::PeerLost(peer(7)),
    ];
    for failure in failures {
        let (mut machine, _) = offered();
        let commands = machine.on(failure);
        let dropped = Command::MoveDropped { cut_anew: false };
        assert_eq!(commands, [released(2, 7), dropped]);
        let commands = token(&mut machine);
        let goes_on = |command: &Command| matches!(command, Command::Forward { epoch: 1, .. });
        assert!(commands.iter().any(goes_on), "{commands:?}");
    }
}

#[test]
fn a_fault_of_the_present_route_ends_the_move_and_the_next_epoch_is_a_new_one() {
    let (mut machine, _) = offered();
    let commands = machine.on(Event::PeerLost(peer(201)));
    assert!(commands.contains(&released(2, 7)), "{commands:?}");
    let plan = commands
        .iter()
        .find(|command| matches!(command, Command::Plan { .. }));
    assert!(plan.is_some(), "{commands:?}");
    let commands = machine.on(Event::Planned {
        epoch: 1,
        route: route(&[200, 8]),
        weighed: None,
    });
    let is_new = |command: &Command| matches!(command, Command::Prepare { epoch: 3, .. });
    assert!(commands.iter().all(is_new), "{commands:?}");
}

#[test]
fn what_cannot_be_moved_to_while_it_runs_is_not_taken_up() {
    let mut machine = running();
    let route = route(&first_peers(2));
    assert_eq!(machine.on(Event::MoveOffered { route }), []);
    let mut machine = fixtures::machine(FaultTolerance::Low, PROMPT, 2);
    machine.start();
    assert!(!machine.may_move(), "before there is a token");
}

#[test]
fn when_the_others_cannot_follow_it_is_a_fault_like_any_other() {
    let (mut machine, _) = offered();
    let (epoch, stage) = (2, 1);
    prepared(&mut machine, epoch, stage, 0);
    machine.on(Event::Committed { epoch, stage });
    for _ in 0..2 {
        let step = machine.step;
        machine.on(Event::Applied { epoch, step, stage });
    }
    token_of(&mut machine, 2);
    let failure = refusal();
    let commands = machine.on(Event::Refused {
        epoch,
        stage: 0,
        failure,
    });
    let recovers = |command: &Command| matches!(command, Command::Recovering { .. });
    assert!(commands.iter().any(recovers), "{commands:?}");
}

/// The layers are cut anew: the peer 200 gets one more, and 7 the rest.
fn cut_anew() -> (Machine, Vec<RouteStage>, Vec<Command>) {
    let mut machine = running();
    let mut anew = route(&[200, 7]);
    anew[0].layers.end = 2;
    anew[1].layers = accel_inference::LayerRange::new(2, 3);
    let route = anew.clone();
    let commands = machine.on(Event::MoveOffered { route });
    (machine, anew, commands)
}

#[test]
fn who_stays_with_other_layers_gets_them_beside_those_that_it_has() {
    let (mut machine, anew, commands) = cut_anew();
    let (epoch, keeps) = (2, false);
    let prepare = |stage| Command::Prepare {
        epoch,
        stage,
        keeps,
    };
    assert_eq!(commands, [prepare(0), prepare(1)]);
    assert!(machine.is_beside(epoch, 0) && !machine.is_beside(epoch, 1));
    let both = [(peer(200), 1), (peer(201), 1), (peer(200), 2), (peer(7), 2)];
    assert_eq!(machine.leased(), both);
    let commit = |stage| Command::Commit {
        epoch,
        stage,
        length: 0,
        donor: None,
    };
    prepared(&mut machine, epoch, 0, 0);
    assert_eq!(prepared(&mut machine, epoch, 1, 0), [commit(0), commit(1)]);
    machine.on(Event::Committed { epoch, stage: 0 });
    let mut commands = machine.on(Event::Committed { epoch, stage: 1 });
    while let Some(Command::Forward {
        epoch: 2,
        step,
        until: 1,
        sample: false,
        ..
    }) = commands.first()
    {
        let (step, stage) = (*step, 1);
        commands = machine.on(Event::Applied { epoch, step, stage });
    }
    assert_eq!(
        commands,
        [],
        "they have all; a step of the present route is under way"
    );
    let commands = token_of(&mut machine, 2);
    let is_ready = |command: &Command| {
        matches!(
            command,
            Command::Switching {
                cuts_anew: true,
                ..
            }
        )
    };
    assert!(commands.iter().any(is_ready), "{commands:?}");
    let old = Command::Release {
        epoch: 1,
        stage: route(&first_peers(2)).remove(0),
    };
    assert!(commands.contains(&old), "{commands:?}");
    let goes_on = |command: &Command| {
        matches!(
            command,
            Command::Forward {
                epoch: 2,
                sample: true,
                ..
            }
        )
    };
    assert!(commands.iter().any(goes_on), "{commands:?}");
    assert!(machine.route().map(|(stage, _)| stage).eq(&anew));
}

#[test]
fn what_was_got_ready_beside_is_left_alone_when_the_move_is_dropped() {
    let (mut machine, anew, _) = cut_anew();
    let commands = machine.on(Event::PeerLost(peer(7)));
    let left = Command::Leave {
        epoch: 2,
        stage: anew[0].clone(),
    };
    assert_eq!(commands.first(), Some(&left), "{commands:?}");
    let dropped = Command::MoveDropped { cut_anew: true };
    assert_eq!(commands.last(), Some(&dropped), "{commands:?}");
    let commands = token(&mut machine);
    let goes_on = |command: &Command| matches!(command, Command::Forward { epoch: 1, .. });
    assert!(commands.iter().any(goes_on), "{commands:?}");
}
