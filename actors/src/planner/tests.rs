use accel_inference::{KvFormat, LayerRange, ModelShape};
use accel_p2p::PeerId;
use proptest::prelude::*;

use super::cost::Costs;
use super::*;

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn shape(layers: u32) -> ModelShape {
    ModelShape {
        architecture: "llama".into(),
        name: None,
        layers,
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        feed_forward: 128,
        vocab: 1000,
        context: 2048,
        layer_bytes: (0..layers)
            .map(|layer| MIB + u64::from(layer % 3) * 1000)
            .collect(),
        embedding_bytes: 2 * MIB,
        head_bytes: 2 * MIB + 256,
        tied_embeddings: true,
        quantisation: "Q4_0".into(),
    }
}

/// A peer id that depends on nothing but `n`.
pub(super) fn id(n: u8) -> PeerId {
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend([n; 32]);
    PeerId::from_bytes(&bytes).expect("an identity multihash of an ed25519 key")
}

pub(super) fn peer(n: u8, memory_mib: u64, gb_s: f32) -> PeerFacts {
    PeerFacts {
        peer: id(n),
        is_self: n == 0,
        memory_bytes: memory_mib * MIB,
        max_layers: None,
        gb_s,
        numerics: "test-1".into(),
        present_bytes: 0,
    }
}

pub(super) fn request<'a>(shape: &'a ModelShape, peers: &'a [PeerFacts]) -> PlanRequest<'a> {
    PlanRequest {
        shape,
        model_bytes: 20 * MIB,
        tokens: 100,
        peers,
        held: &[],
        progress: Progress::default(),
        warm: &[],
    }
}

fn ranges(plan: &Plan) -> Vec<(u32, u32)> {
    let stages = plan.stages.iter();
    stages
        .map(|stage| (stage.layers.first, stage.layers.end))
        .collect()
}

#[test]
fn costs_agree_with_the_shape_for_every_range() {
    for tied in [true, false] {
        let shape = ModelShape {
            tied_embeddings: tied,
            ..shape(7)
        };
        let costs = Costs::new(&shape, 10, KvFormat::F16);
        for first in 0..7 {
            for end in first + 1..=7 {
                let range = LayerRange::new(first, end);
                assert_eq!(costs.weights(range), shape.stage_bytes(&range), "{range}");
            }
        }
    }
}

#[test]
fn what_fits_whole_is_not_split() {
    let shape = shape(10);
    let peers = [peer(0, 100, 1.0), peer(1, 100, 50.0), peer(2, 100, 49.0)];
    let plan = plan(&request(&shape, &peers)).unwrap();
    assert_eq!(ranges(&plan), [(0, 10)]);
    assert_eq!(plan.stages[0].peer, id(1), "the fastest one takes it");
}

#[test]
fn at_a_near_tie_the_holder_of_the_blocks_wins_and_then_this_node() {
    let shape = ModelShape {
        layer_bytes: vec![500 * MIB; 10],
        ..shape(10)
    };
    let mut peers = [
        peer(0, 9000, 20.0),
        peer(1, 9000, 21.0),
        peer(2, 9000, 20.5),
    ];
    assert!(plan(&request(&shape, &peers)).unwrap().stages[0].is_self);
    peers[2].present_bytes = 20 * MIB;
    assert_eq!(
        plan(&request(&shape, &peers)).unwrap().stages[0].peer,
        id(2)
    );
    peers[1].gb_s = 60.0;
    assert_eq!(
        plan(&request(&shape, &peers)).unwrap().stages[0].peer,
        id(1)
    );
}

#[test]
fn limits_on_layers_force_a_split_and_equals_share_equally() {
    let shape = shape(12);
    let peers = [0, 1, 2].map(|n| PeerFacts {
        max_layers: Some(5),
        ..peer(n, 100, 10.0)
    });
    let plan = plan(&request(&shape, &peers)).unwrap();
    assert_eq!(plan.stages.len(), 3);
    assert!(plan.stages[0].is_self, "this node first saves a hop");
    let lengths: Vec<u32> = plan.stages.iter().map(|stage| stage.layers.len()).collect();
    assert!(
        lengths.iter().all(|&length| (3..=5).contains(&length)),
        "{lengths:?}"
    );
}

#[test]
fn the_faster_peer_gets_more_layers() {
    let shape = ModelShape {
        layer_bytes: vec![100 * MIB; 12],
        ..shape(12)
    };
    let peers = [peer(0, 900, 5.0), peer(1, 900, 50.0)];
    let plan = plan(&request(&shape, &peers)).unwrap();
    let layers_of = |n| {
        let stage = plan
            .stages
            .iter()
            .find(|stage| stage.peer == id(n))
            .unwrap();
        stage.layers.len()
    };
    assert!(layers_of(1) > layers_of(0), "{:?}", ranges(&plan));
}

#[test]
fn a_model_that_fits_nowhere_says_how_much_is_missing() {
    let shape = shape(10);
    let peers = [peer(0, 3, 10.0), peer(1, 3, 10.0)];
    let error = plan(&request(&shape, &peers)).unwrap_err();
    let PlanError::TooLittleMemory {
        needed,
        available,
        missing,
        peers,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((*available, *missing), (6 * MIB, needed - available));
    assert_eq!(peers.len(), 2);
    assert!(error.to_string().contains("missing"), "{error}");
    assert!(!error.hint().is_empty());
}

#[test]
fn when_only_the_limits_on_layers_forbid_it_the_error_says_so() {
    let shape = shape(10);
    let peers = [0, 1].map(|n| PeerFacts {
        max_layers: Some(3),
        ..peer(n, 100, 10.0)
    });
    let error = plan(&request(&shape, &peers)).unwrap_err();
    assert_eq!(error.code(), "layer_limits");
    assert!(error.to_string().contains("at most 3 layers"), "{error}");
}

#[test]
fn numerics_classes_are_never_mixed() {
    let shape = shape(10);
    let other = PeerFacts {
        numerics: "test-2".into(),
        ..peer(1, 10, 10.0)
    };
    let error = plan(&request(&shape, &[peer(0, 10, 10.0), other])).unwrap_err();
    assert_eq!(error.code(), "mixed_numerics");
}

#[test]
fn a_cache_in_eight_bits_holds_longer_contexts_and_is_no_class_to_mix() {
    let shape = shape(10);
    let with_kv = |n, memory, kv: KvFormat| PeerFacts {
        numerics: kv.numerics().into(),
        ..peer(n, memory, 10.0)
    };
    // 98 MiB of cache with sixteen bits, 52 with eight.
    let long = |peers: &[PeerFacts]| {
        plan(&PlanRequest {
            tokens: 40_000,
            ..request(&shape, peers)
        })
    };
    let [half, bytes] = KvFormat::ALL.map(|kv| with_kv(0, 80, kv));
    let error = long(&[half]).unwrap_err();
    assert_eq!(error.code(), "insufficient_memory");
    let PlanError::TooLittleMemory { needed, .. } = error else {
        panic!("{error}");
    };
    let plan = long(&[bytes]).unwrap();
    assert_eq!(plan.numerics, KvFormat::Q8.numerics());
    let planned = plan.stages[0].weights_bytes + plan.stages[0].kv_bytes;
    assert_eq!(plan.stages[0].kv_bytes, 40_000 * 10 * 2 * 2 * (32 + 2));
    assert!(planned < needed);

    let mixed = [with_kv(0, 40, KvFormat::F16), with_kv(1, 40, KvFormat::Q8)];
    assert_eq!(long(&mixed).unwrap_err().code(), "mixed_numerics");
}

#[test]
fn a_swarm_of_many_small_peers_holds_what_six_cannot() {
    let shape = shape(40);
    let peers: Vec<PeerFacts> = (0..20).map(|n| peer(n, 5, 10.0)).collect();
    let plan = plan(&request(&shape, &peers)).unwrap();
    assert!(plan.stages.len() > 6);
    assert_eq!(plan.stages.last().unwrap().layers.end, 40);
}

prop_compose! {
    fn any_peer()(
        n in 0u8..12,
        memory in 0u64..30,
        gb_s in 0.0f32..60.0,
        limit in proptest::option::of(1u32..12),
        class in 0u8..2,
        present in proptest::bool::ANY,
    ) -> PeerFacts {
        PeerFacts {
            max_layers: limit,
            numerics: format!("test-{class}"),
            present_bytes: if present { 20 * MIB } else { 0 },
            ..peer(n, memory, gb_s)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_plan_covers_all_layers_once_within_every_limit(
        layers in 1u32..16,
        peers in proptest::collection::vec(any_peer(), 1..9),
    ) {
        let shape = shape(layers);
        let Ok(plan) = plan(&request(&shape, &peers)) else { return Ok(()) };
        let mut next = 0;
        let mut used = std::collections::BTreeSet::new();
        for stage in &plan.stages {
            prop_assert_eq!(stage.layers.first, next);
            prop_assert!(stage.layers.end > next);
            next = stage.layers.end;
            prop_assert!(used.insert(stage.peer), "a peer serves one stage");
            // Of several entries for one peer, the first one counts.
            let facts = peers.iter().find(|peer| peer.peer == stage.peer).unwrap();
            prop_assert!(stage.weights_bytes + stage.kv_bytes <= facts.memory_bytes);
            prop_assert!(facts.max_layers.is_none_or(|most| stage.layers.len() <= most));
            prop_assert_eq!(&facts.numerics, &plan.numerics);
        }
        prop_assert_eq!(next, layers);
    }

    #[test]
    fn a_plan_has_one_stage_exactly_when_some_peer_can_hold_everything(
        layers in 1u32..16,
        mut peers in proptest::collection::vec(any_peer(), 1..7),
    ) {
        peers.sort_by_key(|peer| peer.peer);
        peers.dedup_by_key(|peer| peer.peer);
        let shape = shape(layers);
        let costs = Costs::new(&shape, 100, KvFormat::F16);
        let someone = peers.iter().any(|peer| costs.fits(costs.whole(), peer));
        let single = plan(&request(&shape, &peers)).is_ok_and(|plan| plan.stages.len() == 1);
        prop_assert_eq!(single, someone);
    }

    #[test]
    fn the_order_of_the_peers_does_not_matter(
        layers in 1u32..12,
        mut peers in proptest::collection::vec(any_peer(), 1..8),
    ) {
        peers.sort_by_key(|peer| peer.peer);
        peers.dedup_by_key(|peer| peer.peer);
        let shape = shape(layers);
        let forward = plan(&request(&shape, &peers));
        peers.reverse();
        prop_assert_eq!(forward, plan(&request(&shape, &peers)));
    }
}

/// Four peers of which three take the nine layers, and the route over them.
pub(super) fn three_of_four(shape: &ModelShape) -> (Vec<PeerFacts>, Vec<(PeerId, LayerRange)>) {
    let limited = |n| PeerFacts {
        max_layers: Some(3),
        ..peer(n, 100, 10.0)
    };
    let peers: Vec<PeerFacts> = (0..4).map(limited).collect();
    let planned = plan(&request(shape, &peers)).expect("it fits");
    let held = planned
        .stages
        .iter()
        .map(|stage| (stage.peer, stage.layers));
    let held = held.collect();
    (peers, held)
}
