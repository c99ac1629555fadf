mod beside;
mod copying;
mod keeping;
mod warm;
mod witnessing;

use std::sync::Arc;

use accel_inference::{Gguf, KvFormat, LayerRange, ModelShape};
use accel_p2p::PeerId;
use accel_p2p::wire::{
    ControlReply, ControlRequest, Hop, Keep, PeerEndpoint, SamplingWire, SessionId, StepInput,
    TensorFrame,
};
use accel_storage::ModelRecord;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{NEXT_STAGE_LOST, NextLost, Step};
use crate::error::Failure;
use crate::supervisor::{AskError, Crash};
use crate::testing::{Hub, PATIENCE, TestNode, synthetic_model};

const PLENTY: u64 = 1 << 30;
const PROMPT: [u32; 5] = [7, 300, 12, 45, 101];

/// A coordinator with stages, over a model that one of the nodes has.
struct Bench {
    hub: Arc<Hub>,
    coordinator: PeerId,
    frames: mpsc::Receiver<TensorFrame>,
    seeder: TestNode,
    model: ModelRecord,
    shape: ModelShape,
    _dir: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = synthetic_model(dir.path());
        let shape = ModelShape::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let hub = Arc::new(Hub::default());
        let seeder = TestNode::start(&hub, PLENTY, None);
        let model = seeder
            .store
            .add_file(&path, "small", &|_, _| {})
            .await
            .unwrap();
        hub.seed_from(seeder.store.clone());
        let (coordinator, frames) = hub.observer();
        Self {
            hub,
            coordinator,
            frames,
            seeder,
            model,
            shape,
            _dir: dir,
        }
    }

    fn prepare(&self, session: SessionId, epoch: u64, layers: LayerRange) -> ControlRequest {
        ControlRequest::Prepare {
            session,
            epoch,
            model: self.model.cid,
            model_bytes: self.model.bytes,
            layers: (layers.first, layers.end),
            total_layers: self.shape.layers,
            max_tokens: 64,
            lease_ms: 60_000,
            providers: Vec::new(),
            keep: Keep {
                cache: true,
                outputs: true,
                only: false,
                beside: 0,
            },
        }
    }

    /// The same, while the stage goes on under another epoch.
    fn prepare_beside(
        &self,
        session: SessionId,
        (epoch, present): (u64, u64),
        layers: LayerRange,
    ) -> ControlRequest {
        let mut request = self.prepare(session, epoch, layers);
        if let ControlRequest::Prepare { keep, .. } = &mut request {
            (keep.cache, keep.beside) = (false, present);
        }
        request
    }

    fn commit(
        &self,
        session: SessionId,
        epoch: u64,
        route: &[(PeerId, LayerRange)],
    ) -> ControlRequest {
        let hop = |(peer, layers): &(PeerId, LayerRange)| Hop {
            peer: *peer,
            tensor_addrs: Vec::new(),
            layers: (layers.first, layers.end),
        };
        ControlRequest::Commit {
            session,
            epoch,
            route: route.iter().map(hop).collect(),
            coordinator: PeerEndpoint {
                peer: self.coordinator,
                tensor_addrs: Vec::new(),
            },
            sampling: SamplingWire {
                temperature: 0.0,
                top_p: 1.0,
                min_p: 0.0,
                top_k: 0,
                seed: 0,
                top_logprobs: 0,
            },
            length: 0,
            donor: None,
        }
    }

    /// Prepares and commits the whole route.
    async fn place(&self, session: SessionId, epoch: u64, stages: &[(&TestNode, LayerRange)]) {
        for (node, layers) in stages {
            let reply = node
                .control(self.coordinator, self.prepare(session, epoch, *layers))
                .await;
            assert!(matches!(reply, Ok(ControlReply::Ready { .. })), "{reply:?}");
        }
        let route: Vec<_> = stages
            .iter()
            .map(|(node, layers)| (node.peer, *layers))
            .collect();
        for (node, _) in stages {
            let reply = node
                .control(self.coordinator, self.commit(session, epoch, &route))
                .await;
            assert_eq!(reply, Ok(ControlReply::Done));
        }
    }

    async fn step(&self, node: &TestNode, frame: TensorFrame) {
        let step = Step {
            from: self.coordinator,
            frame,
        };
        node.stage.ask(step, PATIENCE).await.unwrap();
    }

    async fn frame(&mut self) -> TensorFrame {
        let frame = tokio::time::timeout(PATIENCE, self.frames.recv()).await;
        frame.expect("a frame comes").expect("the hub is there")
    }

    /// Decodes greedily after the prompt.
    async fn answer(&mut self, session: SessionId, first: &TestNode, count: usize) -> Vec<u32> {
        let (mut answer, mut input, mut position) = (Vec::new(), PROMPT.to_vec(), 0);
        for step in 1..=count as u64 {
            let rows = input.len() as u64;
            self.step(first, tokens(session, 1, step, position, input))
                .await;
            let frame = self.frame().await;
            let TensorFrame::Token {
                token,
                position: at,
                ..
            } = frame
            else {
                panic!("{frame:?}");
            };
            position += rows;
            assert_eq!(at, position);
            answer.push(token);
            input = vec![token];
        }
        answer
    }
}

fn tokens(session: SessionId, epoch: u64, step: u64, position: u64, ids: Vec<u32>) -> TensorFrame {
    let input = StepInput::Tokens(ids);
    TensorFrame::Step {
        session,
        epoch,
        step,
        position,
        sample: true,
        until: 63,
        input,
    }
}

fn session(n: u8) -> SessionId {
    SessionId([n; 16])
}

fn range(first: u32, end: u32) -> LayerRange {
    LayerRange::new(first, end)
}

fn code(reply: Result<ControlReply, Failure>) -> String {
    reply.expect_err("a refusal").code
}

#[actix::test]
async fn stages_on_three_nodes_answer_as_one_and_fetch_only_their_part() {
    let mut bench = Bench::new().await;
    let whole = TestNode::start(&bench.hub, PLENTY, None);
    bench.place(session(1), 1, &[(&whole, range(0, 8))]).await;
    let expected = bench.answer(session(1), &whole, 6).await;

    let parts = [(); 3].map(|()| TestNode::start(&bench.hub, PLENTY, None));
    let ranges = [range(0, 3), range(3, 4), range(4, 8)];
    let stages: Vec<_> = parts.iter().zip(ranges).collect();
    bench.place(session(2), 1, &stages).await;
    assert_eq!(bench.answer(session(2), &parts[0], 6).await, expected);
    let present = parts[1].store.present_bytes(&bench.model.cid).unwrap();
    assert!(
        present < bench.model.bytes,
        "{present} of {}",
        bench.model.bytes
    );
}

#[actix::test]
async fn sessions_share_weights_and_release_gives_back_their_caches() {
    let bench = Bench::new().await;
    for n in [1, 2] {
        bench
            .place(session(n), 1, &[(&bench.seeder, range(0, 8))])
            .await;
    }
    let weights = bench.shape.stage_bytes(&range(0, 8));
    let kv = bench.shape.kv_bytes_per_token_layer(KvFormat::F16) * 8 * 64;
    assert_eq!(
        bench.seeder.shelf.memory(),
        (weights + 2 * kv, weights + 2 * kv)
    );
    for n in [1, 2] {
        let release = ControlRequest::Release {
            session: session(n),
            epoch: 1,
        };
        assert_eq!(
            bench.seeder.control(bench.coordinator, release).await,
            Ok(ControlReply::Done)
        );
    }
    assert_eq!(
        bench.seeder.shelf.memory(),
        (weights, 0),
        "the weights stay for the next one"
    );
}

#[actix::test]
async fn a_cache_in_eight_bits_is_reserved_as_such_and_is_a_class_of_its_own() {
    let bench = Bench::new().await;
    let mut caches = Vec::new();
    for kv in KvFormat::ALL {
        let node = TestNode::start_with_kv(&bench.hub, PLENTY, None, kv);
        let prepare = bench.prepare(session(1), 1, range(0, 8));
        let reply = node.control(bench.coordinator, prepare).await;
        let Ok(ControlReply::Ready {
            numerics,
            weights_bytes,
            ..
        }) = reply
        else {
            panic!("{reply:?}");
        };
        assert_eq!(numerics, kv.numerics());
        let (_, held) = node.shelf.memory();
        let cache = held - bench.shape.stage_bytes(&range(0, 8));
        assert_eq!(cache, bench.shape.kv_bytes_per_token_layer(kv) * 8 * 64);
        assert!(weights_bytes > 0);
        caches.push(cache);
    }
    assert!(caches[1] * 8 < caches[0] * 5, "{caches:?}");
}

#[actix::test]
async fn an_older_epoch_cannot_prepare_commit_or_release() {
    let bench = Bench::new().await;
    let node = &bench.seeder;
    bench.place(session(1), 2, &[(node, range(0, 8))]).await;
    let whole = [(node.peer, range(0, 8))];
    for request in [
        bench.prepare(session(1), 1, range(0, 8)),
        bench.prepare(session(1), 2, range(0, 8)),
        bench.commit(session(1), 1, &whole),
        ControlRequest::Release {
            session: session(1),
            epoch: 1,
        },
        ControlRequest::Renew {
            session: session(1),
            epoch: 1,
            lease_ms: 1,
        },
    ] {
        assert_eq!(
            code(node.control(bench.coordinator, request).await),
            "stale_epoch"
        );
    }
    let release = ControlRequest::Release {
        session: session(1),
        epoch: 2,
    };
    node.control(bench.coordinator, release).await.unwrap();
    let again = bench.prepare(session(1), 2, range(0, 8));
    assert_eq!(
        code(node.control(bench.coordinator, again).await),
        "stale_epoch"
    );
}

#[actix::test]
async fn a_repeated_step_gets_the_same_answer_and_a_gap_is_refused() {
    let mut bench = Bench::new().await;
    bench
        .place(session(1), 1, &[(&bench.seeder, range(0, 8))])
        .await;
    let step = tokens(session(1), 1, 1, 0, PROMPT.to_vec());
    bench.step(&bench.seeder, step.clone()).await;
    let first = bench.frame().await;
    bench.step(&bench.seeder, step).await;
    assert_eq!(bench.frame().await, first);

    bench
        .step(&bench.seeder, tokens(session(1), 1, 2, 9, vec![1]))
        .await;
    let refused = bench.frame().await;
    assert!(matches!(&refused, TensorFrame::Failed { code, .. } if code == "position_gap"));
    bench
        .step(&bench.seeder, tokens(session(1), 1, 3, 5, vec![1; 60]))
        .await;
    let refused = bench.frame().await;
    assert!(matches!(&refused, TensorFrame::Failed { code, .. } if code == "context_overflow"));
}

#[actix::test]
async fn a_reservation_without_a_sign_of_life_expires() {
    let bench = Bench::new().await;
    let mut request = bench.prepare(session(1), 1, range(0, 8));
    if let ControlRequest::Prepare { lease_ms, .. } = &mut request {
        *lease_ms = 1;
    }
    // Whether the stage was ready before the lease ran out is left to chance.
    let _ = bench.seeder.control(bench.coordinator, request).await;
    while bench.seeder.shelf.sessions() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let commit = bench.commit(session(1), 1, &[(bench.seeder.peer, range(0, 8))]);
    assert!(
        bench
            .seeder
            .control(bench.coordinator, commit)
            .await
            .is_err()
    );
}

#[actix::test]
async fn what_does_not_fit_is_refused_and_leaves_nothing_behind() {
    let bench = Bench::new().await;
    let small = TestNode::start(&bench.hub, 1000, None);
    let request = bench.prepare(session(1), 1, range(0, 8));
    let refusal = small.control(bench.coordinator, request).await;
    assert_eq!(code(refusal), "insufficient_memory");
    assert_eq!(small.shelf.memory(), (0, 0));

    let limited = TestNode::start(&bench.hub, PLENTY, Some(3));
    let request = bench.prepare(session(1), 1, range(0, 8));
    assert_eq!(
        code(limited.control(bench.coordinator, request).await),
        "layer_limits"
    );
}

#[actix::test]
async fn only_the_coordinator_and_the_stage_before_are_listened_to() {
    let mut bench = Bench::new().await;
    bench
        .place(session(1), 1, &[(&bench.seeder, range(0, 8))])
        .await;
    let stranger = PeerId::random();
    let release = ControlRequest::Release {
        session: session(1),
        epoch: 1,
    };
    assert!(bench.seeder.control(stranger, release).await.is_err());
    let forged = tokens(session(1), 1, 1, 0, vec![1]);
    bench
        .seeder
        .stage
        .ask(
            Step {
                from: stranger,
                frame: forged,
            },
            PATIENCE,
        )
        .await
        .unwrap();
    // Had the forged step been applied, this one would be a repeat.
    bench
        .step(&bench.seeder, tokens(session(1), 1, 1, 0, PROMPT.to_vec()))
        .await;
    let frame = bench.frame().await;
    assert!(
        matches!(frame, TensorFrame::Token { position: 5, .. }),
        "{frame:?}"
    );
}

#[actix::test]
async fn a_step_for_a_session_that_is_gone_is_answered_and_passed_on_to_the_coordinator() {
    let mut bench = Bench::new().await;
    bench
        .step(&bench.seeder, tokens(session(9), 1, 1, 0, vec![1]))
        .await;
    let frame = bench.frame().await;
    assert!(matches!(&frame, TensorFrame::Failed { code, .. } if code == "unknown_session"));

    let second = TestNode::start(&bench.hub, PLENTY, None);
    let stages = [(&bench.seeder, range(0, 4)), (&second, range(4, 8))];
    bench.place(session(1), 1, &stages).await;
    let release = ControlRequest::Release {
        session: session(1),
        epoch: 1,
    };
    second.control(bench.coordinator, release).await.unwrap();
    let step = tokens(session(1), 1, 1, 0, PROMPT.to_vec());
    bench.step(&bench.seeder, step).await;
    let frame = bench.frame().await;
    assert!(matches!(&frame, TensorFrame::Failed { code, .. } if code == "unknown_session"));
}

#[actix::test]
async fn a_stage_tells_the_coordinator_when_the_stage_behind_it_is_lost_and_of_no_other_loss() {
    let mut bench = Bench::new().await;
    let second = TestNode::start(&bench.hub, PLENTY, None);
    let stages = [(&bench.seeder, range(0, 4)), (&second, range(4, 8))];
    bench.place(session(1), 1, &stages).await;
    bench.place(session(2), 3, &stages).await;
    let lost = |peer| NextLost {
        peer,
        reason: "it is silent".to_owned(),
    };
    let stage = bench.seeder.stage.clone();
    stage.ask(lost(PeerId::random()), PATIENCE).await.unwrap();
    stage.ask(lost(second.peer), PATIENCE).await.unwrap();
    let mut told = Vec::new();
    for _ in 0..2 {
        let frame = bench.frame().await;
        let TensorFrame::Failed {
            session,
            epoch,
            code,
            ..
        } = frame
        else {
            panic!("{frame:?}");
        };
        assert_eq!(code, NEXT_STAGE_LOST);
        told.push((session, epoch));
    }
    told.sort_by_key(|(_, epoch)| *epoch);
    assert_eq!(told, [(session(1), 1), (session(2), 3)]);
}

#[actix::test]
async fn a_panicked_stage_server_is_replaced_by_one_that_holds_nothing() {
    let mut bench = Bench::new().await;
    let whole = [(&bench.seeder, range(0, 8))];
    bench.place(session(1), 1, &whole).await;
    let crashed = bench.seeder.stage.ask(Crash, PATIENCE).await;
    assert!(
        matches!(crashed, Err(AskError::Crashed { .. })),
        "{crashed:?}"
    );
    let step = tokens(session(1), 1, 1, 0, PROMPT.to_vec());
    bench.step(&bench.seeder, step).await;
    let frame = bench.frame().await;
    assert!(matches!(&frame, TensorFrame::Failed { code, .. } if code == "unknown_session"));
    assert_eq!(bench.seeder.shelf.memory(), (0, 0));
    bench
        .place(session(2), 1, &[(&bench.seeder, range(0, 8))])
        .await;
}
