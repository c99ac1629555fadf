use super::super::fixtures::{machine, peer, route};
use crate::error::Failure;
use crate::session::event::{Command, Event, StageReport, Timer};
use crate::session::machine::Machine;
use crate::tolerance::FaultTolerance;

const PROMPT: u64 = 500;
/// The number of the peer that is left out of the second route.
const GIVER: usize = 2;
const OVERDUE: Timer = Timer::Givers { epoch: 2 };

fn prepared(epoch: u64, stage: usize, cached: u64) -> Event {
    let report = StageReport {
        cached,
        ..StageReport::default()
    };
    Event::Prepared {
        epoch,
        stage,
        report,
    }
}

/// The first stage could not reach the second, and another peer takes its place, which has nothing. Both
/// stages of the new route are ready.
fn replaced() -> (Machine, Vec<Command>) {
    let mut machine = machine(FaultTolerance::Medium, PROMPT as usize, 2);
    machine.on(Event::Opened);
    for stage in 0..2 {
        machine.on(prepared(1, stage, 0));
    }
    for stage in 0..2 {
        machine.on(Event::Committed { epoch: 1, stage });
    }
    machine.on(Event::Unreachable {
        epoch: 1,
        peer: peer(201),
        failure: Failure::unavailable("peer_lost", "cut off", "again"),
    });
    let asked = machine.on(Event::Planned {
        epoch: 1,
        route: route(&[200, 210]),
        weighed: None,
    });
    let is_giver = |command: &Command| matches!(command, Command::Prepare { stage: GIVER, .. });
    assert!(asked.iter().any(is_giver), "{asked:?}");
    machine.on(prepared(2, 0, PROMPT));
    let commands = machine.on(prepared(2, 1, 0));
    (machine, commands)
}

/// Who gives its KV cache to the second stage, if the machine goes on.
fn donor(commands: &[Command]) -> Option<Option<accel_p2p::PeerId>> {
    commands.iter().find_map(|command| match command {
        Command::Commit {
            stage: 1, donor, ..
        } => Some(*donor),
        _ => None,
    })
}

#[test]
fn whoever_may_give_its_cache_has_a_moment_longer_than_the_stages_to_say_so() {
    let (mut machine, commands) = replaced();
    assert_eq!(commands, [Command::Arm(OVERDUE)]);
    let commands = machine.on(prepared(2, GIVER, PROMPT - 2));
    assert_eq!(donor(&commands), Some(Some(peer(201))), "{commands:?}");
    assert_eq!(machine.on(Event::Timeout(OVERDUE)), []);
}

#[test]
fn whoever_says_nothing_or_has_nothing_to_give_holds_nobody_up() {
    let (mut machine, _) = replaced();
    let commands = machine.on(Event::Timeout(OVERDUE));
    assert_eq!(donor(&commands), Some(None), "{commands:?}");

    let (mut machine, _) = replaced();
    let commands = machine.on(Event::Refused {
        epoch: 2,
        stage: GIVER,
        failure: Failure::unavailable("nothing_kept", "nothing", ""),
    });
    assert_eq!(donor(&commands), Some(None), "{commands:?}");
}
