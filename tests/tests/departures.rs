//! Peers that leave, politely or not.

use accel_tests::{
    ChatRequest, Cluster, Node,
    client::delta,
    cluster::{peers, wait_for_peers},
    models,
};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;

async fn reads_until_error(mut stream: accel_tests::client::Stream) -> Result<Value> {
    while let Some(event) = stream.next().await? {
        if let Some(error) = event.get("error") {
            return Ok(error.clone());
        }
    }
    bail!("the stream ended as if nothing had happened")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_killed_in_mid_answer_ends_the_request_with_an_error_and_the_node_serves_on()
-> Result<()> {
    let model = models::talkative()?;
    let mut cluster = Cluster::start(4, Some(2)).await?;
    cluster.nodes[0].add_model(&model.path)?;
    let asked = cluster.nodes.remove(0);
    let mut stream = asked
        .client
        .stream(&ChatRequest::greedy(
            &model.name,
            "Tell me everything.",
            4_000,
        ))
        .await?;
    let mut seen = 0;
    let mut id = None;
    while seen < 3 {
        let event = stream.next().await?.context("the answer ended early")?;
        id = event.get("id").and_then(Value::as_str).map(str::to_owned);
        seen += usize::from(!delta(&event).is_empty());
    }
    let victim = remote_stage(&asked, &cluster.nodes, &id.context("an id")?).await?;
    let mut victim = cluster.nodes.remove(victim);
    victim.process.kill();

    let error = reads_until_error(stream).await?;
    let code = error.get("code").and_then(Value::as_str);
    assert!(code.is_some_and(|code| !code.is_empty()), "{error}");
    let hint = error.get("hint").and_then(Value::as_str);
    assert!(hint.is_some_and(|hint| !hint.is_empty()), "{error}");

    let gone = victim.peer_id.clone();
    wait_for_peers(&asked, |seen| !seen.contains(&gone)).await?;
    let short = ChatRequest::greedy(&model.name, "Still there?", 4);
    assert_eq!(asked.client.chat(&short).await?.completion_tokens, 4);
    Ok(())
}

/// The index of a node, other than the one asked, that computes a stage of the session.
async fn remote_stage(asked: &Node, others: &[Node], completion: &str) -> Result<usize> {
    let session = completion.trim_start_matches("chatcmpl-");
    let view = asked.client.session(session).await?;
    let route = view.get("route").and_then(Value::as_array);
    for hop in route.context("a route")? {
        let peer = hop.get("peer_id").and_then(Value::as_str);
        let found = others
            .iter()
            .position(|node| Some(node.peer_id.as_str()) == peer);
        if let Some(index) = found {
            return Ok(index);
        }
    }
    bail!("no other node takes part: {view}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopped_ends_well_and_disappears() -> Result<()> {
    let mut cluster = Cluster::start(2, None).await?;
    let mut leaver = cluster.nodes.pop().context("two nodes")?;
    let stayer = cluster.nodes.first().context("two nodes")?;
    assert!(peers(stayer).await?.contains(&leaver.peer_id));
    let status = leaver.process.terminate()?;
    assert!(status.success(), "{status}");
    assert!(!leaver.process.group_is_alive(), "it left a process behind");
    wait_for_peers(stayer, |seen| !seen.contains(&leaver.peer_id)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_disappears_when_its_advert_expires() -> Result<()> {
    let mut cluster = Cluster::start(2, None).await?;
    let mut leaver = cluster.nodes.pop().context("two nodes")?;
    let stayer = cluster.nodes.first().context("two nodes")?;
    leaver.process.kill();
    wait_for_peers(stayer, |seen| !seen.contains(&leaver.peer_id)).await?;
    let listed = stayer.cli(&["peers"])?;
    assert!(listed.status.success(), "{listed:?}");
    assert!(
        !listed.stdout.contains(&leaver.peer_id),
        "{}",
        listed.stdout
    );
    Ok(())
}
