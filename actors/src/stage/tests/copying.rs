//! KV caches that go from the peer that kept them to the stage that takes over.

use accel_p2p::wire::{CopyOrder, KvRows};

use super::keeping::{stages, under};
use super::*;

/// A stand-in that lacks what `donor` still has, live under epoch 2 and allowed to take it.
struct Handover {
    bench: Bench,
    nodes: [TestNode; 4],
    /// The first token, and the second.
    tokens: [u32; 2],
}

impl Handover {
    async fn new() -> Self {
        let mut bench = Bench::new().await;
        let nodes = [(); 4].map(|()| TestNode::start(&bench.hub, PLENTY, None));
        let [first, donor, last, stand_in] = &nodes;
        let before = stages([first, donor, last]);
        bench.place(session(1), 1, &before).await;
        bench.step(first, under(1, 1, 0, 2, PROMPT.to_vec())).await;
        let token = bench.drawn().await;
        bench.step(first, under(1, 2, 5, 2, vec![token])).await;
        let tokens = [token, bench.drawn().await];

        let after = stages([first, stand_in, last]);
        bench.ready(session(1), 2, &after).await;
        let kept = Self::give(&bench, donor, range(3, 5)).await;
        assert!(
            matches!(kept, Ok(ControlReply::Ready { held, .. }) if held.cached == 6),
            "{kept:?}"
        );
        let route = after.iter().map(|(node, layers)| (node.peer, *layers));
        let route: Vec<_> = route.collect();
        for ((node, _), kept) in after.iter().zip([5, 0, 5]) {
            let mut commit = bench.commit(session(1), 2, &route);
            if let ControlRequest::Commit {
                length, donor: may, ..
            } = &mut commit
            {
                *length = kept;
                *may = (kept == 0).then_some(donor.peer);
            }
            let done = node.control(bench.coordinator, commit).await;
            assert_eq!(done, Ok(ControlReply::Done));
        }
        Self {
            bench,
            nodes,
            tokens,
        }
    }

    /// Asks a peer to give what it kept, and to prepare nothing.
    async fn give(
        bench: &Bench,
        node: &TestNode,
        layers: LayerRange,
    ) -> Result<ControlReply, Failure> {
        let mut prepare = bench.prepare(session(1), 2, layers);
        if let ControlRequest::Prepare { keep, .. } = &mut prepare {
            keep.only = true;
        }
        node.control(bench.coordinator, prepare).await
    }

    fn order(&self, step: u64, position: u64, rows: u32) -> TensorFrame {
        TensorFrame::Copy(CopyOrder {
            session: session(1),
            epoch: 2,
            step,
            position,
            rows,
            to: PeerEndpoint {
                peer: self.nodes[3].peer,
                tensor_addrs: Vec::new(),
            },
        })
    }

    /// Rows that somebody made up.
    async fn forge(&self, from: PeerId, change: impl FnOnce(&mut KvRows), data: Vec<u8>) {
        let mut rows = KvRows {
            session: session(1),
            epoch: 2,
            step: 10,
            position: 0,
            rows: 5,
            layers: (3, 5),
            numerics: KvFormat::F16.numerics().to_owned(),
        };
        change(&mut rows);
        let frame = TensorFrame::Rows {
            rows,
            data: data.into(),
        };
        let message = Step { from, frame };
        self.nodes[3].stage.ask(message, PATIENCE).await.unwrap();
    }

    async fn refusal(&mut self) -> String {
        match self.bench.frame().await {
            TensorFrame::Failed { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }
}

#[actix::test]
async fn a_stand_in_gets_the_cache_of_a_peer_that_has_it_and_the_next_token_is_the_same() {
    let mut handover = Handover::new().await;
    for (step, position, rows) in [(10, 0, 3), (11, 3, 2)] {
        let order = handover.order(step, position, rows);
        handover.bench.step(&handover.nodes[1], order).await;
        let applied = handover.bench.frame().await;
        let length = position + u64::from(rows);
        assert!(
            matches!(applied, TensorFrame::Applied { step: of, length: to, .. } if of == step && to == length),
            "{applied:?}"
        );
    }
    let [token, expected] = handover.tokens;
    let step = under(2, 12, 5, 2, vec![token]);
    handover.bench.step(&handover.nodes[0], step).await;
    assert_eq!(handover.bench.drawn().await, expected);
}

#[actix::test]
async fn whoever_keeps_nothing_prepares_nothing_when_only_that_is_asked_for() {
    let bench = Bench::new().await;
    let node = TestNode::start(&bench.hub, PLENTY, None);
    let refused = Handover::give(&bench, &node, range(3, 5)).await;
    assert_eq!(code(refused), "nothing_kept");
    assert_eq!(node.shelf.memory(), (0, 0));
}

#[actix::test]
async fn rows_of_strangers_of_other_layers_or_in_another_form_are_not_taken() {
    let mut handover = Handover::new().await;
    let donor = handover.nodes[1].peer;
    handover.forge(PeerId::random(), |_| {}, vec![1]).await;
    handover.forge(donor, |rows| rows.epoch = 1, vec![1]).await;
    // Nothing was said to these; the next answers are about those that the donor sent.
    handover
        .forge(donor, |rows| rows.layers = (0, 2), vec![1])
        .await;
    assert_eq!(handover.refusal().await, "copy_failed");
    let other = |rows: &mut KvRows| rows.numerics = "other-1".to_owned();
    handover.forge(donor, other, vec![1]).await;
    assert_eq!(handover.refusal().await, "copy_failed");
    handover
        .forge(donor, |rows| rows.position = 3, vec![1])
        .await;
    assert_eq!(handover.refusal().await, "position_gap");
    handover.forge(donor, |rows| rows.rows = 513, vec![1]).await;
    assert_eq!(handover.refusal().await, "step_too_large");
    // The form is right, and there are fewer rows than it says.
    handover.forge(donor, |_| {}, vec![1]).await;
    assert_eq!(handover.refusal().await, "copy_failed");
}

#[actix::test]
async fn rows_are_given_for_the_coordinator_only_and_no_more_than_there_are() {
    let mut handover = Handover::new().await;
    let stranger = Step {
        from: PeerId::random(),
        frame: handover.order(10, 0, 5),
    };
    handover.nodes[1]
        .stage
        .ask(stranger, PATIENCE)
        .await
        .unwrap();
    for (position, rows) in [(0, 7), (u64::MAX, 3), (5, u32::MAX)] {
        let order = handover.order(10, position, rows);
        handover.bench.step(&handover.nodes[1], order).await;
    }
    // Had any been sent, this would not be the first step that is applied.
    let order = handover.order(11, 0, 5);
    handover.bench.step(&handover.nodes[1], order).await;
    let applied = handover.bench.frame().await;
    assert!(
        matches!(applied, TensorFrame::Applied { step: 11, .. }),
        "{applied:?}"
    );
}
