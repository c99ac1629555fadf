//! Bad input gets a clear error with a hint: no panic, no hang, nothing half-written.

use std::{fs, net::TcpListener, path::Path};

use accel_tests::{
    Cluster, Node, NodeOptions,
    client::Reply,
    models,
    node::{self, CommandOutput},
};
use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A sound CID whose content does not exist here.
const NOBODY_HAS: &str = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";

#[track_caller]
fn assert_refused(reply: &Reply, status: u16, code: &str) {
    assert_eq!(reply.status, status, "{}", reply.body);
    assert_eq!(reply.code(), code, "{}", reply.body);
    assert!(!reply.message().is_empty(), "{}", reply.body);
    assert!(!reply.hint().is_empty(), "no hint: {}", reply.body);
}

/// A command that failed as it should: an exit code, a reason that names `about`, no panic.
#[track_caller]
fn assert_failed(output: &CommandOutput, about: &str) {
    assert!(!output.status.success(), "it succeeded: {output:?}");
    assert!(output.status.code().is_some(), "it crashed: {output:?}");
    assert!(output.stderr.contains(about), "{}", output.stderr);
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_json_is_a_400() -> Result<()> {
    let node = Node::start(&NodeOptions::default()).await?;
    for body in [
        "",
        "{",
        "[]",
        "{\"model\": 3}",
        "\u{0}\u{1}",
        "{\"model\":\"m\"} x",
    ] {
        for path in ["/v1/chat/completions", "/v1/completions"] {
            let reply = node.client.post_text(path, body.to_owned()).await?;
            assert_eq!(reply.status, 400, "{path} {body:?}: {}", reply.body);
            assert!(!reply.code().is_empty(), "{path} {body:?}: {}", reply.body);
            assert!(!reply.message().is_empty(), "{path} {body:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_out_of_range_are_named() -> Result<()> {
    let node = Node::start(&NodeOptions::default()).await?;
    let model = models::small()?;
    node.add_model(&model.path)?;
    let cases: [(&str, Value); 9] = [
        ("temperature", json!(-1)),
        ("temperature", json!(1e9)),
        ("temperature", json!("warm")),
        ("top_p", json!(1.5)),
        ("top_p", json!(-0.1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-5)),
        ("seed", json!("x")),
        ("messages", json!([])),
    ];
    for (field, value) in cases {
        let mut body = json!({
            "model": model.name,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 2,
        });
        body[field] = value.clone();
        let reply = node.client.post("/v1/chat/completions", &body).await?;
        assert_eq!(reply.status, 400, "{field}={value}: {}", reply.body);
        assert!(
            reply.body.to_string().contains(field),
            "{field}={value} is not named: {}",
            reply.body
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_longer_than_the_context_is_refused() -> Result<()> {
    let node = Node::start(&NodeOptions::default()).await?;
    let model = models::short_context()?;
    node.add_model(&model.path)?;
    let body = json!({
        "model": model.name,
        "messages": [{"role": "user", "content": "word ".repeat(2_000)}],
        "max_tokens": 4,
    });
    let reply = node.client.post("/v1/chat/completions", &body).await?;
    assert_refused(&reply, 400, "context_length_exceeded");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_model_and_a_cid_that_nobody_has_are_404s() -> Result<()> {
    let node = Node::start(&NodeOptions::default()).await?;
    for (model, code) in [
        ("no-such-model", "model_not_found"),
        (NOBODY_HAS, "content_not_found"),
    ] {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
        let reply = node.client.post("/v1/chat/completions", &body).await?;
        assert_refused(&reply, 404, code);
    }
    assert_failed(
        &node.cli(&["model", "show", "no-such-model"])?,
        "no-such-model",
    );
    assert_failed(&node.cli(&["run", "no-such-model", "hi"])?, "no-such-model");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cid_that_nobody_in_the_swarm_has_is_a_404_within_a_limit() -> Result<()> {
    let cluster = Cluster::start(2, None).await?;
    let body = json!({"model": NOBODY_HAS, "prompt": "hi"});
    for node in &cluster.nodes {
        let reply = node.client.post("/v1/completions", &body).await?;
        assert_refused(&reply, 404, "content_not_found");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_fits_nowhere_says_how_much_memory_is_missing() -> Result<()> {
    let node = Node::start(&NodeOptions {
        args: ["--memory", "64KiB"].map(str::to_owned).to_vec(),
        ..NodeOptions::default()
    })
    .await?;
    let model = models::wide()?;
    node.add_model(&model.path)?;
    let body = json!({"model": model.name, "messages": [{"role": "user", "content": "hi"}]});
    let reply = node.client.post("/v1/chat/completions", &body).await?;
    assert_refused(&reply, 503, "insufficient_memory");
    let said = reply.message();
    assert!(said.contains("missing") && said.contains("iB"), "{said}");
    assert_failed(&node.cli(&["plan", &model.name])?, "missing");
    Ok(())
}

fn write(dir: &TempDir, name: &str, bytes: &[u8]) -> Result<String> {
    let path = dir.path().join(name);
    fs::write(&path, bytes)?;
    Ok(path.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_model_file_is_refused_and_leaves_nothing_behind() -> Result<()> {
    let node = Node::start(&NodeOptions::default()).await?;
    let whole = fs::read(models::small()?.path)?;
    let dir = TempDir::new()?;
    let mut overlong = whole.clone();
    overlong[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let files = [
        write(&dir, "empty.gguf", b"")?,
        write(&dir, "text.gguf", b"this is not a model")?,
        write(&dir, "header-cut.gguf", &whole[..200])?,
        write(&dir, "data-cut.gguf", &whole[..whole.len() - 1_000])?,
        write(&dir, "overlong.gguf", &overlong)?,
        dir.path().join("missing.gguf").display().to_string(),
        dir.path().display().to_string(),
    ];
    for file in files {
        let name = Path::new(&file).file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        assert_failed(&node.cli(&["model", "add", &file])?, &name);
    }
    let models = node.cli_json(&["model", "ls"])?;
    assert_eq!(models.as_array().map(Vec::len), Some(0), "{models}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_the_same_data_directory_is_refused() -> Result<()> {
    let node = Node::start(&NodeOptions::default()).await?;
    let refused = node::start_refused(&NodeOptions {
        data: Some(node.data().to_path_buf()),
        ..NodeOptions::default()
    })?;
    assert_failed(&refused, "data");
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    let (status, _) = node.client.get_text("/health/live").await?;
    assert_eq!(status, 200, "the first node suffered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_named() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    for (flag, value) in [
        ("--api", format!("127.0.0.1:{port}")),
        ("--listen", format!("/ip4/127.0.0.1/tcp/{port}")),
    ] {
        let refused = node::start_refused(&NodeOptions {
            args: vec![flag.to_owned(), value],
            ..NodeOptions::default()
        })?;
        assert_failed(&refused, &port.to_string());
        assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    }
    Ok(())
}

#[test]
fn commands_without_a_node_say_where_they_looked() -> Result<()> {
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    assert_failed(&node::run(&["peers", "--api", &free])?, &free);
    Ok(())
}
