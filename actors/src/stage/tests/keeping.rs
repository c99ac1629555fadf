//! KV caches and outputs that outlast their plan.

use accel_p2p::wire::HeldWire;

use super::*;

impl Bench {
    /// Phase one of an epoch, and what each stage has already.
    pub(super) async fn ready(
        &self,
        session: SessionId,
        epoch: u64,
        stages: &[(&TestNode, LayerRange)],
    ) -> Vec<HeldWire> {
        let mut all = Vec::new();
        for (node, layers) in stages {
            let prepare = self.prepare(session, epoch, *layers);
            match node.control(self.coordinator, prepare).await {
                Ok(ControlReply::Ready { held, .. }) => all.push(held),
                other => panic!("{other:?}"),
            }
        }
        all
    }

    /// Phase two, in which each stage goes on from a length.
    async fn live(
        &self,
        session: SessionId,
        epoch: u64,
        stages: &[(&TestNode, LayerRange)],
        lengths: &[u64],
    ) {
        let route = stages.iter().map(|(node, layers)| (node.peer, *layers));
        let route: Vec<_> = route.collect();
        for ((node, _), kept) in stages.iter().zip(lengths) {
            let mut commit = self.commit(session, epoch, &route);
            if let ControlRequest::Commit { length, .. } = &mut commit {
                *length = *kept;
            }
            let done = node.control(self.coordinator, commit).await;
            assert_eq!(done, Ok(ControlReply::Done));
        }
    }

    pub(super) async fn drawn(&mut self) -> u32 {
        match self.frame().await {
            TensorFrame::Token { token, .. } => token,
            other => panic!("{other:?}"),
        }
    }
}

fn cached(held: &[HeldWire]) -> Vec<(u64, u64)> {
    let both = held.iter().map(|held| (held.cached, held.outputs));
    both.collect()
}

pub(super) fn under(
    epoch: u64,
    step: u64,
    position: u64,
    until: u32,
    ids: Vec<u32>,
) -> TensorFrame {
    let TensorFrame::Step { session, input, .. } = tokens(session(1), epoch, step, position, ids)
    else {
        panic!("a step");
    };
    TensorFrame::Step {
        session,
        epoch,
        step,
        position,
        sample: until == 2,
        until,
        input,
    }
}

fn replay(epoch: u64, step: u64, position: u64, rows: u32) -> TensorFrame {
    TensorFrame::Replay {
        session: session(1),
        epoch,
        step,
        position,
        rows,
        until: 1,
    }
}

const RANGES: [(u32, u32); 3] = [(0, 3), (3, 5), (5, 8)];

pub(super) fn stages(nodes: [&TestNode; 3]) -> Vec<(&TestNode, LayerRange)> {
    let ranges = RANGES.map(|(first, end)| range(first, end));
    nodes.into_iter().zip(ranges).collect()
}

#[actix::test]
async fn a_stand_in_is_fed_outputs_or_tokens_and_the_next_token_is_the_same() {
    let mut bench = Bench::new().await;
    let nodes = [(); 4].map(|()| TestNode::start(&bench.hub, PLENTY, None));
    let [first, lost, last, stand_in] = &nodes;
    let before = stages([first, lost, last]);
    bench.place(session(1), 1, &before).await;
    bench.step(first, under(1, 1, 0, 2, PROMPT.to_vec())).await;
    let token = bench.drawn().await;
    bench.step(first, under(1, 2, 5, 2, vec![token])).await;
    let expected = bench.drawn().await;

    let after = stages([first, stand_in, last]);
    for epoch in [2, 3] {
        let held = bench.ready(session(1), epoch, &after).await;
        let middle = if epoch == 2 { (0, 0) } else { (6, 6) };
        assert_eq!(cached(&held), [(6, 6), middle, (6, 0)]);
        assert!(held[0].prefill_ns == 0, "five rows say nothing of prompts");
        let step = epoch * 10;
        if epoch == 2 {
            bench.live(session(1), epoch, &after, &[5, 0, 5]).await;
            bench.step(first, replay(epoch, step, 0, 5)).await;
        } else {
            bench.live(session(1), epoch, &after, &[0, 0, 5]).await;
            let prompt = under(epoch, step, 0, 1, PROMPT.to_vec());
            bench.step(first, prompt).await;
        }
        let applied = bench.frame().await;
        assert!(
            matches!(applied, TensorFrame::Applied { step: of, length: 5, .. } if of == step),
            "{applied:?}"
        );
        bench
            .step(first, under(epoch, step + 1, 5, 2, vec![token]))
            .await;
        assert_eq!(bench.drawn().await, expected, "epoch {epoch}");
    }
}

#[actix::test]
async fn a_plan_that_is_given_up_leaves_the_cache_and_the_end_of_the_session_does_not() {
    let mut bench = Bench::new().await;
    let node = TestNode::start(&bench.hub, PLENTY, None);
    let whole = [(&node, range(0, 8))];
    bench.place(session(1), 1, &whole).await;
    bench.step(&node, under(1, 1, 0, 2, PROMPT.to_vec())).await;
    bench.drawn().await;
    let abort = |epoch| ControlRequest::Abort {
        session: session(1),
        epoch,
    };
    // Given up when it is ready, when it is live, and before it was heard of.
    for epoch in [2, 4, 6] {
        let held = bench.ready(session(1), epoch, &whole).await;
        assert_eq!(cached(&held), [(5, 0)]);
        if epoch == 4 {
            bench.live(session(1), epoch, &whole, &[5]).await;
        }
        let given_up = if epoch == 6 { 7 } else { epoch };
        let done = node.control(bench.coordinator, abort(given_up)).await;
        assert_eq!(done, Ok(ControlReply::Done));
        bench.step(&node, under(epoch, 9, 5, 2, vec![1])).await;
    }
    let late = bench.prepare(session(1), 7, range(0, 8));
    let late = node.control(bench.coordinator, late).await;
    assert_eq!(code(late), "stale_epoch");

    let mut anew = bench.prepare(session(1), 8, range(0, 8));
    if let ControlRequest::Prepare { keep, .. } = &mut anew {
        keep.cache = false;
    }
    let ready = node.control(bench.coordinator, anew).await;
    let Ok(ControlReply::Ready { held, .. }) = ready else {
        panic!("{ready:?}");
    };
    assert_eq!(held.cached, 0, "nothing is kept that may not be");
    let release = ControlRequest::Release {
        session: session(1),
        epoch: 8,
    };
    node.control(bench.coordinator, release).await.unwrap();
    assert_eq!(node.shelf.sessions(), 0);
}

#[actix::test]
async fn nothing_is_kept_of_other_layers_and_no_stage_goes_on_from_more_than_it_has() {
    let mut bench = Bench::new().await;
    let node = TestNode::start(&bench.hub, PLENTY, None);
    let whole = [(&node, range(0, 8))];
    bench.place(session(1), 1, &whole).await;
    bench.step(&node, under(1, 1, 0, 2, PROMPT.to_vec())).await;
    bench.drawn().await;
    let held = bench.ready(session(1), 2, &whole).await;
    assert_eq!(cached(&held), [(5, 0)]);
    let mut commit = bench.commit(session(1), 2, &[(node.peer, range(0, 8))]);
    if let ControlRequest::Commit { length, .. } = &mut commit {
        *length = 6;
    }
    let refused = node.control(bench.coordinator, commit).await;
    assert_eq!(code(refused), "not_prepared");
    let part = [(&node, range(0, 3))];
    assert_eq!(cached(&bench.ready(session(1), 3, &part).await), [(0, 0)]);
}

#[actix::test]
async fn outputs_are_sent_again_for_the_coordinator_only_and_only_those_that_are_there() {
    let mut bench = Bench::new().await;
    let nodes = [(); 2].map(|()| TestNode::start(&bench.hub, PLENTY, None));
    let stages = [(&nodes[0], range(0, 3)), (&nodes[1], range(3, 8))];
    bench.place(session(1), 1, &stages).await;
    bench
        .step(&nodes[0], under(1, 1, 0, 2, PROMPT.to_vec()))
        .await;
    bench.drawn().await;
    let stranger = Step {
        from: PeerId::random(),
        frame: replay(1, 2, 0, 5),
    };
    nodes[0].stage.ask(stranger, PATIENCE).await.unwrap();
    bench.step(&nodes[0], replay(2, 3, 0, 5)).await;
    for (position, rows) in [(0, 6), (u64::MAX, 2), (0, u32::MAX), (5, 1)] {
        bench.step(&nodes[0], replay(1, 4, position, rows)).await;
        let refused = bench.frame().await;
        assert!(
            matches!(&refused, TensorFrame::Failed { code, .. } if code == "outputs_missing"),
            "{refused:?}"
        );
    }
}
