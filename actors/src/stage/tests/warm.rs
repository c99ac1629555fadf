//! Layers that are made ready before a session needs them.

use accel_p2p::wire::WarmOrder;

use super::*;
use crate::stage::ledger::StageKey;

impl Bench {
    fn warm(&self, layers: LayerRange) -> ControlRequest {
        let order = WarmOrder {
            model: self.model.cid,
            model_bytes: self.model.bytes,
            layers: (layers.first, layers.end),
            total_layers: self.shape.layers,
            providers: Vec::new(),
        };
        ControlRequest::Warm { order }
    }

    /// Has layers made ready, and waits until they are in memory.
    async fn warmed(&self, node: &TestNode, layers: LayerRange) {
        let reply = node.control(self.coordinator, self.warm(layers)).await;
        assert_eq!(reply, Ok(ControlReply::Done));
        let key = StageKey {
            model: self.model.cid,
            layers,
        };
        wait_until(|| node.shelf.has(&key)).await;
    }
}

async fn wait_until(there: impl Fn() -> bool) {
    let waiting = async {
        while !there() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.expect("it comes to be");
}

fn fetched(reply: Result<ControlReply, Failure>) -> u64 {
    match reply {
        Ok(ControlReply::Ready { bytes_fetched, .. }) => bytes_fetched,
        other => panic!("{other:?}"),
    }
}

#[actix::test]
async fn a_session_fetches_nothing_of_what_was_made_ready() {
    let bench = Bench::new().await;
    let node = TestNode::start(&bench.hub, PLENTY, None);
    bench.warmed(&node, range(2, 5)).await;
    let weights = bench.shape.stage_bytes(&range(2, 5));
    assert_eq!(node.shelf.memory(), (weights, 0), "nothing is reserved");

    let prepare = bench.prepare(session(1), 1, range(2, 5));
    assert_eq!(
        fetched(node.control(bench.coordinator, prepare).await),
        0,
        "it is there"
    );
    let kv = bench.shape.kv_bytes_per_token_layer(KvFormat::F16) * 3 * 64;
    let outputs = u64::from(bench.shape.hidden) * 4 * 64;
    let held = weights + kv + outputs;
    assert_eq!(node.shelf.memory(), (held, held));
}

#[actix::test]
async fn what_was_made_ready_makes_room_for_a_session() {
    let bench = Bench::new().await;
    let kv = bench.shape.kv_bytes_per_token_layer(KvFormat::F16) * 4 * 64;
    let most = [range(0, 4), range(4, 8)].map(|layers| bench.shape.stage_bytes(&layers));
    let node = TestNode::start(&bench.hub, most[0].max(most[1]) + kv, None);
    bench.warmed(&node, range(0, 4)).await;
    let prepare = bench.prepare(session(1), 1, range(4, 8));
    assert!(fetched(node.control(bench.coordinator, prepare).await) > 0);
    assert_eq!(node.shelf.memory(), (most[1] + kv, most[1] + kv));
}

#[actix::test]
async fn without_memory_to_spare_layers_are_fetched_and_not_loaded() {
    let bench = Bench::new().await;
    let weights = bench.shape.stage_bytes(&range(0, 4));
    let kv = bench.shape.kv_bytes_per_token_layer(KvFormat::F16) * 4 * 64;
    let node = TestNode::start(&bench.hub, weights + kv, None);
    bench.place(session(1), 1, &[(&node, range(0, 4))]).await;
    let before = node.store.present_bytes(&bench.model.cid).unwrap();
    let reply = node
        .control(bench.coordinator, bench.warm(range(4, 8)))
        .await;
    assert_eq!(reply, Ok(ControlReply::Done));
    wait_until(|| node.store.present_bytes(&bench.model.cid).unwrap() > before).await;
    assert_eq!(
        node.shelf.memory(),
        (weights + kv, weights + kv),
        "the session keeps what it has"
    );
}

#[actix::test]
async fn more_layers_than_a_node_takes_are_refused() {
    let bench = Bench::new().await;
    let node = TestNode::start(&bench.hub, PLENTY, Some(2));
    let reply = node.control(bench.coordinator, bench.warm(range(0, 3)));
    assert_eq!(code(reply.await), "layer_limits");
}
