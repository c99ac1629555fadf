//! Which peers keep the journal, and what that holds back.

use super::super::fixtures::{self, peer, route};
use super::super::{Machine, PEER_WAITS};
use super::*;
use crate::session::event::{Drawn, Event, StageReport};
use crate::tolerance::FaultTolerance;

/// A session that runs on one stage, whose replicas are being looked for.
fn running() -> Machine {
    let mut machine = fixtures::machine(FaultTolerance::High, 3, 1);
    machine.replication.wanted = REPLICAS;
    machine.tolerance.replicas = REPLICAS;
    machine.tolerance.resumable = true;
    machine.start();
    let commands = machine.on(Event::Opened);
    let excluding = Vec::new();
    assert!(commands.contains(&Command::FindReplicas { excluding }));
    let (epoch, stage) = (1, 0);
    let report = StageReport::default();
    machine.on(Event::Prepared {
        epoch,
        stage,
        report,
    });
    machine.on(Event::Committed { epoch, stage });
    machine
}

/// The next token comes and is journaled.
fn token(machine: &mut Machine, step: u64) -> Vec<Command> {
    let drawn = Drawn {
        token: 5,
        logprob: 0.0,
        top: Vec::new(),
    };
    let (epoch, index) = (1, step - 1);
    let position = 2 + step;
    machine.on(Event::Token {
        epoch,
        step,
        position,
        drawn,
    });
    machine.on(Event::Journaled { index })
}

fn found(machine: &mut Machine, peers: &[u8]) -> Vec<Command> {
    let peers = peers.iter().map(|n| peer(*n)).collect();
    machine.on(Event::ReplicasFound { peers })
}

fn replicated(machine: &mut Machine, n: u8, tokens: u64) -> Vec<Command> {
    let peer = peer(n);
    machine.on(Event::Replicated { peer, tokens })
}

fn emits(commands: &[Command]) -> Vec<u64> {
    let index = |command: &Command| match command {
        Command::Emit { index, .. } => Some(*index),
        _ => None,
    };
    commands.iter().filter_map(index).collect()
}

fn opened(commands: &[Command]) -> Vec<PeerId> {
    let peer = |command: &Command| match command {
        Command::OpenReplica { peer, .. } => Some(*peer),
        _ => None,
    };
    commands.iter().filter_map(peer).collect()
}

#[test]
fn a_token_is_emitted_once_it_is_durable_here_and_at_both_replicas() {
    let mut machine = running();
    let commands = found(&mut machine, &[1, 2, 3]);
    assert_eq!(opened(&commands), [peer(1), peer(2)]);
    assert_eq!(emits(&token(&mut machine, 1)), [0; 0]);
    assert_eq!(emits(&replicated(&mut machine, 1, 1)), [0; 0]);
    assert_eq!(emits(&replicated(&mut machine, 2, 0)), [0; 0]);
    assert_eq!(emits(&replicated(&mut machine, 2, 1)), [0]);
    // A replica may be ahead of the journal here.
    replicated(&mut machine, 1, 2);
    assert_eq!(emits(&replicated(&mut machine, 2, 2)), [0; 0]);
    assert_eq!(emits(&token(&mut machine, 2)), [1]);
}

#[test]
fn a_replica_that_is_lost_is_replaced_by_one_that_has_everything_before_anything_is_emitted() {
    let mut machine = running();
    found(&mut machine, &[1, 2]);
    replicated(&mut machine, 1, 0);
    replicated(&mut machine, 2, 0);
    let commands = machine.on(Event::PeerLost(peer(1)));
    assert!(commands.contains(&Command::DropReplica { peer: peer(1) }));
    let excluding = vec![peer(2), peer(1)];
    assert!(commands.contains(&Command::FindReplicas { excluding }));
    token(&mut machine, 1);
    assert_eq!(emits(&replicated(&mut machine, 2, 1)), [0; 0]);
    assert_eq!(opened(&found(&mut machine, &[2, 3])), [peer(3)]);
    assert_eq!(emits(&replicated(&mut machine, 1, 1)), [0; 0], "it is out");
    assert_eq!(emits(&replicated(&mut machine, 3, 1)), [0]);
}

#[test]
fn a_session_waits_for_replicas_for_a_bounded_time_and_may_be_gone_on_with() {
    let mut machine = running();
    token(&mut machine, 1);
    let mut waits = 0;
    let mut commands = found(&mut machine, &[1]);
    while commands.contains(&Command::Arm(Timer::Replicas)) {
        waits += 1;
        let asked = machine.on(Event::Timeout(Timer::Replicas));
        let excluding = vec![peer(1)];
        assert_eq!(asked, [Command::FindReplicas { excluding }]);
        commands = found(&mut machine, &[]);
    }
    assert_eq!(waits, PEER_WAITS);
    let Some(Command::Close(Outcome::Suspended(failure))) = commands.last() else {
        panic!("{commands:?}");
    };
    assert_eq!(failure.code, TOO_FEW_REPLICAS);
    assert!(failure.hint.contains("Last-Event-ID"), "{}", failure.hint);
    let stage = route(&fixtures::first_peers(1)).remove(0);
    assert!(commands.contains(&Command::Release { epoch: 1, stage }));
}

#[test]
fn a_replica_that_knows_a_newer_coordinator_ends_this_one() {
    let mut machine = running();
    found(&mut machine, &[1, 2]);
    let failure = Failure::unavailable(SESSION_MOVED, "taken over", "come back");
    let commands = machine.on(Event::ReplicaLost {
        peer: peer(2),
        failure,
    });
    let last = commands.last();
    assert!(
        matches!(last, Some(Command::Close(Outcome::Moved(_)))),
        "{last:?}"
    );
}
