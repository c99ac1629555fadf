//! Stages whose KV caches may take so much memory and no more.

use crate::model::{Model, tokens};
use accel_inference::synthetic::{SyntheticArch, SyntheticSpec};
use accel_inference::{
    KvFormat, LayerRange, LoadOptions, Logits, Stage, StageError, StageInput, StageOutput,
    StepRequest,
};

/// Tokens of a block of the cache.
const BLOCK: usize = 64;

/// Bytes that a block of each layer takes.
fn blocks_bytes(model: &Model) -> u64 {
    let token = model.shape.kv_bytes_per_token_layer(model.kv) * u64::from(model.shape.layers);
    token * BLOCK as u64
}

/// A whole model whose caches may take `blocks` blocks of each layer.
fn bounded(model: &Model, blocks: u64) -> Box<dyn Stage> {
    let options = LoadOptions {
        threads: Some(2),
        kv: model.kv,
        kv_bytes: Some(blocks * blocks_bytes(model)),
        ..LoadOptions::default()
    };
    let whole = LayerRange::whole(model.shape.layers);
    model.load_with(whole, &options).unwrap()
}

fn request(seq: u64, position: usize, count: usize) -> StepRequest {
    StepRequest {
        seq,
        position,
        input: StageInput::Tokens(tokens(position + count).split_off(position)),
        want_logits: Logits::Last,
    }
}

fn step(
    stage: &mut Box<dyn Stage>,
    seq: u64,
    position: usize,
    count: usize,
) -> Result<StageOutput, StageError> {
    let outcome = stage.run(vec![request(seq, position, count)]).pop();
    outcome.unwrap()
}

/// Whether a step was refused for lack of `needed` blocks of each layer with `held` of them held.
fn is_refused<T>(outcome: &Result<T, StageError>, model: &Model, needed: u64, held: u64) -> bool {
    let Err(StageError::KvLimit {
        needed: more,
        held: now,
        ..
    }) = outcome
    else {
        return false;
    };
    let unit = blocks_bytes(model);
    (*more, *now) == (needed * unit, held * unit)
}

#[test]
fn a_step_beyond_the_memory_is_refused_others_go_on_and_it_may_come_again() {
    let model = Model::small(SyntheticArch::Llama).with_kv(KvFormat::Q8);
    let mut free = model.whole();
    free.open(1, 200).unwrap();
    step(&mut free, 1, 0, BLOCK).unwrap();
    let expected = step(&mut free, 1, BLOCK, 1).unwrap();

    let mut stage = bounded(&model, 2);
    stage.open(1, 200).unwrap();
    stage.open(2, 200).unwrap();
    step(&mut stage, 1, 0, BLOCK).unwrap();
    step(&mut stage, 2, 0, 10).unwrap();
    for position in 10..13 {
        let batch = vec![request(1, BLOCK, 1), request(2, position, 1)];
        let outcomes = stage.run(batch);
        assert!(is_refused(&outcomes[0], &model, 1, 2), "{:?}", outcomes[0]);
        assert!(outcomes[1].is_ok());
        assert_eq!(stage.len(1), Some(BLOCK));
    }
    stage.close(2);
    assert_eq!(step(&mut stage, 1, BLOCK, 1).unwrap(), expected);
}

#[test]
fn a_refused_sequence_can_be_shortened_and_goes_on() {
    let model = Model::small(SyntheticArch::Qwen2);
    let mut stage = bounded(&model, 3);
    stage.open(1, 400).unwrap();
    step(&mut stage, 1, 0, 2 * BLOCK).unwrap();
    let outcome = step(&mut stage, 1, 2 * BLOCK, 2 * BLOCK);
    assert!(is_refused(&outcome, &model, 2, 2), "{outcome:?}");
    assert!(outcome.unwrap_err().to_string().contains("allow more"));
    step(&mut stage, 1, 2 * BLOCK, BLOCK).unwrap();
    stage.truncate(1, BLOCK).unwrap();
    step(&mut stage, 1, BLOCK, 2 * BLOCK).unwrap();
}

#[test]
fn an_import_beyond_the_memory_is_refused() {
    let model = Model::small(SyntheticArch::Qwen3);
    let mut first = model.whole();
    first.open(1, 400).unwrap();
    step(&mut first, 1, 0, 3 * BLOCK).unwrap();
    let rows = first.export(1, 0..3 * BLOCK).unwrap();

    let mut stage = bounded(&model, 3);
    stage.open(1, 400).unwrap();
    stage.open(2, 400).unwrap();
    step(&mut stage, 2, 0, 1).unwrap();
    let outcome = stage.import(1, 0, &rows);
    assert!(is_refused(&outcome, &model, 3, 1), "{outcome:?}");
    assert_eq!(stage.len(1), Some(0));
    stage.close(2);
    stage.import(1, 0, &rows).unwrap();
}

#[test]
fn blocks_behind_a_window_are_counted_down() {
    let model = Model::generate(&SyntheticSpec {
        context: 4096,
        ..SyntheticSpec::small(SyntheticArch::Gemma3)
    });
    // One block less than all tokens of all layers would take.
    let blocks = 24;
    let mut stage = bounded(&model, blocks - 1);
    let count = blocks as usize * BLOCK;
    stage.open(1, count).unwrap();
    for position in (0..count).step_by(BLOCK) {
        step(&mut stage, 1, position, BLOCK).unwrap();
    }
}
