use accel_inference::LayerRange;
use accel_p2p::PeerId;

use super::super::tests::{MIB, id, peer, request, shape, three_of_four};
use super::*;
use crate::planner::{PeerFacts, plan, stand_ins};

#[test]
fn whoever_is_not_lost_keeps_its_layers() {
    let shape = shape(9);
    let (peers, held) = three_of_four(&shape);
    for (lost, range) in &held {
        let others: Vec<PeerFacts> = peers.iter().filter(|p| p.peer != *lost).cloned().collect();
        let again = PlanRequest {
            held: &held,
            ..request(&shape, &others)
        };
        let again = plan(&again).expect("it fits");
        for stage in &again.stages {
            let kept = held.contains(&(stage.peer, stage.layers));
            assert!(kept || stage.layers == *range, "{stage:?}");
        }
    }
}

#[test]
fn a_route_that_is_held_gives_way_to_one_that_is_much_faster() {
    let shape = shape(9);
    let (mut peers, held) = three_of_four(&shape);
    let spare = peers
        .iter()
        .position(|p| held.iter().all(|(h, _)| *h != p.peer));
    let spare = spare.expect("one of four is free");
    peers[spare].gb_s = 100.0;
    peers[spare].max_layers = None;
    let progress = Progress {
        computed: 100,
        to_come: 1,
    };
    let again = PlanRequest {
        held: &held,
        progress,
        ..request(&shape, &peers)
    };
    let kept = plan(&again).expect("it fits");
    assert!(kept.weighed.is_some_and(|weighed| weighed.keeps()));
    let stages = kept.stages.iter().map(|stage| (stage.peer, stage.layers));
    assert_eq!(stages.collect::<Vec<_>>(), held, "for one token it stays");
    let progress = Progress {
        to_come: 1000,
        ..progress
    };
    let moved = plan(&PlanRequest { progress, ..again }).expect("it fits");
    assert!(moved.weighed.is_some_and(|weighed| !weighed.keeps()));
    assert_eq!(moved.stages[0].peer, peers[spare].peer, "it takes it whole");
}

#[test]
fn a_spare_stands_in_for_each_peer_but_the_coordinator_and_the_plan_agrees() {
    let shape = shape(9);
    let (peers, held) = three_of_four(&shape);
    let early = Progress {
        computed: 100,
        to_come: 1000,
    };
    let late = Progress {
        computed: 1000,
        to_come: 100,
    };
    let foreseen = stand_ins(&PlanRequest {
        held: &held,
        progress: early,
        ..request(&shape, &peers)
    });
    let others = held.iter().filter(|(peer, _)| *peer != id(0));
    for (lost, _) in others {
        let left: Vec<PeerFacts> = peers.iter().filter(|p| p.peer != *lost).cloned().collect();
        let again = PlanRequest {
            held: &held,
            progress: late,
            warm: &foreseen,
            ..request(&shape, &left)
        };
        for stage in plan(&again).expect("it fits").stages {
            let stage = (stage.peer, stage.layers);
            assert!(held.contains(&stage) || foreseen.contains(&stage));
        }
    }
    assert!(foreseen.iter().all(|stage| !held.contains(stage)));
    assert!(foreseen.len() <= 3, "{foreseen:?}");
}

#[test]
fn where_nobody_can_take_over_nobody_stands_in() {
    let shape = shape(9);
    let (peers, held) = three_of_four(&shape);
    let route: Vec<PeerId> = held.iter().map(|(peer, _)| *peer).collect();
    let only: Vec<PeerFacts> = peers
        .into_iter()
        .filter(|p| route.contains(&p.peer))
        .collect();
    let foreseen = stand_ins(&PlanRequest {
        held: &held,
        ..request(&shape, &only)
    });
    assert_eq!(foreseen, []);
}

#[test]
fn whoever_was_asked_to_be_ready_takes_over_though_another_is_a_little_faster() {
    let shape = shape(9);
    let (mut peers, held) = three_of_four(&shape);
    let spare = peers
        .iter()
        .position(|p| held.iter().all(|(h, _)| *h != p.peer));
    let spare = peers[spare.expect("one of four is free")].clone();
    let faster = PeerFacts {
        peer: id(77),
        gb_s: spare.gb_s * 1.2,
        ..spare.clone()
    };
    peers.push(faster.clone());
    let (lost, range) = *held
        .iter()
        .find(|(peer, _)| *peer != id(0))
        .expect("another");
    peers.retain(|peer| peer.peer != lost);
    let takes_over = |warm: &[(PeerId, LayerRange)]| {
        let plan = plan(&PlanRequest {
            held: &held,
            progress: Progress {
                computed: 10,
                to_come: 10,
            },
            warm,
            ..request(&shape, &peers)
        });
        let stages = plan.expect("it fits").stages;
        stages
            .into_iter()
            .find(|stage| stage.layers == range)
            .map(|stage| stage.peer)
    };
    assert_eq!(takes_over(&[]), Some(faster.peer));
    assert_eq!(takes_over(&[(spare.peer, range)]), Some(spare.peer));
}

#[test]
fn a_session_on_one_peer_goes_to_the_best_of_the_others_when_that_is_lost() {
    let shape = shape(9);
    let held = [(id(9), LayerRange::whole(9))];
    let mut peers = vec![peer(0, 9000, 20.0), peer(1, 9000, 21.0)];
    peers[0].present_bytes = 20 * MIB;
    let progress = Progress {
        computed: 10,
        to_come: 1000,
    };
    let found = plan(&PlanRequest {
        held: &held,
        progress,
        ..request(&shape, &peers)
    });
    let found = found.expect("it fits");
    assert_eq!(found.stages[0].peer, id(0), "it has the blocks already");
    assert_eq!(found.weighed.and_then(|weighed| weighed.keep_ns), None);
}
