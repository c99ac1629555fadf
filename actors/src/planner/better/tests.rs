use accel_inference::{LayerRange, ModelShape};
use accel_p2p::PeerId;

use super::super::tests::{MIB, peer, request, shape, three_of_four};
use super::*;
use crate::planner::{PeerFacts, Progress, plan};

/// A held route of three peers and a fourth without limits, and the free one's index.
fn held_and_free(gb_s: f32) -> (ModelShape, Vec<PeerFacts>, Vec<(PeerId, LayerRange)>) {
    let shape = shape(9);
    let (mut peers, held) = three_of_four(&shape);
    for peer in &mut peers {
        let is_held = held.iter().any(|(known, _)| *known == peer.peer);
        peer.present_bytes = 20 * MIB;
        if !is_held {
            peer.gb_s = gb_s;
        }
    }
    (shape, peers, held)
}

fn moves(
    shape: &ModelShape,
    peers: &[PeerFacts],
    held: &[(PeerId, LayerRange)],
    to_come: u64,
) -> Option<(Plan, Why)> {
    let progress = Progress {
        computed: 0,
        to_come,
    };
    let request = PlanRequest {
        held,
        progress,
        ..request(shape, peers)
    };
    better(&request, false)
}

#[test]
fn a_session_moves_off_a_peer_that_wants_to_leave_and_the_others_keep_their_layers() {
    let (shape, peers, held) = held_and_free(1.0);
    for (leaving, layers) in &held {
        let others: Vec<PeerFacts> = peers
            .iter()
            .filter(|p| p.peer != *leaving)
            .cloned()
            .collect();
        let (found, why) = moves(&shape, &others, &held, 16).expect("somebody is free");
        assert_eq!(why, Why::Draining);
        for stage in &found.stages {
            let stays = held.contains(&(stage.peer, stage.layers));
            assert!(stays || stage.layers == *layers, "{stage:?}");
        }
        let few: Vec<PeerFacts> = others
            .iter()
            .filter(|p| held.iter().any(|(h, _)| *h == p.peer))
            .cloned()
            .collect();
        assert_eq!(moves(&shape, &few, &held, 16), None, "nobody is free");
    }
}

#[test]
fn a_session_moves_to_a_peer_that_is_much_faster_if_enough_tokens_are_to_come() {
    const MANY: u64 = 100_000;
    let (shape, peers, held) = held_and_free(100.0);
    let slow = held.last().expect("a stage").0;
    let mut peers = peers;
    for peer in &mut peers {
        if peer.peer == slow {
            peer.gb_s = 0.2;
        }
    }
    let (found, why) = moves(&shape, &peers, &held, MANY).expect("one is much slower");
    assert_eq!(why, Why::Faster);
    assert!(
        found.stages.iter().all(|stage| stage.peer != slow),
        "{found:?}"
    );
    assert_eq!(moves(&shape, &peers, &held, 0), None, "nothing is to come");
    let (shape, peers, held) = held_and_free(10.0);
    assert_eq!(moves(&shape, &peers, &held, MANY), None, "all are alike");
}

#[test]
fn where_nobody_is_free_layers_go_from_a_peer_that_became_slow_to_one_that_stays() {
    let shape = shape(9);
    let limited = |n, gb_s| PeerFacts {
        max_layers: Some(6),
        present_bytes: 20 * MIB,
        ..peer(n, 100, gb_s)
    };
    let before = [limited(1, 10.0), limited(2, 5.0)];
    let planned = plan(&request(&shape, &before)).expect("it fits");
    let stages = planned.stages.iter();
    let held: Vec<_> = stages.map(|stage| (stage.peer, stage.layers)).collect();
    let layers_of = |stages: &[PlannedStage], of: PeerId| {
        let mut stages = stages.iter();
        stages
            .find(|stage| stage.peer == of)
            .map(|stage| stage.layers.len())
    };
    let slowed = before[0].peer;
    assert_eq!(layers_of(&planned.stages, slowed), Some(6));
    let now = [limited(1, 0.5), limited(2, 5.0)];
    let better_for = |computed, to_come, cuts_anew| {
        let progress = Progress { computed, to_come };
        let request = PlanRequest {
            held: &held,
            progress,
            ..request(&shape, &now)
        };
        better(&request, cuts_anew)
    };
    let (found, why) = better_for(100, 100_000, true).expect("one is much slower");
    assert_eq!(why, Why::Faster);
    assert_eq!(layers_of(&found.stages, slowed), Some(3));
    assert_eq!(
        better_for(100, 100_000, false),
        None,
        "it came to nothing before"
    );
    assert_eq!(
        better_for(100_000, 1_000, true),
        None,
        "all would be computed again"
    );
}
