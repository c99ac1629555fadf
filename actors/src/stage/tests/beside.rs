//! Two stages of a session on one node, while it goes over to other layers.

use super::keeping::{stages, under};
use super::*;

/// Three nodes that compute under epoch 1, and the first token.
struct Before {
    bench: Bench,
    nodes: [TestNode; 3],
    token: u32,
}

impl Before {
    async fn new() -> Self {
        let mut bench = Bench::new().await;
        let nodes = [(); 3].map(|()| TestNode::start(&bench.hub, PLENTY, None));
        let [first, middle, last] = &nodes;
        let before = stages([first, middle, last]);
        bench.place(session(1), 1, &before).await;
        let prompt = under(1, 1, 0, 2, PROMPT.to_vec());
        bench.step(first, prompt).await;
        let token = bench.drawn().await;
        Self {
            bench,
            nodes,
            token,
        }
    }

    /// The first node gets all layers ready under epoch 2.
    async fn get_ready(&mut self) {
        let (bench, first) = (&mut self.bench, &self.nodes[0]);
        let whole = range(0, 8);
        let prepare = bench.prepare_beside(session(1), (2, 1), whole);
        let ready = first.control(bench.coordinator, prepare).await;
        assert!(matches!(ready, Ok(ControlReply::Ready { .. })), "{ready:?}");
        let commit = bench.commit(session(1), 2, &[(first.peer, whole)]);
        let done = first.control(bench.coordinator, commit).await;
        assert_eq!(done, Ok(ControlReply::Done));
        let TensorFrame::Step { input, .. } = under(2, 1, 0, 0, PROMPT.to_vec()) else {
            panic!("a step");
        };
        let feed = TensorFrame::Step {
            session: session(1),
            epoch: 2,
            step: 1,
            position: 0,
            sample: false,
            until: 0,
            input,
        };
        bench.step(first, feed).await;
        let applied = bench.frame().await;
        let is_it = matches!(applied, TensorFrame::Applied { epoch: 2, .. });
        assert!(is_it, "{applied:?}");
    }

    /// The next token, under the epoch of one route or of the other.
    async fn next(&mut self, epoch: u64, step: u64) -> u32 {
        let mut frame = under(epoch, step, 5, 2, vec![self.token]);
        if let TensorFrame::Step { until, .. } = &mut frame {
            *until = if epoch == 2 { 0 } else { 2 };
        }
        self.bench.step(&self.nodes[0], frame).await;
        self.bench.drawn().await
    }

    async fn end(&self, request: ControlRequest) {
        let done = self.nodes[0].control(self.bench.coordinator, request).await;
        assert_eq!(done, Ok(ControlReply::Done));
    }

    fn memory(&self) -> (u64, u64) {
        self.nodes[0].shelf.memory()
    }
}

fn leave(epoch: u64) -> ControlRequest {
    let session = session(1);
    ControlRequest::Leave { session, epoch }
}

fn release(epoch: u64) -> ControlRequest {
    let session = session(1);
    ControlRequest::Release { session, epoch }
}

#[actix::test]
async fn a_stage_computes_while_other_layers_of_its_session_get_ready_beside_it() {
    let mut before = Before::new().await;
    before.get_ready().await;
    let old = before.next(1, 2).await;
    let new = before.next(2, 2).await;
    assert_eq!(new, old, "the same layers, however they are cut");
    before.end(release(1)).await;
    let late = under(1, 3, 6, 2, vec![old]);
    before.bench.step(&before.nodes[0], late).await;
    let again = before.next(2, 2).await;
    assert_eq!(again, new, "a repeat; the old stage says nothing any more");
    before.end(release(2)).await;
    assert_eq!(before.memory().1, 0, "nobody uses anything");
}

#[actix::test]
async fn what_got_ready_beside_can_be_left_and_does_not_come_back() {
    let mut before = Before::new().await;
    let (_, used) = before.memory();
    before.get_ready().await;
    assert!(before.memory().1 > used);
    before.end(leave(2)).await;
    assert_eq!(before.memory().1, used);
    let (bench, first) = (&before.bench, &before.nodes[0]);
    let late = bench.prepare_beside(session(1), (2, 1), range(0, 8));
    let refused = first.control(bench.coordinator, late).await;
    assert_eq!(code(refused), "stale_epoch");
    before.next(1, 2).await;
    before.end(release(2)).await;
    assert_eq!(before.memory().1, 0);
}

#[actix::test]
async fn a_new_plan_ends_both_stages() {
    let mut before = Before::new().await;
    before.get_ready().await;
    let (bench, first) = (&before.bench, &before.nodes[0]);
    let held = bench.ready(session(1), 3, &[(first, range(0, 3))]).await;
    assert_eq!(held[0].cached, 5, "of the same layers");
    before.end(release(3)).await;
    assert_eq!(before.memory().1, 0);
}

#[actix::test]
async fn nobody_else_gets_a_stage_beside_that_of_a_session() {
    let before = Before::new().await;
    let (bench, first) = (&before.bench, &before.nodes[0]);
    let stranger = PeerId::random();
    let prepare = bench.prepare_beside(session(1), (2, 1), range(0, 8));
    let ready = first.control(stranger, prepare).await;
    assert!(matches!(ready, Ok(ControlReply::Ready { .. })), "{ready:?}");
    let (weights, kv) = (
        bench.shape.stage_bytes(&range(0, 8)),
        bench.shape.kv_bytes_per_token_layer(KvFormat::F16) * 8 * 64,
    );
    assert_eq!(before.memory().1, weights + kv, "the first stage is gone");
}
