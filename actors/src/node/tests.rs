mod critical;
mod sharing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use accel_inference::KvFormat;
use tempfile::TempDir;

use super::NodeHandle;
use crate::config::NodeConfig;
use crate::error::ErrorKind;
use crate::request::{FinishReason, GenEvent, GenerateRequest, Generation, Input};
use crate::supervisor::{AskError, Crash};
use crate::testing::{PATIENCE, synthetic_model};
use crate::views::ModelView;

const ANSWER: u32 = 12;

/// A node on loopback with its data.
struct Running {
    node: NodeHandle,
    dir: TempDir,
}

async fn start(change: impl FnOnce(&mut NodeConfig)) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let mut config = NodeConfig::loopback(dir.path().join("data"));
    config.swarm = Some("actors-test".into());
    config.threads = Some(1);
    // What others compute again disturbs what is counted; tests of that say so.
    config.audit_share = 0;
    config.memory_limit = Some(1 << 30);
    config.limits.header_timeout = Duration::from_secs(20);
    change(&mut config);
    let node = NodeHandle::start(config).await.unwrap();
    Running { node, dir }
}

async fn add_model(running: &Running) -> ModelView {
    let path: PathBuf = synthetic_model(running.dir.path());
    running
        .node
        .model_add(path, Some("small".into()), Arc::new(|_, _| {}))
        .await
        .unwrap()
}

fn request() -> GenerateRequest {
    GenerateRequest {
        input: Input::Tokens(vec![7, 300, 12, 45, 101]),
        max_tokens: Some(ANSWER),
        ..GenerateRequest::text("small", "")
    }
}

/// The tokens of an answer, and how it ended.
async fn collect(mut generation: Generation) -> (Vec<u32>, GenEvent) {
    let mut tokens = Vec::new();
    loop {
        let event = tokio::time::timeout(PATIENCE, generation.events.recv()).await;
        match event.expect("an event comes").expect("an outcome comes") {
            GenEvent::Token { index, token, .. } => {
                assert_eq!(index, tokens.len() as u64);
                tokens.push(token);
            }
            end => return (tokens, end),
        }
    }
}

async fn answer(node: &NodeHandle) -> Vec<u32> {
    let (tokens, end) = collect(node.generate(request()).await.unwrap()).await;
    assert!(matches!(end, GenEvent::Done { .. }), "{end:?}");
    tokens
}

/// More than two chunks of prompt, and chance in the sampler.
fn long_request() -> GenerateRequest {
    let mut request = GenerateRequest {
        input: Input::Tokens((0..480).map(|n| 300 + n % 200).collect()),
        ..request()
    };
    request.sampling.temperature = 1.5;
    request.sampling.seed = 7;
    request
}

async fn long_answer(node: &NodeHandle) -> Vec<u32> {
    let (tokens, end) = collect(node.generate(long_request()).await.unwrap()).await;
    assert!(matches!(end, GenEvent::Done { .. }), "{end:?}");
    tokens
}

/// Waits until a node sees the model at a connected peer.
async fn wait_for_offer(node: &NodeHandle) {
    let seen = async {
        loop {
            let models = node.models().await.unwrap();
            if models.iter().any(|model| model.peers > 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("the model is advertised");
}

#[actix::test]
async fn one_node_answers_the_same_every_time_and_forgets_nothing_of_it() {
    let running = start(|_| {}).await;
    let model = add_model(&running).await;
    let node = &running.node;
    let first = answer(node).await;
    assert_eq!(answer(node).await, first);

    let sessions = node.sessions();
    let view = sessions.first().expect("the session is shown");
    assert_eq!(
        (view.state.as_str(), view.tokens),
        ("done", first.len() as u64)
    );
    assert_eq!(view.cid, model.cid);
    assert_eq!(view.route_header(), format!("{}:0-7", node.peer_id()));
    assert_eq!(node.session(&view.id).as_ref(), Some(view));
    assert!(node.metrics().contains("accel_tokens_emitted_total"));
    assert!(node.ready().is_ok());
    node.shutdown().await;
    assert!(node.ready().is_err());
}

#[actix::test]
async fn a_node_with_a_cache_in_eight_bits_says_so_and_answers_with_it() {
    let running = start(|config| config.kv = KvFormat::Q8).await;
    add_model(&running).await;
    let node = &running.node;
    let own = node.peers().await.unwrap().remove(0);
    assert_eq!(own.numerics, KvFormat::Q8.numerics());
    let plan = node.plan("small", Some(1000)).await.unwrap();
    assert_eq!(plan.numerics, own.numerics);
    let detail = node.model_show("small").await.unwrap();
    assert_eq!(plan.stages[0].kv_bytes, 512 * detail.kv_bytes_per_token);
    assert_eq!(answer(node).await.len(), ANSWER as usize);
    node.shutdown().await;
}

#[actix::test]
async fn two_nodes_with_a_limit_on_layers_split_the_model_and_give_the_identical_tokens() {
    let whole = start(|_| {}).await;
    add_model(&whole).await;
    let expected = answer(&whole.node).await;
    let expected_long = long_answer(&whole.node).await;
    let expected_crowd = sharing::one_by_one(&whole.node).await;
    whole.node.shutdown().await;

    let first = start(|config| config.max_layers = Some(5)).await;
    add_model(&first).await;
    let second = start(|config| {
        config.max_layers = Some(5);
        config.join = first.node.addrs();
    })
    .await;
    wait_for_offer(&second.node).await;
    let plan = second.node.plan("small", None).await.unwrap();
    assert_eq!(plan.stages.len(), 2, "{plan:?}");
    assert_eq!(answer(&second.node).await, expected);
    assert_eq!(long_answer(&second.node).await, expected_long);
    assert_eq!(sharing::all_at_once(&second.node).await, expected_crowd);

    let view = second.node.sessions().remove(0);
    assert_eq!(view.route.len(), 2);
    assert!(
        view.route
            .iter()
            .any(|hop| hop.peer_id == first.node.peer_id())
    );
    let here = second.node.models().await.unwrap().remove(0);
    assert!(
        here.present_bytes > 0 && here.present_bytes < here.bytes,
        "{here:?}"
    );
    assert_eq!(here.name, "small", "it learnt the name from the swarm");
    for node in [second.node, first.node] {
        node.shutdown().await;
    }
}

#[actix::test]
async fn a_peer_that_leaves_in_mid_answer_ends_the_request_and_the_node_goes_on() {
    let first = start(|config| config.max_layers = Some(5)).await;
    add_model(&first).await;
    let second = start(|config| {
        config.max_layers = Some(5);
        config.join = first.node.addrs();
    })
    .await;
    wait_for_offer(&second.node).await;
    let long = GenerateRequest {
        max_tokens: Some(480),
        ..request()
    };
    let mut generation = second.node.generate(long).await.unwrap();
    let token = tokio::time::timeout(PATIENCE, generation.events.recv())
        .await
        .unwrap();
    assert!(matches!(token, Some(GenEvent::Token { .. })), "{token:?}");

    first.node.shutdown().await;
    let end = loop {
        let event = tokio::time::timeout(PATIENCE, generation.events.recv()).await;
        match event.expect("it does not hang") {
            Some(GenEvent::Token { .. }) => {}
            end => break end,
        }
    };
    let Some(GenEvent::Failed {
        kind,
        message,
        hint,
        ..
    }) = end
    else {
        panic!("{end:?}");
    };
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(!message.is_empty() && !hint.is_empty());
    let noticed = async {
        while second.node.plan("small", None).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed)
        .await
        .expect("the peer is gone from the directory");
    let alone = second.node.generate(request()).await.unwrap_err();
    assert_eq!(alone.code(), "layer_limits", "{alone}");
    second.node.shutdown().await;
}

#[actix::test]
async fn dropping_the_answer_cancels_the_session_and_frees_its_memory() {
    let running = start(|_| {}).await;
    add_model(&running).await;
    let long = GenerateRequest {
        max_tokens: Some(480),
        ..request()
    };
    let mut generation = running.node.generate(long).await.unwrap();
    generation.events.recv().await.expect("it has begun");
    let id = generation.id.clone();
    drop(generation);
    let ended = async {
        while running.node.session(&id).expect("it is shown").state != "cancelled"
            || running.node.inner.shelf.sessions() > 0
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("it is cancelled");
    assert!(!answer(&running.node).await.is_empty(), "others are served");
    running.node.shutdown().await;
}

#[actix::test]
async fn bad_requests_get_errors_with_a_code_and_a_hint() {
    let running = start(|config| config.limits.header_timeout = Duration::from_secs(1)).await;
    add_model(&running).await;
    let text = running.dir.path().join("text.gguf");
    std::fs::write(&text, "no model at all").unwrap();
    let nobody = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let with = |model: &str| GenerateRequest {
        model: model.to_owned(),
        ..request()
    };
    let cases = [
        (with("unheard-of"), "model_not_found"),
        (with(nobody), "content_not_found"),
        (with("/no/such/file.gguf"), "file_not_found"),
        (with(text.to_str().unwrap()), "bad_model_file"),
        (
            GenerateRequest {
                input: Input::Tokens(vec![1; 600]),
                ..request()
            },
            "context_length_exceeded",
        ),
        (
            GenerateRequest {
                input: Input::Tokens(Vec::new()),
                ..request()
            },
            "empty_prompt",
        ),
        (
            GenerateRequest {
                input: Input::Tokens(vec![1 << 20]),
                ..request()
            },
            "invalid_value",
        ),
        (
            GenerateRequest {
                max_tokens: Some(0),
                ..request()
            },
            "invalid_value",
        ),
    ];
    for (request, code) in cases {
        let error = running.node.generate(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(!error.hint().is_empty());
    }
    assert!(!answer(&running.node).await.is_empty(), "the node goes on");
    running.node.shutdown().await;
}

#[actix::test]
async fn the_answer_ends_before_a_stop_text() {
    let running = start(|_| {}).await;
    add_model(&running).await;
    let mut generation = running.node.generate(request()).await.unwrap();
    let mut text = String::new();
    while let Some(event) = generation.events.recv().await {
        match event {
            GenEvent::Token { text: piece, .. } => text.push_str(&piece),
            GenEvent::Done { text_tail, .. } => text.push_str(&text_tail),
            GenEvent::Failed { message, .. } => panic!("{message}"),
        }
    }
    let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[middle..].chars().take(2).collect();
    let expected = &text[..text.find(&stop).unwrap()];

    let stopping = GenerateRequest {
        stop: vec![stop.clone()],
        ..request()
    };
    let mut generation = running.node.generate(stopping).await.unwrap();
    let (mut stopped, mut finished) = (String::new(), None);
    while let Some(event) = generation.events.recv().await {
        match event {
            GenEvent::Token { text: piece, .. } => stopped.push_str(&piece),
            GenEvent::Done {
                finish, text_tail, ..
            } => {
                stopped.push_str(&text_tail);
                finished = Some(finish);
            }
            GenEvent::Failed { message, .. } => panic!("{message}"),
        }
    }
    assert_eq!(
        (stopped.as_str(), finished),
        (expected, Some(FinishReason::Stop))
    );
    running.node.shutdown().await;
}

#[actix::test]
async fn a_panicked_router_is_replaced_and_requests_are_answered_as_before() {
    let running = start(|_| {}).await;
    add_model(&running).await;
    let expected = answer(&running.node).await;
    let crashed = running.node.inner.router.ask(Crash, PATIENCE).await;
    assert!(
        matches!(crashed, Err(AskError::Crashed { .. })),
        "{crashed:?}"
    );
    assert_eq!(answer(&running.node).await, expected);
    assert!(running.node.metrics().contains("accel_actor_restarts 1"));
    running.node.shutdown().await;
}
