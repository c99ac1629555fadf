//! `critical` over real nodes in one process: everything is computed twice, and a node whose weights are
//! damaged on its disk is found out.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use accel_inference::Gguf;

use super::*;
use crate::evidence::Evidence;
use crate::tolerance::FaultTolerance;

/// Layers that a node takes, of eight: a route has two stages.
const LAYERS: u32 = 4;

fn join(config: &mut NodeConfig, first: &Running) {
    config.join = first.node.addrs();
    config.max_layers = Some(LAYERS);
}

/// Nodes that see each other; the first has the model.
async fn swarm(count: usize, change: impl Fn(&mut NodeConfig)) -> Vec<Running> {
    let first = start(|config| {
        config.max_layers = Some(LAYERS);
        change(config);
    });
    let mut nodes = vec![first.await];
    add_model(&nodes[0]).await;
    for _ in 1..count {
        let other = start(|config| {
            join(config, &nodes[0]);
            change(config);
        });
        nodes.push(other.await);
    }
    nodes
}

async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("it never happens that {what}"));
}

async fn wait_for_peers(node: &NodeHandle, count: usize) {
    wait_for("all peers are there", async || {
        let peers = node.peers().await.unwrap();
        peers.iter().filter(|peer| peer.connected).count() >= count
    })
    .await;
}

fn asking(level: FaultTolerance) -> GenerateRequest {
    GenerateRequest {
        fault_tolerance: Some(level),
        ..long_request()
    }
}

/// The answer of one node that has everything.
async fn alone() -> Vec<u32> {
    let running = start(|_| {}).await;
    add_model(&running).await;
    let answer = long_answer(&running.node).await;
    running.node.shutdown().await;
    answer
}

async fn quarantined(node: &NodeHandle) -> Vec<String> {
    let peers = node.peers().await.unwrap().into_iter();
    let out = peers.filter(|peer| peer.quarantined);
    out.map(|peer| peer.peer_id).collect()
}

/// A node that has all of the model, with a weight of every layer damaged: what a bad disk does. The
/// blocks were checked when they came.
async fn damaged(first: &Running) -> Running {
    let running = start(|_| {}).await;
    let model = add_model(&running).await;
    running.node.shutdown().await;
    let Running { node, dir } = running;
    drop(node);
    let file = dir.path().join("data/models").join(&model.cid);
    damage(&file, &dir.path().join("small.gguf"));
    let mut config = NodeConfig::loopback(dir.path().join("data"));
    config.swarm = Some("actors-test".into());
    config.threads = Some(1);
    config.memory_limit = Some(1 << 30);
    config.audit_share = 0;
    join(&mut config, first);
    let node = NodeHandle::start(config).await.unwrap();
    Running { node, dir }
}

fn damage(file: &Path, original: &Path) {
    let gguf = Gguf::open(original).unwrap();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let tensors = gguf.tensors.iter();
    for tensor in tensors.filter(|tensor| tensor.name.ends_with("ffn_down.weight")) {
        // Of a block the scale comes first; what follows are weights.
        let at = SeekFrom::Start(gguf.tensor_range(tensor).start + 6);
        let mut byte = [0];
        file.seek(at).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(at).unwrap();
        file.write_all(&[byte[0] ^ 0x35]).unwrap();
    }
}

async fn stop(nodes: Vec<Running>) {
    for running in nodes {
        running.node.shutdown().await;
    }
}

#[actix::test]
async fn two_routes_give_the_answer_of_one_and_without_peers_there_is_none() {
    let expected = alone().await;
    let nodes = swarm(4, |_| {}).await;
    let node = &nodes[0].node;
    wait_for_peers(node, 4).await;
    let generation = node
        .generate(asking(FaultTolerance::Critical))
        .await
        .unwrap();
    let (tokens, end) = collect(generation).await;
    assert!(matches!(end, GenEvent::Done { .. }), "{end:?}");
    assert_eq!(tokens, expected);
    assert!(node.evidence().await.unwrap().is_empty(), "nobody lied");

    let mut nodes = nodes;
    nodes.pop().unwrap().node.shutdown().await;
    let node = &nodes[0].node;
    wait_for("one is gone", async || {
        node.peers().await.unwrap().len() == 3
    })
    .await;
    let refused = node
        .generate(asking(FaultTolerance::Critical))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.kind(), refused.code()),
        (ErrorKind::Unavailable, "too_few_peers")
    );
    assert!(!refused.hint().is_empty());
    stop(nodes).await;
}

#[actix::test]
async fn a_node_with_damaged_weights_is_found_out_and_the_answer_is_right() {
    let expected = alone().await;
    let mut nodes = swarm(3, |_| {}).await;
    let liar = damaged(&nodes[0]).await;
    let liar_id = liar.node.peer_id();
    nodes.push(liar);
    let node = nodes[0].node.clone();
    wait_for_peers(&node, 4).await;
    let generation = node
        .generate(asking(FaultTolerance::Critical))
        .await
        .unwrap();
    let answering = actix::spawn(collect(generation));
    wait_for("somebody is found out", async || {
        !node.evidence().await.unwrap().is_empty()
    })
    .await;
    assert_eq!(quarantined(&node).await, vec![liar_id.clone()]);
    // Without the liar there are three; two routes of two stages need one more.
    nodes.push(start(|config| join(config, &nodes[0])).await);
    let (tokens, end) = answering.await.unwrap();
    assert!(matches!(end, GenEvent::Done { .. }), "{end:?}");
    assert_eq!(tokens, expected);

    let found = node.evidence().await.unwrap();
    assert!(found.iter().all(|one| one.peer_id == liar_id), "{found:?}");
    let evidence = node.evidence_show(&found[0].id).await.unwrap();
    others_judge_by_themselves(&nodes[1].node, &evidence, &nodes[2].node.peer_id()).await;
    assert_eq!(quarantined(&nodes[1].node).await, vec![liar_id.clone()]);
    assert!(node.quarantine_lift(&liar_id).await.unwrap());
    assert!(quarantined(&node).await.is_empty());

    // It lasts: the node is started again on the same data.
    let Running { node: other, dir } = nodes.remove(1);
    other.shutdown().await;
    drop(other);
    let mut config = NodeConfig::loopback(dir.path().join("data"));
    config.swarm = Some("actors-test".into());
    join(&mut config, &nodes[0]);
    let again = NodeHandle::start(config).await.unwrap();
    wait_for("the liar is known again", async || {
        quarantined(&again).await == vec![liar_id.clone()]
    })
    .await;
    again.shutdown().await;
    stop(nodes).await;
}

/// Another node believes only what it has computed, and what is signed.
async fn others_judge_by_themselves(other: &NodeHandle, evidence: &Evidence, honest: &str) {
    let zeros = "0".repeat(64);
    let forgeries: [&dyn Fn(&mut Evidence); 5] = [
        &|forged| forged.peer_id = honest.to_owned(),
        &|forged| forged.output = zeros.clone(),
        &|forged| forged.nonce = zeros.clone(),
        &|forged| forged.tokens.push(1),
        &|forged| forged.last_layer = forged.first_layer,
    ];
    for (number, forge) in forgeries.into_iter().enumerate() {
        let mut forged = evidence.clone();
        forge(&mut forged);
        let refused = other.evidence_check(forged).await.unwrap_err();
        assert_eq!(refused.code, "bad_evidence", "{number}");
    }
    let mut forged = evidence.clone();
    forged.tokens[0] += 1;
    let checked = other.evidence_check(forged).await.unwrap();
    assert_eq!(
        (checked.verdict.as_str(), checked.quarantined),
        ("not_proven", false)
    );
    let checked = other.evidence_check(evidence.clone()).await.unwrap();
    assert_eq!(
        (checked.verdict.as_str(), checked.quarantined),
        ("confirmed", true)
    );
}

#[actix::test]
async fn audits_of_honest_peers_agree_and_find_out_a_liar_afterwards() {
    let mut nodes = swarm(3, |config| config.audit_share = 100).await;
    let honest = start(|config| join(config, &nodes[0])).await;
    nodes.push(honest);
    let node = nodes[0].node.clone();
    wait_for_peers(&node, 4).await;
    let audited = |result: &str| {
        let line = format!("accel_audits_total{{result=\"{result}\"}} 1");
        node.metrics().contains(&line)
    };
    assert_eq!(long_answer(&node).await, alone().await);
    wait_for("the audit agrees", async || audited("agreed")).await;
    nodes.pop().unwrap().node.shutdown().await;

    let liar = damaged(&nodes[0]).await;
    let liar_id = liar.node.peer_id();
    nodes.push(liar);
    wait_for("the liar is there", async || {
        let peers = node.peers().await.unwrap();
        peers.iter().filter(|peer| peer.connected).count() == 4
    })
    .await;
    // It is in the route, or else among those who compute it again.
    long_answer(&node).await;
    wait_for("the audit shows it", async || audited("lied")).await;
    assert_eq!(quarantined(&node).await, [liar_id]);
    stop(nodes).await;
}
