//! Models move through the swarm by their CID.

use accel_tests::{ChatRequest, Cluster, models};
use anyhow::{Context as _, Result};

#[tokio::test(flavor = "multi_thread")]
async fn a_model_fetched_by_its_cid_is_whole_and_outlives_its_source() -> Result<()> {
    let model = models::wide()?;
    let mut cluster = Cluster::start(2, None).await?;
    let other = cluster.nodes.pop().context("two nodes")?;
    let mut source = cluster.nodes.pop().context("two nodes")?;
    let cid = source.add_model(&model.path)?;
    let request = ChatRequest::greedy(&cid, "Hello", 8);
    let expected = source.client.chat(&request).await?.tokens;

    let fetched = other.cli_json(&["model", "add", &cid])?;
    assert_eq!(fetched["cid"], cid.as_str(), "{fetched}");
    let shown = other.cli_json(&["model", "show", &cid])?;
    assert_eq!(shown["complete"], true, "{shown}");
    assert_eq!(shown["bytes"], model.bytes, "{shown}");

    source.process.kill();
    assert_eq!(other.client.chat(&request).await?.tokens, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_has_one_cid_on_every_node() -> Result<()> {
    let model = models::small()?;
    let cluster = Cluster::start(2, None).await?;
    let mut cids = Vec::new();
    for node in &cluster.nodes {
        cids.push(node.add_model(&model.path)?);
    }
    assert_eq!(cids[0], cids[1]);
    Ok(())
}
