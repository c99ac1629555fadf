//! The forms of the cache: rows that go from stage to stage, and what eight bits cost.

use crate::model::{Model, SEQ, feed, tokens};
use accel_inference::synthetic::SyntheticArch;
use accel_inference::{KvFormat, LayerRange, Stage, StageError};
use proptest::prelude::*;

/// The model's stage with a sequence of so many tokens, and the bits of their logits.
fn filled(model: &Model, count: usize) -> (Box<dyn Stage>, Vec<u32>) {
    let mut stages = [model.whole()];
    stages[0].open(SEQ, 256).unwrap();
    let logits = feed(&mut stages, 0, &tokens(count));
    let [stage] = stages;
    (stage, logits)
}

fn in_form(kv: KvFormat) -> Model {
    Model::small(SyntheticArch::Llama).with_kv(kv)
}

#[test]
fn a_cache_that_was_exported_goes_on_elsewhere_with_the_same_bits() {
    for model in Model::all() {
        let mut first = [filled(&model, 21).0];
        let rows = first[0].export(SEQ, 0..21).unwrap();
        let layers = u64::from(model.shape.layers);
        let expected = 21 * layers * model.shape.kv_bytes_per_token_layer(model.kv) + 1;
        assert_eq!(rows.len() as u64, expected);
        let expected = feed(&mut first, 21, &[1, 2, 3]);

        let mut other = [model.whole()];
        other[0].open(SEQ, 64).unwrap();
        let shifted = other[0].import(SEQ, 0, &rows[1..]);
        assert!(shifted.is_err(), "{}", model.label());
        other[0].import(SEQ, 0, &rows).unwrap();
        assert_eq!(other[0].export(SEQ, 0..21).unwrap(), rows);
        let got = feed(&mut other, 21, &[1, 2, 3]);
        assert!(got == expected, "{}", model.label());
    }
}

#[test]
fn rows_of_another_form_are_refused_and_nothing_changes() {
    for [own, foreign] in [[0, 1], [1, 0]].map(|pair| pair.map(|index| KvFormat::ALL[index])) {
        let rows = filled(&in_form(foreign), 5).0.export(SEQ, 0..5).unwrap();
        let mut stage = in_form(own).whole();
        stage.open(SEQ, 64).unwrap();
        let outcome = stage.import(SEQ, 0, &rows);
        let is_refused = matches!(
            outcome,
            Err(StageError::KvMismatch { have, got }) if have == own && got == foreign
        );
        assert!(is_refused, "{outcome:?}");
        assert_eq!(stage.len(SEQ), Some(0));
    }
}

#[test]
fn rows_that_no_stage_gave_are_refused() {
    for kv in KvFormat::ALL {
        let model = in_form(kv);
        let rows = filled(&model, 3).0.export(SEQ, 0..3).unwrap();
        let mut stage = model.whole();
        stage.open(SEQ, 2).unwrap();
        let mut import = |data: &[u8]| stage.import(SEQ, 0, data).unwrap_err();
        for bad in [&[][..], &[0], &[77, 1, 2], &rows[..rows.len() - 1]] {
            let error = import(bad);
            assert!(matches!(error, StageError::BadInput { .. }), "{error}");
        }
        let long = import(&rows);
        assert!(matches!(long, StageError::ContextOverflow { .. }), "{long}");
        let mut odd = rows[..=2 * (rows.len() - 1) / 3].to_vec();
        // Of eight bits only the scales can be anything but numbers.
        odd[1..].fill(0xff);
        let odd = import(&odd);
        assert!(matches!(odd, StageError::NonFinite { .. }), "{odd}");
        stage.import(SEQ, 0, &rows[..1]).unwrap();
        assert_eq!(stage.len(SEQ), Some(0));
    }
}

#[test]
fn each_form_is_a_numerics_class_of_its_own() {
    for kv in KvFormat::ALL {
        let stage = in_form(kv).whole();
        assert_eq!(stage.numerics(), kv.numerics());
    }
    assert_ne!(KvFormat::F16.numerics(), KvFormat::Q8.numerics());
}

/// Mean and largest difference of two sets of logits, in deviations of the first.
fn distance(expected: &[u32], got: &[u32]) -> (f64, f64) {
    let number = |bits: &u32| f64::from(f32::from_bits(*bits));
    let count = expected.len() as f64;
    let mean = expected.iter().map(number).sum::<f64>() / count;
    let variance = expected
        .iter()
        .map(|bits| (number(bits) - mean).powi(2))
        .sum::<f64>()
        / count;
    let pairs = expected.iter().zip(got);
    let differences = pairs.map(|(a, b)| (number(a) - number(b)).abs() / variance.sqrt());
    let (sum, largest) = differences.fold((0.0, 0.0f64), |(sum, largest), difference| {
        (sum + difference, largest.max(difference))
    });
    (sum / count, largest)
}

/// Random weights exaggerate: nothing in them averages out. The mean is 0.02 to 0.05 of a deviation,
/// ten times what half precision costs; a scale or a group that is wrong moves the logits by whole
/// deviations.
#[test]
fn the_logits_with_eight_bits_are_close_to_those_with_sixteen() {
    // With experts a near-tie may send a token elsewhere.
    let with_experts = [SyntheticArch::Mixtral, SyntheticArch::Qwen2Moe];
    for arch in SyntheticArch::ALL {
        if with_experts.contains(&arch) {
            continue;
        }
        let [half, bytes] = KvFormat::ALL.map(|kv| filled(&Model::small(arch).with_kv(kv), 100).1);
        let (mean, largest) = distance(&half, &bytes);
        eprintln!("{}: mean {mean:.1e}, largest {largest:.1e}", arch.label());
        assert!(mean > 0.0, "{arch:?} has the same logits with either");
        assert!(mean < 0.1 && largest < 1.0, "{arch:?}: {mean}, {largest}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Cuts, chunks, threads, others in the batch, rows from elsewhere: none changes a bit.
    #[test]
    fn nothing_but_the_tokens_changes_a_bit(
        kind in 0..SyntheticArch::ALL.len(),
        is_bytes in any::<bool>(),
        cut in 1u32..8,
        threads in 1usize..4,
        chunk in 1usize..90,
        moved in 1usize..150,
    ) {
        let kv = if is_bytes { KvFormat::Q8 } else { KvFormat::F16 };
        let model = Model::small(SyntheticArch::ALL[kind]).with_kv(kv);
        let all = tokens(150);
        let mut whole = [model.whole()];
        whole[0].open(SEQ, 150).unwrap();
        let expected = feed(&mut whole, 0, &all);

        let ranges = [LayerRange::new(0, cut), LayerRange::new(cut, 8)];
        let mut stages = ranges.map(|range| model.load(range, threads));
        let mut logits = Vec::new();
        for stage in &mut stages {
            stage.open(SEQ, 150).unwrap();
        }
        for (index, part) in all[..moved].chunks(chunk).enumerate() {
            logits.extend(feed(&mut stages, index * chunk, part));
        }
        let mut others = ranges.map(|range| model.load(range, 1));
        for (from, to) in stages.iter().zip(&mut others) {
            to.open(SEQ, 150).unwrap();
            let middle = moved / 2;
            for tokens in [0..middle, middle..moved] {
                let rows = from.export(SEQ, tokens.clone()).unwrap();
                to.import(SEQ, tokens.start, &rows).unwrap();
            }
        }
        for (index, part) in all[moved..].chunks(chunk).enumerate() {
            logits.extend(feed(&mut others, moved + index * chunk, part));
        }
        prop_assert!(logits == expected, "{}", model.label());
    }
}
