//! Who gets into a private swarm, and who does not.

use std::{collections::BTreeSet, time::Duration};

use accel_tests::{
    ChatRequest, Cluster, Node, NodeOptions,
    cluster::{peers, wait_for_peers},
    models,
    node::{self, make_swarm_key},
};
use anyhow::{Context as _, Result};
use tempfile::TempDir;

async fn swarm_of_one() -> Result<Cluster> {
    let mut cluster = Cluster::empty()?;
    cluster.add(NodeOptions::default()).await?;
    Ok(cluster)
}

fn invite(node: &Node, ttl: &str) -> Result<String> {
    let printed = node.cli_json(&["swarm", "invite", "--ttl", ttl])?;
    let invite = printed.get("invite").and_then(|invite| invite.as_str());
    let invite = invite.with_context(|| format!("no invite in {printed}"))?;
    assert!(invite.starts_with("accel-invite:"), "{invite}");
    Ok(invite.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_nothing_but_an_invite() -> Result<()> {
    let cluster = swarm_of_one().await?;
    let host = cluster.nodes.first().context("one node")?;
    let model = models::small()?;
    host.add_model(&model.path)?;
    let guest = Node::start(&NodeOptions {
        join: vec![invite(host, "10m")?],
        ..NodeOptions::default()
    })
    .await?;
    wait_for_peers(host, |seen| seen.contains(&guest.peer_id)).await?;
    wait_for_peers(&guest, |seen| seen.contains(&host.peer_id)).await?;

    cluster.wait_for_model(&guest, &model.name).await?;
    let request = ChatRequest::greedy(&model.name, "Hello", 4);
    assert_eq!(
        guest.client.chat(&request).await?.tokens,
        host.client.chat(&request).await?.tokens
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_guests_of_one_host_see_each_other() -> Result<()> {
    let cluster = swarm_of_one().await?;
    let host = cluster.nodes.first().context("one node")?;
    let mut guests = Vec::new();
    for _ in 0..2 {
        let options = NodeOptions {
            join: vec![invite(host, "10m")?],
            ..NodeOptions::default()
        };
        guests.push(Node::start(&options).await?);
    }
    let [one, other] = guests.as_slice() else {
        anyhow::bail!("two guests");
    };
    wait_for_peers(one, |seen| seen.contains(&other.peer_id)).await?;
    wait_for_peers(other, |seen| seen.contains(&one.peer_id)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_invite_opens_nothing_and_says_so() -> Result<()> {
    let cluster = swarm_of_one().await?;
    let host = cluster.nodes.first().context("one node")?;
    let invite = invite(host, "1s")?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let refused = node::start_refused(&NodeOptions {
        join: vec![invite],
        ..NodeOptions::default()
    })?;
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("expired"), "{}", refused.stderr);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_was_tampered_with_opens_nothing() -> Result<()> {
    let cluster = swarm_of_one().await?;
    let host = cluster.nodes.first().context("one node")?;
    let invite = invite(host, "10m")?;
    let half = &invite[..invite.len() / 2];
    for broken in [half, "accel-invite:", "accel-invite:not-an-invite"] {
        let refused = node::start_refused(&NodeOptions {
            join: vec![broken.to_owned()],
            ..NodeOptions::default()
        })?;
        assert!(!refused.status.success(), "{broken} was taken");
        assert!(refused.stderr.contains("invite"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("panicked"), "{}", refused.stderr);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_another_swarm_key_sees_nothing_and_is_told_so() -> Result<()> {
    let cluster = swarm_of_one().await?;
    let host = cluster.nodes.first().context("one node")?;
    let elsewhere = TempDir::new()?;
    let refused = node::start_refused(&NodeOptions {
        swarm_key: Some(make_swarm_key(elsewhere.path())?),
        join: host.addrs.iter().take(1).cloned().collect(),
        ..NodeOptions::default()
    })?;
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("swarm key"), "{}", refused.stderr);
    assert!(!refused.stdout.contains(&host.peer_id));

    let alone = BTreeSet::from([host.peer_id.clone()]);
    assert_eq!(peers(host).await?, alone, "the host lists the stranger");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_without_any_key_sees_nothing() -> Result<()> {
    let cluster = swarm_of_one().await?;
    let host = cluster.nodes.first().context("one node")?;
    let refused = node::start_refused(&NodeOptions {
        join: host.addrs.iter().take(1).cloned().collect(),
        ..NodeOptions::default()
    })?;
    assert!(!refused.status.success());
    let alone = BTreeSet::from([host.peer_id.clone()]);
    assert_eq!(peers(host).await?, alone, "the host lists the stranger");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_comes_back_without_the_invite() -> Result<()> {
    let cluster = swarm_of_one().await?;
    let host = cluster.nodes.first().context("one node")?;
    let data = TempDir::new()?;
    let mut guest = Node::start(&NodeOptions {
        join: vec![invite(host, "10m")?],
        data: Some(data.path().join("data")),
        ..NodeOptions::default()
    })
    .await?;
    let peer_id = guest.peer_id.clone();
    assert!(guest.process.terminate()?.success());
    drop(guest);

    let again = Node::start(&NodeOptions {
        join: host.addrs.iter().take(1).cloned().collect(),
        data: Some(data.path().join("data")),
        ..NodeOptions::default()
    })
    .await?;
    assert_eq!(again.peer_id, peer_id, "the node lost its identity");
    wait_for_peers(host, |seen| seen.contains(&peer_id)).await?;
    Ok(())
}
