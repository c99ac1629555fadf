use super::super::fixtures::{machine, peer, route};
use super::super::tests::{prepare, run_under, running, running_over, token_under};
use super::super::{CHUNK, PEER_WAITS};
use crate::error::Failure;
use crate::planner::Weighed;
use crate::session::event::{Command, Event, Outcome, Timer};
use crate::session::recovery::{FaultKind, Remedy};
use crate::tolerance::FaultTolerance;

fn remedy(commands: &[Command]) -> Option<(FaultKind, Remedy, u64)> {
    commands.iter().find_map(|command| match command {
        Command::Recovering {
            fault,
            remedy,
            replayed,
            ..
        } => Some((*fault, *remedy, *replayed)),
        _ => None,
    })
}

#[test]
fn a_lost_peer_is_planned_without_until_it_is_heard_of_again() {
    let (mut machine, _) = running(5);
    let commands = machine.on(Event::PeerLost(peer(201)));
    let expected = (FaultKind::PeerLost, Remedy::FailOver, 5);
    assert_eq!(remedy(&commands), Some(expected));
    let plan = |excluding| Command::Plan {
        anew: false,
        epoch: 1,
        excluding,
    };
    assert_eq!(commands.last(), Some(&plan(vec![peer(201)])));
    assert_eq!(machine.state(), "recovering");
    let no_plan = Event::NoPlan {
        epoch: 1,
        failure: Failure::unavailable("no_peers", "too few peers", "wait"),
    };
    let timer = Timer::Peers { epoch: 1 };
    assert_eq!(machine.on(no_plan), [Command::Arm(timer)]);
    machine.on(Event::PeerHeard(peer(201)));
    assert_eq!(machine.on(Event::Timeout(timer)), [plan(Vec::new())]);
    let route = route(&[200, 201]);
    let commands = machine.on(Event::Planned {
        epoch: 1,
        route,
        weighed: None,
    });
    assert_eq!(commands[0], prepare(2, 0));
}

#[test]
fn as_long_as_tokens_come_any_number_of_peers_may_be_lost() {
    let (mut machine, mut commands) = running(5);
    for epoch in 1..40 {
        let step = commands.iter().find_map(|command| match command {
            Command::Forward { step, .. } => Some(*step),
            _ => None,
        });
        let position = 5 + epoch - 1;
        let drawn = token_under(epoch, step.expect("a step"), position, 7);
        machine.on(drawn);
        machine.on(Event::Journaled { index: epoch - 1 });
        machine.on(Event::Emitted { index: epoch - 1 });
        let lost = machine.route[0].peer;
        let commands_then = machine.on(Event::PeerLost(lost));
        let expected = (FaultKind::PeerLost, Remedy::FailOver, position + 1);
        assert_eq!(remedy(&commands_then), Some(expected), "the {epoch}th loss");
        machine.on(Event::PeerHeard(lost));
        let route = route(&[200 + epoch as u8 % 2, 210]);
        machine.on(Event::Planned {
            epoch,
            route,
            weighed: None,
        });
        commands = run_under(&mut machine, epoch + 1, 2);
    }
}

#[test]
fn a_session_that_lost_a_peer_waits_for_others_for_a_bounded_time() {
    let (mut machine, _) = running(5);
    machine.on(Event::PeerLost(peer(201)));
    for _ in 0..PEER_WAITS {
        machine.on(Event::NoPlan {
            epoch: 1,
            failure: Failure::unavailable("no_peers", "too few peers", "wait"),
        });
        machine.on(Event::Timeout(Timer::Peers { epoch: 1 }));
    }
    let commands = machine.on(Event::NoPlan {
        epoch: 1,
        failure: Failure::unavailable("no_peers", "too few peers", "wait"),
    });
    let [
        Command::Release { .. },
        Command::Release { .. },
        Command::Close(Outcome::Failed(failure)),
    ] = commands.as_slice()
    else {
        panic!("what was kept is released: {commands:?}");
    };
    assert_eq!(failure.code, "no_stand_in");
    assert!(failure.message.contains("left the swarm"), "{failure}");
    assert!(failure.message.contains("too few peers"), "{failure}");
}

#[test]
fn a_peer_that_is_lost_before_the_first_placement_is_done_is_waited_for() {
    for (level, is_waited_for) in [
        (FaultTolerance::None, false),
        (FaultTolerance::Medium, true),
    ] {
        let mut machine = machine(level, 5, 2);
        machine.on(Event::Opened);
        let plan = machine.on(Event::PeerLost(peer(201)));
        let excluding = vec![peer(201)];
        let epoch = 1;
        assert_eq!(
            plan.last(),
            Some(&Command::Plan {
                epoch,
                excluding,
                anew: false,
            })
        );
        let no_plan = || Event::NoPlan {
            epoch,
            failure: Failure::unavailable("no_peers", "too few peers", "wait"),
        };
        let commands = machine.on(no_plan());
        if !is_waited_for {
            let [Command::Close(Outcome::Failed(failure))] = commands.as_slice() else {
                panic!("{commands:?}");
            };
            assert_eq!(failure.code, "peer_lost");
            continue;
        }
        let expected = (FaultKind::PeerLost, Remedy::FailOver, 0);
        assert_eq!(remedy(&commands), Some(expected));
        let timer = Timer::Peers { epoch };
        assert_eq!(machine.on(no_plan()), [Command::Arm(timer)]);
        machine.on(Event::PeerHeard(peer(201)));
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
    }
}

#[test]
fn a_route_that_was_planned_as_a_whole_is_so_planned_until_the_next_token() {
    let (mut machine, _) = running_over(2, 5);
    machine.on(Event::PeerLost(peer(201)));
    let dear = Weighed {
        next_ns: 0,
        keep_ns: Some(200),
        anew_ns: 100,
    };
    let commands = machine.on(Event::Planned {
        epoch: 1,
        route: route(&[210, 211]),
        weighed: Some(dear),
    });
    let (strategy, weighed) = ("coordinated", dear);
    assert_eq!(
        commands.first(),
        Some(&Command::Weighed { strategy, weighed })
    );
    assert_eq!(machine.ran_over()[1].peer, peer(201), "nothing ran since");
    let is_anew = |commands: &[Command]| match commands.last() {
        Some(Command::Plan { anew, .. }) => *anew,
        other => panic!("{other:?}"),
    };
    let refused = machine.on(Event::Refused {
        epoch: 2,
        stage: 0,
        failure: Failure::unavailable("no_memory", "no memory", "free some"),
    });
    assert!(
        is_anew(&refused),
        "what is loaded elsewhere counts for nothing"
    );
    machine.on(Event::Planned {
        epoch: 2,
        route: route(&[212, 211]),
        weighed: None,
    });
    let running = run_under(&mut machine, 3, 2);
    let step = running.iter().find_map(|command| match command {
        Command::Forward { step, .. } => Some(*step),
        _ => None,
    });
    machine.on(token_under(3, step.expect("a step"), 5, 7));
    let lost = machine.on(Event::PeerLost(peer(212)));
    assert!(!is_anew(&lost), "a token came");
    assert_eq!(machine.ran_over()[0].peer, peer(212));
}

#[test]
fn unanswered_steps_are_sent_again_as_they_were_then_the_route_is_built_anew() {
    let (mut machine, sent) = running_over(2, 3 * CHUNK);
    let forwards = |commands: &[Command]| -> Vec<Command> {
        let is_forward = |command: &&Command| matches!(command, Command::Forward { .. });
        commands.iter().filter(is_forward).cloned().collect()
    };
    let timer = Timer::Step {
        epoch: 1,
        step: 1,
        rows: CHUNK as u32,
    };
    let commands = machine.on(Event::Timeout(timer));
    assert_eq!(
        remedy(&commands),
        Some((FaultKind::StepTimeout, Remedy::Resume, 0))
    );
    assert!(commands.contains(&Command::Reconnect { epoch: 1 }));
    assert_eq!(forwards(&commands), forwards(&sent));

    let commands = machine.on(Event::Timeout(timer));
    let expected = (FaultKind::StepTimeout, Remedy::Restart, 3 * CHUNK as u64);
    assert_eq!(remedy(&commands), Some(expected));
    let Some(Command::Arm(pause @ Timer::Pause { .. })) = commands.last() else {
        panic!("{commands:?}");
    };
    let commands = machine.on(Event::Timeout(*pause));
    assert_eq!(commands, [prepare(2, 0), prepare(2, 1)]);
}
