//! The official `openai` Python client against each of three nodes.

use std::process::Command;

use accel_tests::{Cluster, binaries, models, python};
use anyhow::{Context as _, Result};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_talks_to_each_of_three_nodes() -> Result<()> {
    let Some(python) = python::with_openai()? else {
        return Ok(());
    };
    let (model, max_layers) = match models::smollm2()? {
        Some(model) => (model, 10),
        None => (models::small()?, 2),
    };
    let cluster = Cluster::start(3, Some(max_layers)).await?;
    let first = cluster.nodes.first().context("three nodes")?;
    first.add_model(&model.path)?;

    let script = binaries::workspace().join("tests/python/client.py");
    let mut answers = Vec::new();
    for node in &cluster.nodes {
        cluster.wait_for_model(node, &model.name).await?;
        let output = Command::new(&python)
            .arg(&script)
            .arg(format!("{}/v1", node.client.base()))
            .arg(&model.name)
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the client failed: {errors}");
        let got: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(got["whole"], got["streamed"], "{got}");
        answers.push(got["whole"].clone());
    }
    assert!(
        answers.windows(2).all(|pair| pair[0] == pair[1]),
        "{answers:?}"
    );
    Ok(())
}
