//! Sessions that share the stages and the memory of a node.

use std::path::Path;

use accel_inference::{Gguf, LayerRange, ModelShape};

use super::*;
use crate::error::MEMORY_IN_USE;

type Collected = (Vec<u32>, GenEvent);

/// Prompts of all lengths, some longer than a chunk, with chance in the sampler.
fn crowd() -> impl Iterator<Item = GenerateRequest> {
    let lengths = [(1, 30), (480, 12), (5, 40), (300, 20), (64, 25), (257, 15)];
    let one = |(prompt, answer): (u32, u32)| {
        let mut request = GenerateRequest {
            input: Input::Tokens((0..prompt).map(|n| 300 + (n * prompt) % 200).collect()),
            max_tokens: Some(answer),
            ..request()
        };
        request.sampling.temperature = 1.0;
        request.sampling.seed = u64::from(prompt);
        request
    };
    lengths.into_iter().map(one)
}

/// The crowd's answers, each computed while nothing else is.
pub(super) async fn one_by_one(node: &NodeHandle) -> Vec<Collected> {
    let mut answers = Vec::new();
    for request in crowd() {
        answers.push(collect(node.generate(request).await.unwrap()).await);
    }
    answers
}

/// The crowd's answers, computed together.
pub(super) async fn all_at_once(node: &NodeHandle) -> Vec<Collected> {
    let answers = crowd().map(|request| async {
        let generation = node.generate(request).await.unwrap();
        collect(generation).await
    });
    futures::future::join_all(answers).await
}

/// A metric without labels.
fn metric(node: &NodeHandle, name: &str) -> f64 {
    let text = node.metrics();
    let lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let mut values = lines.filter_map(|rest| rest.trim().parse().ok());
    values.next().expect("the metric is there")
}

/// Batches, and steps over all of them.
fn computed(node: &NodeHandle) -> (f64, f64) {
    let batches = metric(node, "accel_stage_batch_rows_count");
    (batches, metric(node, "accel_stage_batch_sessions_sum"))
}

#[actix::test]
async fn sessions_that_share_the_stage_get_the_tokens_that_each_gets_alone() {
    let running = start(|_| {}).await;
    add_model(&running).await;
    let alone = one_by_one(&running.node).await;
    let (batches_alone, steps_alone) = computed(&running.node);
    assert_eq!(batches_alone, steps_alone, "one session at a time");

    assert_eq!(all_at_once(&running.node).await, alone);
    let (batches, steps) = computed(&running.node);
    let (batches, steps) = (batches - batches_alone, steps - steps_alone);
    assert_eq!(steps, steps_alone, "the same steps");
    assert!(batches < steps, "{steps} steps in {batches} batches");
    running.node.shutdown().await;
}

/// Memory for the weights and the caches of one and a half sessions like [`whole_context`].
fn memory_for_one(dir: &Path) -> u64 {
    let path = synthetic_model(dir);
    let shape = ModelShape::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let cache = shape.kv_bytes_per_token_layer(KvFormat::F16) * u64::from(shape.layers) * 485;
    shape.stage_bytes(&LayerRange::whole(shape.layers)) + cache * 3 / 2
}

fn whole_context() -> GenerateRequest {
    GenerateRequest {
        max_tokens: Some(480),
        ..request()
    }
}

#[actix::test]
async fn a_session_waits_for_memory_that_another_holds_and_then_gets_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(|config| {
        config.memory_limit = Some(memory_for_one(dir.path()));
        config.limits.memory_wait = PATIENCE;
    })
    .await;
    add_model(&running).await;
    let first = running.node.generate(whole_context()).await.unwrap();
    let second = running.node.generate(whole_context()).await.unwrap();
    let ids = [first.id.clone(), second.id.clone()];
    let ((first, first_end), (second, second_end)) =
        futures::future::join(collect(first), collect(second)).await;
    for end in [first_end, second_end] {
        assert!(matches!(end, GenEvent::Done { .. }), "{end:?}");
    }
    assert_eq!(first, second);
    let epoch = |id: &String| running.node.session(id).expect("it is shown").epoch;
    assert!(ids.iter().any(|id| epoch(id) > 1), "one was placed again");
    running.node.shutdown().await;
}

#[actix::test]
async fn a_session_that_gets_no_memory_in_time_ends_with_a_clear_error_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(|config| {
        config.memory_limit = Some(memory_for_one(dir.path()));
        config.limits.memory_wait = Duration::from_millis(20);
    })
    .await;
    add_model(&running).await;
    let mut first = running.node.generate(whole_context()).await.unwrap();
    first.events.recv().await.expect("it has begun");
    let second = running.node.generate(whole_context()).await.unwrap();
    let (tokens, end) = collect(second).await;
    assert!(tokens.is_empty());
    let GenEvent::Failed {
        kind, code, hint, ..
    } = end
    else {
        panic!("{end:?}");
    };
    assert_eq!(
        (kind, code.as_str()),
        (ErrorKind::Overloaded, MEMORY_IN_USE)
    );
    assert!(hint.contains("other sessions"), "{hint}");
    let small = running.node.generate(request()).await.unwrap();
    let (_, end) = collect(small).await;
    assert!(matches!(end, GenEvent::Done { .. }), "what fits is served");
    assert!(first.events.recv().await.is_some(), "the first goes on");
    running.node.shutdown().await;
}
