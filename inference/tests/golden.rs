//! Logits of small generated models against those that another implementation gives.
//!
//! `tests/data/golden` holds what Hugging Face transformers computes for each model; how is in
//! `tests/python/golden.py` at the root of the repository.

use accel_inference::gguf::TensorType;
use accel_inference::synthetic::golden::{GoldenModel, MODELS};
use accel_inference::synthetic::{generate, generate_bytes};
use accel_inference::{
    Gguf, LayerRange, LoadOptions, Logits, ModelShape, Stage, StageInput, StageOutput, load_stage,
};
use serde::Deserialize;
use std::path::Path;

/// Models that the engine runs.
const RUN: [&str; 8] = [
    "llama",
    "llama-linear",
    "llama-llama3",
    "mistral",
    "qwen2",
    "gemma3",
    "gemma3-linear",
    "llama-q8_0",
];

/// Models that it will run, and refuses until then.
const PLANNED: [&str; 10] = [
    "llama-yarn",
    "mixtral",
    "qwen2moe",
    "qwen3",
    "gemma2",
    "phi3",
    "phi3-short",
    "phi3-long",
    "mixtral-q8_0",
    "phi3-q8_0",
];

/// The largest difference of a logit that passes, in standard deviations of the logits.
///
/// The weights are plain floats and the data has six digits, so little tells the two apart: the
/// order of the additions (1e-5) and the precision of the KV cache. Rounding the keys and values of
/// the other implementation to half precision moves its logits by 1e-3 to 3e-3; a wrong rotation,
/// window or norm moves them by a tenth and more.
const TOLERANCE: f64 = 5e-3;

/// The same for weights in blocks, with which kernels multiply activations that are rounded to
/// eight bits. Rounding those of the other implementation moves its logits by 0.06 to 0.1.
const BLOCK_TOLERANCE: f64 = 0.15;

const SEQ: u64 = 1;

/// What the other implementation computed.
#[derive(Deserialize)]
struct Golden {
    blake3: String,
    tokens: Vec<u32>,
    /// Which tokens' logits are kept.
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
        let text = std::fs::read_to_string(dir.join(format!("{name}.json"))).unwrap();
        let golden: Self = serde_json::from_str(&text).unwrap();
        assert_eq!(golden.positions.len(), golden.logits.len(), "{name}");
        golden
    }

    fn deviation(&self) -> f64 {
        let logits = || self.logits.iter().flatten().map(|&logit| f64::from(logit));
        let count = logits().count() as f64;
        let mean = logits().sum::<f64>() / count;
        let variance = logits().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count;
        variance.sqrt()
    }

    /// The largest difference from `rows`, one for each token, in deviations.
    fn distance(&self, rows: &[Vec<f32>]) -> f64 {
        let mut largest: f64 = 0.0;
        for (&position, expected) in self.positions.iter().zip(&self.logits) {
            assert_eq!(rows[position].len(), expected.len());
            for (logit, expected) in rows[position].iter().zip(expected) {
                let difference = f64::from(*logit) - f64::from(*expected);
                assert!(difference.is_finite());
                largest = largest.max(difference.abs());
            }
        }
        largest / self.deviation()
    }
}

fn model(name: &str) -> GoldenModel {
    let found = MODELS.into_iter().find(|model| model.name == name);
    found.unwrap_or_else(|| panic!("no model is called {name}"))
}

/// A stage with the whole model, or why there is none.
fn load(model: &GoldenModel) -> Result<Box<dyn Stage>, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.gguf");
    generate(&model.spec, &path)?;
    let gguf = Gguf::open(&path)?;
    let shape = ModelShape::from_gguf(&gguf)?;
    let options = LoadOptions {
        threads: Some(2),
        ..LoadOptions::default()
    };
    Ok(load_stage(
        &path,
        &gguf,
        LayerRange::whole(shape.layers),
        &options,
    )?)
}

/// The logits after each token, with the tokens fed `chunk` at a time.
fn logits(stage: &mut dyn Stage, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    stage.open(SEQ, tokens.len()).unwrap();
    let mut all = Vec::new();
    for (number, chunk_tokens) in tokens.chunks(chunk).enumerate() {
        let input = StageInput::Tokens(chunk_tokens.to_vec());
        match stage.step(SEQ, number * chunk, input, Logits::All).unwrap() {
            StageOutput::Logits { rows, data } => {
                assert_eq!(rows, chunk_tokens.len());
                let width = data.len() / rows;
                all.extend(data.chunks(width).map(<[f32]>::to_vec));
            }
            other => panic!("logits were asked for, not {other:?}"),
        }
    }
    stage.close(SEQ);
    all
}

#[test]
fn the_logits_are_those_of_another_implementation() {
    let mut failures = Vec::new();
    for name in RUN {
        let golden = Golden::read(name);
        let model = model(name);
        let tolerance = match model.spec.quantisation {
            TensorType::F32 => TOLERANCE,
            _ => BLOCK_TOLERANCE,
        };
        let mut stage = load(&model).unwrap();
        for (how, chunk) in [("whole", golden.tokens.len()), ("token by token", 1)] {
            let rows = logits(stage.as_mut(), &golden.tokens, chunk);
            let distance = golden.distance(&rows);
            eprintln!("{name}, {how}: {distance:.2e} deviations");
            if distance > tolerance {
                failures.push(format!("{name}, {how}: {distance:.2e}"));
            }
        }
    }
    assert!(failures.is_empty(), "too far: {failures:#?}");
}

#[test]
fn the_logits_are_of_the_models_that_are_generated_today() {
    for model in MODELS {
        let bytes = generate_bytes(&model.spec).unwrap();
        let found = blake3::hash(&bytes).to_hex();
        let golden = Golden::read(model.name);
        assert_eq!(
            found.as_str(),
            golden.blake3,
            "{}: run tests/python/golden.py again",
            model.name
        );
    }
}

#[test]
fn every_model_is_either_run_or_planned() {
    for model in MODELS {
        let is_run = RUN.contains(&model.name);
        assert_ne!(is_run, PLANNED.contains(&model.name), "{}", model.name);
    }
    assert_eq!(RUN.len() + PLANNED.len(), MODELS.len());
}

#[test]
fn what_is_planned_is_refused_until_then() {
    for name in PLANNED {
        let outcome = load(&model(name));
        assert!(outcome.is_err(), "{name} loads: list it in RUN");
    }
}
