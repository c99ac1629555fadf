//! What becomes of a session whose node stops.

use super::super::fixtures::{self, first_peers, peer, route};
use super::*;
use crate::error::ErrorKind;
use crate::session::event::{Command, Drawn, Event, StageReport, Timer};
use crate::tolerance::FaultTolerance;

/// A session that runs on one stage and has drawn a token.
fn running(resumable: bool) -> Machine {
    let mut machine = fixtures::machine(FaultTolerance::Medium, 3, 1);
    machine.tolerance.resumable = resumable;
    machine.start();
    machine.on(Event::Opened);
    let (epoch, stage) = (1, 0);
    let report = StageReport::default();
    machine.on(Event::Prepared {
        epoch,
        stage,
        report,
    });
    machine.on(Event::Committed { epoch, stage });
    token(&mut machine, 1);
    machine
}

fn token(machine: &mut Machine, step: u64) -> Vec<Command> {
    let drawn = Drawn {
        token: 5,
        logprob: 0.0,
        top: Vec::new(),
    };
    let (epoch, position) = (1, 2 + step);
    machine.on(Event::Token {
        epoch,
        step,
        position,
        drawn,
    })
}

fn found(machine: &mut Machine, peers: &[u8]) -> Vec<Command> {
    let peers = peers.iter().map(|n| peer(*n)).collect();
    machine.on(Event::ReplicasFound { peers })
}

fn suspended(commands: &[Command]) -> Option<&Failure> {
    match commands.last() {
        Some(Command::Close(Outcome::Suspended(failure))) => Some(failure),
        _ => None,
    }
}

#[test]
fn it_computes_no_more_and_ends_once_a_peer_has_every_token() {
    let mut machine = running(true);
    let stage = route(&first_peers(1)).remove(0);
    let excluding = Vec::new();
    let expected = [
        Command::Release { epoch: 1, stage },
        Command::FindReplicas { excluding },
    ];
    assert_eq!(machine.on(Event::HandOver), expected);
    assert_eq!(machine.on(Event::HandOver), [], "once");
    assert_eq!(
        token(&mut machine, 2),
        [],
        "the step under way is for nobody"
    );
    assert!(!machine.holds_stages());
    let (peer, claim) = (peer(7), 0);
    let opened = found(&mut machine, &[7, 8]);
    assert_eq!(
        opened,
        [Command::OpenReplica { peer, claim }],
        "one is enough"
    );
    assert_eq!(machine.on(Event::Replicated { peer, tokens: 0 }), []);
    let commands = machine.on(Event::Replicated { peer, tokens: 1 });
    let [Command::Close(Outcome::HandedOver(failure))] = commands.as_slice() else {
        panic!("{commands:?}");
    };
    assert_eq!(failure.code, SESSION_MOVED);
    assert!(failure.hint.contains("Last-Event-ID"), "{}", failure.hint);
}

#[test]
fn without_peers_it_waits_on_the_disk_and_nobody_waits_for_it() {
    let mut machine = running(true);
    machine.on(Event::HandOver);
    let commands = found(&mut machine, &[]);
    assert_eq!(suspended(&commands), Some(&stopping()));
}

#[test]
fn a_peer_that_refuses_it_is_replaced_and_asked_again_when_nobody_else_is_there() {
    let mut machine = running(true);
    machine.on(Event::HandOver);
    found(&mut machine, &[7]);
    let failure = Failure::new(ErrorKind::Unavailable, "quota", "too much", "");
    let peer = peer(7);
    let commands = machine.on(Event::ReplicaLost { peer, failure });
    let excluding = vec![peer];
    assert_eq!(commands.last(), Some(&Command::FindReplicas { excluding }));
    assert_eq!(found(&mut machine, &[]), [Command::Arm(Timer::Replicas)]);
    let excluding = Vec::new();
    let again = machine.on(Event::Timeout(Timer::Replicas));
    assert_eq!(again, [Command::FindReplicas { excluding }]);
    let commands = machine.on(Event::Suspend(stopping()));
    assert_eq!(suspended(&commands), Some(&stopping()), "in the end");
}

#[test]
fn one_that_nobody_could_come_back_for_goes_on_as_long_as_it_may() {
    let mut machine = running(false);
    assert_eq!(machine.on(Event::HandOver), []);
    let commands = token(&mut machine, 2);
    assert!(matches!(
        commands.first(),
        Some(Command::JournalToken { index: 1, .. })
    ));
}

#[test]
fn one_that_is_placed_just_then_is_handed_over_without_a_token() {
    let mut machine = fixtures::machine(FaultTolerance::Medium, 3, 1);
    machine.tolerance.resumable = true;
    machine.start();
    machine.on(Event::Opened);
    let commands = machine.on(Event::HandOver);
    assert!(matches!(commands.first(), Some(Command::Release { .. })));
    found(&mut machine, &[7]);
    let (peer, tokens) = (peer(7), 0);
    let commands = machine.on(Event::Replicated { peer, tokens });
    let last = commands.last();
    assert!(
        matches!(last, Some(Command::Close(Outcome::HandedOver(_)))),
        "{last:?}"
    );
}
