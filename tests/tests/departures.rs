//! Peers that leave, politely or not.

use accel_tests::{
    Cluster,
    cluster::{peers, wait_for_peers},
};
use anyhow::{Context as _, Result};

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
