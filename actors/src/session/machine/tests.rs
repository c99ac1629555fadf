use super::fixtures::{machine, memory_in_use, peer, route};
use super::simulation::toy::VOCAB;
use super::{CHUNK, Machine, WAITS};
use crate::error::Failure;
use crate::session::event::{Command, Drawn, Event, Outcome, StageReport, Timer};
use crate::tolerance::FaultTolerance;

/// Drives a machine to the point where its first step is under way.
pub(super) fn running(prompt: usize) -> (Machine, Vec<Command>) {
    running_over(2, prompt)
}

pub(super) fn running_over(stages: usize, prompt: usize) -> (Machine, Vec<Command>) {
    begun(FaultTolerance::Medium, stages, prompt)
}

/// The same under a level, and under its first epoch.
fn begun(level: FaultTolerance, stages: usize, prompt: usize) -> (Machine, Vec<Command>) {
    let mut machine = machine(level, prompt, stages);
    machine.on(Event::Opened);
    let commands = run_under(&mut machine, 1, stages);
    (machine, commands)
}

fn forwards(commands: &[Command]) -> usize {
    let is_forward = |command: &&Command| matches!(command, Command::Forward { .. });
    commands.iter().filter(is_forward).count()
}

#[test]
fn of_a_long_prompt_a_bounded_number_of_chunks_is_under_way_so_that_every_stage_has_one() {
    for (stages, expected) in [(1, 2), (2, 3), (3, 4), (5, 4)] {
        let (mut machine, commands) = running_over(stages, 9 * CHUNK);
        assert_eq!(forwards(&commands), expected, "{stages} stages");
        let commands = machine.on(Event::Applied {
            epoch: 1,
            step: 1,
            stage: stages - 1,
        });
        assert_eq!(forwards(&commands), 1, "one answered, one sent");
    }
}

fn token(step: u64, position: u64, token: u32) -> Event {
    token_under(1, step, position, token)
}

pub(super) fn token_under(epoch: u64, step: u64, position: u64, token: u32) -> Event {
    let drawn = Drawn {
        token,
        logprob: -1.0,
        top: Vec::new(),
    };
    Event::Token {
        epoch,
        step,
        position,
        drawn,
    }
}

#[test]
fn a_token_is_journaled_before_it_is_emitted_while_the_next_step_is_under_way() {
    let (mut machine, _) = running(5);
    let commands = machine.on(token(1, 5, 7));
    assert!(matches!(
        commands.first(),
        Some(Command::JournalToken { index: 0, drawn }) if drawn.token == 7
    ));
    assert!(
        commands
            .iter()
            .any(|command| matches!(command, Command::Forward { step: 2, .. }))
    );
    assert!(
        !commands
            .iter()
            .any(|command| matches!(command, Command::Emit { .. }))
    );
    let commands = machine.on(Event::Journaled { index: 0 });
    assert!(matches!(
        commands.as_slice(),
        [Command::Emit { index: 0, .. }]
    ));
}

#[test]
fn a_repeated_or_outdated_token_changes_nothing() {
    let (mut machine, _) = running(5);
    machine.on(token(1, 5, 7));
    assert_eq!(machine.on(token(1, 5, 7)), []);
    let drawn = Drawn {
        token: 9,
        logprob: 0.0,
        top: Vec::new(),
    };
    assert_eq!(
        machine.on(Event::Token {
            epoch: 0,
            step: 2,
            position: 6,
            drawn
        }),
        []
    );
}

#[test]
fn a_token_that_cannot_be_ends_the_session_with_an_error() {
    for impossible in [token(1, 6, 7), token(1, 5, VOCAB)] {
        let (mut machine, _) = running(5);
        let commands = machine.on(impossible);
        let Some(Command::Close(Outcome::Failed(failure))) = commands.last() else {
            panic!("{commands:?}");
        };
        assert_eq!(failure.code, "bad_token");
    }
}

#[test]
fn without_tolerance_a_lost_peer_fails_the_session_and_releases_the_others() {
    let (mut machine, _) = begun(FaultTolerance::None, 2, 5);
    let stranger = machine.on(Event::PeerLost(peer(9)));
    assert_eq!(stranger, [], "a stranger does not matter");
    let commands = machine.on(Event::PeerLost(peer(201)));
    let releases = commands
        .iter()
        .filter(|c| matches!(c, Command::Release { .. }))
        .count();
    assert_eq!(releases, 2);
    let Some(Command::Close(Outcome::Failed(failure))) = commands.last() else {
        panic!("{commands:?}");
    };
    assert_eq!(failure.code, "peer_lost");
    assert!(!failure.hint.is_empty());
}

pub(super) fn prepare(epoch: u64, stage: usize) -> Command {
    Command::Prepare {
        epoch,
        stage,
        keeps: true,
    }
}

/// Brings a machine whose route is planned to where it runs.
pub(super) fn run_under(machine: &mut Machine, epoch: u64, stages: usize) -> Vec<Command> {
    for stage in 0..stages {
        let report = StageReport::default();
        machine.on(Event::Prepared {
            epoch,
            stage,
            report,
        });
    }
    let mut commands = Vec::new();
    for stage in 0..stages {
        commands = machine.on(Event::Committed { epoch, stage });
    }
    commands
}

#[test]
fn a_refusal_before_the_first_token_tries_another_route_under_a_new_epoch() {
    let mut machine = machine(FaultTolerance::Medium, 5, 2);
    machine.on(Event::Opened);
    let failure = Failure::unavailable("no_memory", "no memory", "free some");
    let commands = machine.on(Event::Refused {
        epoch: 1,
        stage: 1,
        failure: failure.clone(),
    });
    assert_eq!(commands.len(), 3, "{commands:?}");
    assert_eq!(
        commands[2],
        Command::Plan {
            anew: false,
            epoch: 1,
            excluding: vec![peer(201)]
        }
    );
    let commands = machine.on(Event::Planned {
        epoch: 1,
        route: route(&[1]),
        weighed: None,
    });
    assert_eq!(commands, [prepare(2, 0)]);
    machine.on(Event::Refused {
        epoch: 2,
        stage: 0,
        failure: failure.clone(),
    });
    let no_plan = Event::NoPlan {
        epoch: 2,
        failure: Failure::internal("told only if nobody refused"),
    };
    let commands = machine.on(no_plan);
    assert_eq!(commands, [Command::Close(Outcome::Failed(failure))]);
}

#[test]
fn a_session_waits_for_memory_that_others_hold_and_holds_nothing_meanwhile() {
    let mut machine = machine(FaultTolerance::Medium, 5, 2);
    machine.on(Event::Opened);
    for wait in 1..=u64::from(WAITS) + 1 {
        let epoch = wait;
        let commands = machine.on(Event::Refused {
            epoch,
            stage: 1,
            failure: memory_in_use(),
        });
        let aborts = commands
            .iter()
            .filter(|command| matches!(command, Command::Abort { .. }));
        assert_eq!(aborts.count(), 2, "{commands:?}");
        let commands = machine.on(Event::NoPlan {
            epoch,
            failure: Failure::internal("nobody else is there"),
        });
        if wait > u64::from(WAITS) {
            let failed = Outcome::Failed(memory_in_use());
            assert_eq!(commands, [Command::Close(failed)], "not for ever");
            return;
        }
        let timer = Timer::Memory { epoch };
        assert_eq!(commands, [Command::Arm(timer)]);
        let excluding = Vec::new();
        let commands = machine.on(Event::Timeout(timer));
        assert_eq!(
            commands,
            [Command::Plan {
                epoch,
                excluding,
                anew: false,
            }]
        );
        let route = route(&[200, 201]);
        machine.on(Event::Planned {
            epoch,
            route,
            weighed: None,
        });
    }
}

#[test]
fn a_client_that_does_not_read_pauses_its_session() {
    let (mut machine, _) = running(5);
    let mut step = 1;
    loop {
        let commands = machine.on(token(step, 4 + step, 7));
        machine.on(Event::Journaled { index: step - 1 });
        if !commands
            .iter()
            .any(|command| matches!(command, Command::Forward { .. }))
        {
            break;
        }
        step += 1;
        assert!(step < 50, "it never pauses");
    }
    let commands = machine.on(Event::Emitted { index: 0 });
    assert!(
        commands
            .iter()
            .any(|command| matches!(command, Command::Forward { .. }))
    );
}

#[test]
fn cancelling_releases_everything_at_once() {
    let (mut machine, _) = running(5);
    let commands = machine.on(Event::Cancel);
    assert_eq!(commands.last(), Some(&Command::Close(Outcome::Cancelled)));
    assert_eq!(machine.on(token(1, 5, 7)), [], "nothing follows");
}
