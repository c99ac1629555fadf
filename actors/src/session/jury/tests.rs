use super::*;
use crate::session::machine::fixtures::peer;

/// A statement about position 9 by these peers, with an output for each stage.
fn said(peers: [u8; 3], outputs: [u8; 3]) -> Statement {
    let claim = |output: u8| SignedClaim {
        input: [0; 32],
        output: [output; 32],
        signature: [0; 64],
    };
    Statement {
        position: 9,
        peers: peers.map(peer).to_vec(),
        claims: outputs.map(claim).to_vec(),
        drawn: Drawn {
            token: 1,
            logprob: 0.0,
            top: Vec::new(),
        },
    }
}

fn condemned(rulings: &[Ruling]) -> Vec<(Option<Lane>, PeerId)> {
    let condemned = rulings.iter().filter_map(|ruling| match ruling {
        Ruling::Condemn {
            lane,
            statement,
            stage,
        } => Some((*lane, statement.peers[*stage])),
        _ => None,
    });
    condemned.collect()
}

const A: [u8; 3] = [1, 2, 3];
const B: [u8; 3] = [4, 5, 6];

#[test]
fn what_both_lanes_say_is_accepted_and_what_only_one_says_waits() {
    let mut jury = Jury::default();
    assert_eq!(jury.said(Lane::Primary, said(A, [1, 2, 3])), []);
    assert_eq!(
        jury.said(Lane::Primary, said(A, [1, 2, 3])),
        [],
        "twice by one is not two"
    );
    let both = [Ruling::Accept(Lane::Primary), Ruling::Accept(Lane::Shadow)];
    assert_eq!(jury.said(Lane::Shadow, said(B, [1, 2, 3])), both);
    let again = jury.said(Lane::Shadow, said([4, 7, 6], [1, 2, 3]));
    assert_eq!(
        again,
        [Ruling::Accept(Lane::Shadow)],
        "a lane that lost a peer says it again"
    );
}

#[test]
fn two_lanes_that_share_a_peer_prove_nothing_about_its_stage() {
    let mut jury = Jury::default();
    jury.said(Lane::Primary, said(A, [1, 2, 3]));
    assert_eq!(jury.said(Lane::Shadow, said([4, 2, 6], [1, 2, 3])), []);
}

#[test]
fn a_third_opinion_decides_at_the_first_boundary_at_which_lanes_differ() {
    for (liar, outputs) in [(Lane::Primary, [1, 9, 9]), (Lane::Shadow, [1, 9, 9])] {
        let mut jury = Jury::default();
        let honest = [1, 2, 3];
        let of = |lane| if lane == liar { outputs } else { honest };
        jury.said(Lane::Primary, said(A, of(Lane::Primary)));
        let rulings = jury.said(Lane::Shadow, said(B, of(Lane::Shadow)));
        let excluding = vec![peer(2), peer(5)];
        assert_eq!(rulings, [Ruling::Convene { excluding }]);
        let rulings = jury.said(Lane::Third, said([7, 8, 9], honest));
        let (guilty, other) = match liar {
            Lane::Primary => (peer(2), Lane::Shadow),
            _ => (peer(5), Lane::Primary),
        };
        assert_eq!(condemned(&rulings), [(Some(liar), guilty)]);
        assert!(
            rulings.contains(&Ruling::Accept(other)),
            "the other lane goes on"
        );
        assert!(!rulings.contains(&Ruling::Accept(liar)));
        let rulings = jury.said(liar, said([1, 8, 3], honest));
        assert_eq!(
            rulings,
            [Ruling::Accept(liar)],
            "and so does the lane, without the liar"
        );
    }
}

#[test]
fn a_third_lane_over_peers_of_the_others_settles_only_what_two_peers_have_said() {
    let mut jury = Jury::default();
    jury.said(Lane::Primary, said(A, [1, 2, 3]));
    jury.said(Lane::Shadow, said(B, [9, 8, 8]));
    // The stages behind are computed by those of the primary lane.
    let rulings = jury.said(Lane::Third, said([7, 2, 3], [1, 2, 3]));
    assert_eq!(condemned(&rulings), [(Some(Lane::Shadow), peer(4))]);
    assert!(
        !rulings.contains(&Ruling::Accept(Lane::Primary)),
        "{rulings:?}"
    );
    let both = [Ruling::Accept(Lane::Primary), Ruling::Accept(Lane::Shadow)];
    assert_eq!(jury.said(Lane::Shadow, said([7, 5, 6], [1, 2, 3])), both);
}

#[test]
fn a_third_opinion_that_lies_is_found_out_by_the_next() {
    let mut jury = Jury::default();
    jury.said(Lane::Primary, said(A, [1, 2, 3]));
    jury.said(Lane::Shadow, said(B, [9, 2, 3]));
    let rulings = jury.said(Lane::Third, said([7, 8, 9], [5, 5, 5]));
    let excluding = vec![peer(1), peer(4), peer(7)];
    assert_eq!(rulings, [Ruling::Convene { excluding }]);
    let rulings = jury.said(Lane::Third, said([8, 9, 10], [1, 2, 3]));
    let guilty = [(Some(Lane::Shadow), peer(4)), (None, peer(7))];
    assert_eq!(condemned(&rulings), guilty);
    assert!(rulings.contains(&Ruling::Accept(Lane::Primary)));
}

#[test]
fn a_lie_is_remembered_when_its_lane_has_gone_on_without_the_liar() {
    let mut jury = Jury::default();
    jury.said(Lane::Primary, said(A, [1, 9, 9]));
    jury.said(Lane::Shadow, said(B, [1, 2, 3]));
    let rulings = jury.said(Lane::Primary, said([1, 7, 3], [1, 2, 3]));
    assert_eq!(condemned(&rulings), [(None, peer(2))]);
    assert!(
        rulings.contains(&Ruling::Dismiss),
        "nobody else need be asked"
    );
    assert!(rulings.contains(&Ruling::Accept(Lane::Primary)));
    assert!(rulings.contains(&Ruling::Accept(Lane::Shadow)));
}

#[test]
fn who_differs_from_what_is_settled_is_against_two() {
    let mut jury = Jury::default();
    jury.said(Lane::Primary, said(A, [1, 2, 3]));
    jury.said(Lane::Shadow, said(B, [1, 2, 3]));
    let rulings = jury.said(Lane::Primary, said([1, 2, 7], [1, 2, 4]));
    assert_eq!(condemned(&rulings), [(Some(Lane::Primary), peer(7))]);
}

#[test]
fn without_a_majority_nobody_is_condemned() {
    let mut jury = Jury::default();
    jury.said(Lane::Primary, said(A, [1, 2, 3]));
    jury.said(Lane::Shadow, said(B, [2, 2, 3]));
    assert_eq!(jury.third_is_gone(), [Ruling::Undecided]);
    assert_eq!(jury.third_is_gone(), [], "told once");

    let mut jury = Jury::default();
    jury.said(Lane::Primary, said(A, [1, 2, 3]));
    jury.said(Lane::Shadow, said(B, [2, 2, 3]));
    let mut last = Vec::new();
    for n in 0..MOST_OPINIONS as u8 {
        last = jury.said(Lane::Third, said([10 + n, 20, 30], [100 + n, 2, 3]));
        assert_eq!(condemned(&last), []);
    }
    assert_eq!(last, [Ruling::Undecided]);
}

#[test]
fn a_lane_that_is_behind_catches_up_with_what_is_settled() {
    let at = |position, mut statement: Statement| {
        statement.position = position;
        statement
    };
    let mut jury = Jury::default();
    for position in 9..12 {
        // The shadow lane lies each time, and is behind while it goes on without the liar.
        jury.said(Lane::Primary, at(position, said(A, [1, 2, 3])));
        jury.said(Lane::Shadow, at(position, said(B, [9, 8, 8])));
        let rulings = jury.said(Lane::Third, at(position, said([7, 8, 9], [1, 2, 3])));
        assert!(
            rulings.contains(&Ruling::Accept(Lane::Primary)),
            "{rulings:?}"
        );
    }
    for position in 9..12 {
        let rulings = jury.said(Lane::Shadow, at(position, said([7, 5, 6], [1, 2, 3])));
        assert_eq!(rulings, [Ruling::Accept(Lane::Shadow)]);
    }
    for position in 12..12 + REMEMBERED as u64 {
        jury.said(Lane::Primary, at(position, said(A, [1, 2, 3])));
        jury.said(Lane::Shadow, at(position, said(B, [1, 2, 3])));
    }
    let rulings = jury.said(Lane::Shadow, at(11, said(B, [1, 2, 3])));
    assert_eq!(rulings, [Ruling::Undecided], "nobody remembers");
}

#[test]
fn one_lane_alone_settles_nothing_also_over_other_peers() {
    let mut jury = Jury::default();
    jury.said(Lane::Primary, said(A, [1, 2, 3]));
    assert_eq!(jury.said(Lane::Primary, said(B, [1, 2, 3])), []);
}
