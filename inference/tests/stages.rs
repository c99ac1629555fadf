//! Behaviour of stages on small generated models of every architecture.

#[path = "stages/isas.rs"]
mod isas;
#[path = "stages/kv.rs"]
mod kv;
#[path = "stages/memory.rs"]
mod memory;
#[path = "stages/model.rs"]
mod model;

use accel_inference::synthetic::SyntheticArch;
use accel_inference::{
    Gguf, LayerRange, LoadError, LoadOptions, Logits, Stage, StageError, StageInput, StageOutput,
    StepRequest, load_stage,
};
use model::{Model, QUANTISATIONS, SEQ, answer, cuts, feed, parts, tokens};

#[test]
fn every_cut_into_up_to_four_stages_gives_the_bits_of_the_whole() {
    for model in Model::all() {
        let expected = answer(&mut [model.whole()]);
        for cut in cuts(model.shape.layers) {
            let load = |range: &LayerRange| model.load(*range, 1);
            let mut stages: Vec<_> = cut.iter().map(load).collect();
            assert!(
                answer(&mut stages) == expected,
                "{} cut into {cut:?} differs",
                model.label()
            );
        }
    }
}

#[test]
fn neither_threads_nor_chunks_change_a_bit() {
    for model in Model::all() {
        let all = tokens(40);
        let run = |threads: usize, chunk: usize| {
            let mut stages = [model.load(LayerRange::whole(model.shape.layers), threads)];
            stages[0].open(SEQ, 64).unwrap();
            let mut logits = Vec::new();
            for (index, part) in all.chunks(chunk).enumerate() {
                logits.extend(feed(&mut stages, index * chunk, part));
            }
            logits
        };
        let expected = run(1, 40);
        for (threads, chunk) in [(3, 40), (1, 1), (2, 7), (4, 17)] {
            assert!(
                run(threads, chunk) == expected,
                "{} on {threads} threads in chunks of {chunk} differs",
                model.label()
            );
        }
    }
}

#[test]
fn every_supported_quantisation_runs_and_splits() {
    for quantisation in QUANTISATIONS {
        let model = Model::quantised(quantisation);
        let whole = answer(&mut [model.whole()]);
        let mut stages: Vec<_> = parts(&[0, 1, 2])
            .into_iter()
            .map(|range| model.load(range, 2))
            .collect();
        assert!(answer(&mut stages) == whole, "{quantisation} differs");
    }
}

#[test]
fn truncating_and_going_on_equals_a_fresh_run() {
    for model in Model::all() {
        let all = tokens(30);
        let mut fresh = [model.whole()];
        fresh[0].open(SEQ, 64).unwrap();
        feed(&mut fresh, 0, &all[..12]);
        let expected = feed(&mut fresh, 12, &all[12..]);

        let mut reused = [model.whole()];
        reused[0].open(SEQ, 64).unwrap();
        feed(&mut reused, 0, &all[..12]);
        feed(&mut reused, 12, &[5, 6, 7, 8, 9]);
        reused[0].truncate(SEQ, 12).unwrap();
        assert_eq!(reused[0].len(SEQ), Some(12));
        assert_eq!(feed(&mut reused, 12, &all[12..]), expected);
    }
}

#[test]
fn a_sequence_among_fifteen_others_gives_the_same_bits_as_alone() {
    for model in Model::all() {
        let mut stage = model.whole();
        let prompt = |seq: u64| tokens(8 + seq as usize)[seq as usize..].to_vec();
        let request = |seq: u64, position: usize, tokens: Vec<u32>| StepRequest {
            seq,
            position,
            input: StageInput::Tokens(tokens),
            want_logits: Logits::All,
        };
        let mut alone = Vec::new();
        for seq in 0..16 {
            stage.open(seq, 64).unwrap();
            for step in [request(seq, 0, prompt(seq)), request(seq, 8, vec![3])] {
                alone.push(stage.run(vec![step]).pop().unwrap().unwrap());
            }
            stage.close(seq);
            stage.open(seq, 64).unwrap();
        }
        let prompts = stage.run((0..16).map(|seq| request(seq, 0, prompt(seq))).collect());
        let steps = stage.run((0..16).map(|seq| request(seq, 8, vec![3])).collect());
        for (seq, (prompt, step)) in prompts.into_iter().zip(steps).enumerate() {
            assert!(prompt.unwrap() == alone[2 * seq], "{}", model.label());
            assert!(step.unwrap() == alone[2 * seq + 1], "{}", model.label());
        }
    }
}

/// The layers take so many rows in several panels, whose ends lie within the prompts.
#[test]
fn prompts_of_several_hundred_rows_together_give_the_same_bits_as_alone() {
    const PROMPTS: [usize; 3] = [100, 61, 139];
    for model in Model::all() {
        let mut stage = model.whole();
        let request = |seq: usize| StepRequest {
            seq: seq as u64,
            position: 0,
            input: StageInput::Tokens(tokens(PROMPTS[seq])),
            want_logits: Logits::All,
        };
        let mut run = |batch: Vec<StepRequest>| {
            for step in &batch {
                stage.open(step.seq, 256).unwrap();
            }
            let seqs: Vec<_> = batch.iter().map(|step| step.seq).collect();
            let outputs: Vec<_> = stage.run(batch).into_iter().map(Result::unwrap).collect();
            seqs.into_iter().for_each(|seq| stage.close(seq));
            outputs
        };
        let alone: Vec<_> = (0..3).flat_map(|seq| run(vec![request(seq)])).collect();
        let together = run((0..3).map(request).collect());
        assert!(together == alone, "{}", model.label());
    }
}

#[test]
fn sequences_do_not_touch_each_other() {
    let model = Model::small(SyntheticArch::Llama);
    let expected = answer(&mut [model.whole()]);
    let mut stage = model.whole();
    stage.open(99, 32).unwrap();
    let other = StageInput::Tokens(vec![3, 4, 5]);
    stage.step(99, 0, other, Logits::None).unwrap();
    let mut stages = [stage];
    assert_eq!(answer(&mut stages), expected);
    assert_eq!(stages[0].len(99), Some(3));
    assert_eq!(stages[0].len(SEQ), None);
}

#[test]
fn a_step_that_does_not_fit_is_refused_and_changes_nothing() {
    let model = Model::small(SyntheticArch::Llama);
    let mut stage = model.whole();
    stage.open(SEQ, 4).unwrap();
    let feed = |stage: &mut Box<dyn Stage>, position, tokens: &[u32]| {
        stage.step(
            SEQ,
            position,
            StageInput::Tokens(tokens.to_vec()),
            Logits::Last,
        )
    };
    feed(&mut stage, 0, &[1, 2]).unwrap();

    let gap = feed(&mut stage, 3, &[1]);
    assert!(matches!(
        gap,
        Err(StageError::PositionGap { have: 2, got: 3 })
    ));
    let long = feed(&mut stage, 2, &[1, 2, 3]);
    assert!(matches!(
        long,
        Err(StageError::ContextOverflow {
            needed: 5,
            limit: 4
        })
    ));
    let foreign = feed(&mut stage, 2, &[512]);
    assert!(matches!(
        foreign,
        Err(StageError::TokenOutOfRange { token: 512, .. })
    ));
    let empty = feed(&mut stage, 2, &[]);
    assert!(matches!(empty, Err(StageError::BadInput { .. })));
    assert_eq!(stage.len(SEQ), Some(2));
    feed(&mut stage, 2, &[3]).unwrap();
}

#[test]
fn opening_closing_and_truncating_check_the_sequence() {
    let model = Model::small(SyntheticArch::Llama);
    let mut stage = model.whole();
    let too_long = stage.open(SEQ, model.shape.context as usize + 1);
    assert!(matches!(too_long, Err(StageError::ContextOverflow { .. })));
    stage.open(SEQ, 4).unwrap();
    let twice = stage.open(SEQ, 4);
    assert!(matches!(
        twice,
        Err(StageError::SequenceExists { seq: SEQ })
    ));
    let beyond = stage.truncate(SEQ, 1);
    assert!(matches!(beyond, Err(StageError::PositionGap { .. })));
    stage.close(SEQ);
    let gone = stage.truncate(SEQ, 0);
    assert!(matches!(
        gone,
        Err(StageError::UnknownSequence { seq: SEQ })
    ));
}

#[test]
fn a_middle_stage_refuses_tokens_wrong_sizes_and_values_that_are_not_finite() {
    let model = Model::small(SyntheticArch::Gemma3);
    let mut stage = model.load(LayerRange::new(2, 4), 1);
    stage.open(SEQ, 8).unwrap();
    let width = model.shape.hidden as usize;
    let mut step = |input| stage.step(SEQ, 0, input, Logits::Last);

    let bad = |outcome| matches!(outcome, Err(StageError::BadInput { .. }));
    assert!(bad(step(StageInput::Tokens(vec![1]))));
    assert!(bad(step(StageInput::Hidden {
        rows: 2,
        data: vec![0.0; width]
    })));
    assert!(bad(step(StageInput::Hidden {
        rows: 0,
        data: Vec::new()
    })));
    let mut data = vec![0.5; width];
    data[3] = f32::NAN;
    let outcome = step(StageInput::Hidden { rows: 1, data });
    assert!(matches!(outcome, Err(StageError::NonFinite { .. })));
    // Values so large that the squares in the norm overflow.
    let data = vec![1e30; width];
    let outcome = step(StageInput::Hidden { rows: 1, data });
    let is_refused_or_finite = match outcome {
        Ok(StageOutput::Hidden { data, .. }) => data.iter().all(|value| value.is_finite()),
        Err(StageError::NonFinite { .. }) => true,
        _ => false,
    };
    assert!(is_refused_or_finite);
}

#[test]
fn the_last_stage_gives_as_many_logits_as_are_wanted() {
    let model = Model::small(SyntheticArch::Qwen2);
    let mut stage = model.whole();
    stage.open(SEQ, 16).unwrap();
    let mut step = |position, want| {
        let input = StageInput::Tokens(vec![4, 5, 6]);
        stage.step(SEQ, position, input, want).unwrap()
    };
    assert_eq!(step(0, Logits::None), StageOutput::Nothing);
    let vocab = model.shape.vocab as usize;
    match step(3, Logits::Last) {
        StageOutput::Logits { rows: 1, data } => assert_eq!(data.len(), vocab),
        other => panic!("{other:?}"),
    }
    match step(6, Logits::All) {
        StageOutput::Logits { rows: 3, data } => assert_eq!(data.len(), 3 * vocab),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stage_loads_from_a_file_that_holds_only_its_ranges() {
    for model in Model::all() {
        let complete = std::fs::read(&model.path).unwrap();
        for cut in [parts(&[0, 3, 8]), parts(&[0, 1, 7, 8])] {
            let dir = tempfile::tempdir().unwrap();
            let mut stages = Vec::new();
            for range in &cut {
                // Bytes outside the ranges are spoilt, so that reading one would show.
                let mut sparse = vec![0xff; complete.len()];
                for bytes in model.shape.byte_ranges(&model.gguf, range) {
                    let bytes = bytes.start as usize..bytes.end as usize;
                    sparse[bytes.clone()].copy_from_slice(&complete[bytes]);
                }
                let path = dir.path().join(format!("{}.gguf", range.first));
                std::fs::write(&path, sparse).unwrap();
                let gguf = Gguf::open(&path).unwrap();
                let options = LoadOptions {
                    kv: model.kv,
                    ..LoadOptions::default()
                };
                let stage = load_stage(&path, &gguf, *range, &options).unwrap();
                assert_eq!(stage.weights_bytes() / 64, loaded(&model, range) / 64);
                stages.push(stage);
            }
            assert!(answer(&mut stages) == answer(&mut [model.whole()]));
        }
    }
}

/// What the shape says a stage takes; the divisors of the rotary embedding are not counted there.
fn loaded(model: &Model, range: &LayerRange) -> u64 {
    let tensors = model.gguf.tensors.iter();
    let divisors = tensors.filter(|tensor| tensor.name.starts_with("rope_"));
    model.shape.stage_bytes(range) + divisors.map(|tensor| tensor.bytes).sum::<u64>()
}

#[test]
fn loading_refuses_bad_ranges_and_missing_backends() {
    let model = Model::small(SyntheticArch::Llama);
    let load =
        |range, options: &LoadOptions| load_stage(&model.path, &model.gguf, range, options).err();
    let auto = LoadOptions::default();
    for (first, end) in [(0, 9), (3, 3), (5, 2), (8, 9)] {
        let error = load(LayerRange::new(first, end), &auto);
        assert!(
            matches!(error, Some(LoadError::BadRange { .. })),
            "{first}..{end}"
        );
    }
    let cuda = LoadOptions {
        device: "cuda".parse().unwrap(),
        ..auto
    };
    let error = load(LayerRange::whole(8), &cuda);
    assert!(matches!(
        error,
        Some(LoadError::DeviceUnavailable { device: "cuda" })
    ));
    assert!("abacus".parse::<accel_inference::Device>().is_err());
}

#[test]
fn loading_a_file_that_lost_its_end_is_an_error() {
    let model = Model::small(SyntheticArch::Llama);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&model.path)
        .unwrap();
    file.set_len(model.gguf.file_len / 2).unwrap();
    let range = LayerRange::whole(8);
    let error = load_stage(&model.path, &model.gguf, range, &LoadOptions::default()).err();
    assert!(matches!(error, Some(LoadError::Read { .. })));
}
