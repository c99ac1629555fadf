//! What `accel eval` and `accel bench` report, on generated models.

use accel_inference::LoadOptions;
use accel_inference::bench::{BenchError, BenchOptions, bench};
use accel_inference::eval::{EvalError, evaluate};
use accel_inference::synthetic::{SyntheticArch, SyntheticSpec, generate};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn model(dir: &Path) -> PathBuf {
    let path = dir.join("model.gguf");
    generate(&SyntheticSpec::small(SyntheticArch::Gemma3), &path).unwrap();
    path
}

fn reference(dir: &Path, tokens: Value, top5: Value) -> PathBuf {
    let path = dir.join("reference.json");
    let completion = json!({"prompt_tokens": [1, 2, 3], "tokens": tokens, "top5": top5});
    let text = json!({"completions": [completion]}).to_string();
    std::fs::write(&path, text).unwrap();
    path
}

fn keys(report: &impl serde::Serialize) -> Vec<String> {
    let value = serde_json::to_value(report).unwrap();
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn an_evaluation_reports_the_documented_keys_and_repeats_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let top5 = json!([[[9, -1.0]], [[8, -2.0], [7, -3.0]]]);
    let reference = reference(dir.path(), json!([9, 8]), top5);
    let run = |threads| {
        let options = LoadOptions {
            threads: Some(threads),
            ..LoadOptions::default()
        };
        evaluate(&model, &reference, &options, &|_, _| {}).unwrap()
    };
    let report = run(1);
    let documented = [
        "positions",
        "top1_agreement",
        "mean_abs_logprob_diff",
        "max_abs_logprob_diff",
        "nll",
        "logits_blake3",
    ];
    assert_eq!(keys(&report), documented);
    assert_eq!(report.positions, 2);
    assert_eq!(report.logits_blake3.len(), 64);
    assert_eq!(run(3), report);
}

#[test]
fn a_reference_that_is_not_one_or_belongs_to_another_model_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let run = |reference: &Path| {
        let options = LoadOptions::default();
        evaluate(&model, reference, &options, &|_, _| {}).unwrap_err()
    };
    let missing = run(&dir.path().join("nothing.json"));
    assert!(matches!(missing, EvalError::Read { .. }));
    let uneven = run(&reference(dir.path(), json!([1, 2]), json!([])));
    assert!(matches!(uneven, EvalError::BadReference { .. }));
    let top5 = json!([[[90_000, -1.0]], [[1, -1.0]]]);
    let foreign = run(&reference(dir.path(), json!([90_000, 1]), top5));
    assert!(matches!(foreign, EvalError::Stage(_)));
}

#[test]
fn a_benchmark_reports_the_documented_keys() {
    let dir = tempfile::tempdir().unwrap();
    let options = BenchOptions {
        prompt: 20,
        generate: 4,
        batch: 2,
        load: LoadOptions::default(),
    };
    let report = bench(&model(dir.path()), &options).unwrap();
    let documented = [
        "prefill_tok_s",
        "decode_tok_s",
        "load_s",
        "peak_rss_mib",
        "weights_bytes",
        "memory_gb_s",
        "int8_gmac_s",
        "decode_gb_s",
        "prefill_gmac_s",
        "isa",
        "numerics",
    ];
    assert_eq!(keys(&report), documented);
    assert!(report.memory_gb_s > 0.0 && report.int8_gmac_s > 0.0);
    assert!(report.prefill_tok_s > 0.0 && report.decode_tok_s > 0.0);
    assert!(report.peak_rss_mib > 0.0 && report.weights_bytes > 0);
    assert_eq!(report.numerics, accel_inference::KvFormat::F16.numerics());
}

#[test]
fn a_benchmark_that_does_not_fit_the_context_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    for (prompt, generate, batch) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (512, 1, 1), (1, 1, 257)] {
        let options = BenchOptions {
            prompt,
            generate,
            batch,
            load: LoadOptions::default(),
        };
        let outcome = bench(&model, &options);
        assert!(matches!(outcome, Err(BenchError::BadOptions(_))));
    }
}
