use super::*;

fn fault(kind: FaultKind) -> Fault {
    Fault {
        kind,
        culprit: None,
        failure: Failure::unavailable("step_failed", "a stage failed", "try again"),
    }
}

fn attempt(number: u32) -> Attempt {
    Attempt { number, salt: 7 }
}

/// The remedies of a strategy for a fault that comes again and again, until it gives up.
fn remedies(level: FaultTolerance, kind: FaultKind) -> Vec<Remedy> {
    remedies_of(strategy(level).expect("it has a strategy"), kind)
}

fn remedies_of(strategy: &dyn Strategy, kind: FaultKind) -> Vec<Remedy> {
    let mut remedies = Vec::new();
    for number in 0..100 {
        match strategy.decide(&fault(kind), attempt(number)) {
            Decision::Try { remedy, .. } => remedies.push(remedy),
            Decision::GiveUp(_) => return remedies,
        }
    }
    panic!("{kind:?}: it never gives up");
}

#[test]
fn simple_asks_the_same_peers_three_times() {
    let expected = [Remedy::Resume, Remedy::Restart, Remedy::Restart];
    for kind in [
        FaultKind::PeerLost,
        FaultKind::StepFailed,
        FaultKind::StepTimeout,
        FaultKind::PlacementFailed,
    ] {
        assert_eq!(remedies(FaultTolerance::Low, kind), expected, "{kind:?}");
    }
}

#[test]
fn progressive_tries_what_is_cheap_first_and_replaces_a_lost_peer_at_once() {
    use Remedy::{FailOver, Restart, Resume};
    let cases = [
        (FaultKind::PeerLost, [FailOver, FailOver, FailOver]),
        (FaultKind::PlacementFailed, [FailOver, FailOver, FailOver]),
        (FaultKind::StepFailed, [Restart, FailOver, FailOver]),
        (FaultKind::StepTimeout, [Resume, Restart, FailOver]),
    ];
    for (kind, expected) in cases {
        let remedies = remedies(FaultTolerance::Medium, kind);
        assert_eq!(remedies[..3], expected, "{kind:?}");
        assert_eq!(remedies.len(), 10, "{kind:?}");
    }
}

#[test]
fn stand_ins_get_ready_beside_a_route_that_may_only_be_slow_where_that_is_worth_it() {
    use Remedy::{FailOver, Race};
    let wager = |stand_ins| Wager {
        stand_ins: Duration::from_secs(stand_ins),
        patience: Duration::from_secs(10),
        odds: wager::Odds::default(),
    };
    for level in [FaultTolerance::Medium, FaultTolerance::High] {
        let usual = strategy(level).expect("it has a strategy");
        assert_eq!(by_wager(usual, &wager(60)).name(), usual.name(), "{level}");
        let parallel = by_wager(usual, &wager(1));
        assert_eq!(parallel.name(), "parallel", "{level}");
        let cases = [
            (FaultKind::PeerLost, [FailOver, FailOver, FailOver]),
            (FaultKind::StepFailed, [FailOver, FailOver, FailOver]),
            (FaultKind::StepTimeout, [Race, Race, FailOver]),
        ];
        for (kind, expected) in cases {
            assert_eq!(remedies_of(parallel, kind)[..3], expected, "{kind:?}");
        }
    }
    let simple = strategy(FaultTolerance::Low).expect("it has a strategy");
    assert_eq!(
        by_wager(simple, &wager(1)).name(),
        "simple",
        "it keeps its peers"
    );
}

#[test]
fn the_route_is_planned_as_a_whole_where_that_is_cheaper_and_allowed() {
    let dear = Weighed {
        keep_ns: Some(200),
        anew_ns: 100,
        next_ns: 0,
    };
    let bearable = Weighed {
        keep_ns: Some(125),
        ..dear
    };
    let impossible = Weighed {
        keep_ns: None,
        ..dear
    };
    for level in [FaultTolerance::Medium, FaultTolerance::High] {
        let usual = strategy(level).expect("it has a strategy");
        let names = [bearable, dear, impossible].map(|weighed| by_price(usual, &weighed).name());
        assert_eq!(
            names,
            [usual.name(), "coordinated", "coordinated"],
            "{level}"
        );
    }
    let simple = strategy(FaultTolerance::Low).expect("it has a strategy");
    assert_eq!(
        by_price(simple, &dear).name(),
        "simple",
        "it keeps its peers"
    );
    let medium = strategy(FaultTolerance::Medium).expect("it has a strategy");
    let decision = by_price(medium, &dear).decide(&fault(FaultKind::PeerLost), attempt(0));
    let (remedy, after) = (Remedy::Replan, Duration::ZERO);
    assert_eq!(decision, Decision::Try { remedy, after });
}

#[test]
fn what_is_wrong_with_the_request_is_not_tried_again() {
    for level in [
        FaultTolerance::Low,
        FaultTolerance::Medium,
        FaultTolerance::High,
    ] {
        let mut fault = fault(FaultKind::StepFailed);
        "context_overflow".clone_into(&mut fault.failure.code);
        let strategy = strategy(level).expect("it has a strategy");
        let decision = strategy.decide(&fault, attempt(0));
        assert_eq!(decision, Decision::GiveUp(fault.failure), "{level}");
    }
}

#[test]
fn pauses_double_up_to_five_seconds_and_differ_between_sessions() {
    for number in 0..40 {
        let least = Duration::from_millis(100 << number.min(16)).min(Duration::from_secs(5));
        for salt in 0..50 {
            let pause = Attempt { number, salt }.pause();
            assert!(pause >= least, "{number}: {pause:?}");
            assert!(pause <= (least * 3 / 2).min(Duration::from_secs(5)));
        }
    }
    let of = |salt| Attempt { number: 0, salt }.pause();
    assert_ne!(of(1), of(2));
}

#[test]
fn without_a_token_progressive_lasts_longer_than_a_restart_of_a_peer_takes() {
    let total: Duration = (1..10).map(|number| attempt(number).pause()).sum();
    assert!(total >= Duration::from_secs(25), "{total:?}");
}
