//! Teacher-forced comparison with the answers of another engine.
//!
//! For each completion of the reference the prompt's tokens and then the reference's own tokens
//! are fed; at every token of the answer the engine's distribution is compared with the
//! reference's. Free running would not do: two correct engines part ways at a near-tie.
//!
//! Log-probabilities are compared for the token that the reference holds most likely at each
//! position. Further down its list the comparison says little about correctness: engines that
//! round activations to eight bits differ there by about 0.1 from each other and from exact
//! arithmetic alike (found with SmolLM2; the tokens that matter differ by a third of that).

mod reference;

pub use reference::{Completion, Reference};

use crate::gguf::{Gguf, GgufError};
use crate::layers::LayerRange;
use crate::sampler::highest;
use crate::shape::{ModelError, ModelShape};
use crate::stage::{
    LoadError, LoadOptions, Logits, Stage, StageError, StageInput, StageOutput, load_stage,
};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Rows of logits that are held at a time; a row of a large vocabulary takes a megabyte.
const ROWS: usize = 16;

/// The outcome of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalReport {
    /// Tokens of the reference that were predicted.
    pub positions: usize,
    /// Share of them whose most likely token is the reference's most likely token.
    pub top1_agreement: f64,
    /// Mean difference of log-probability of the reference's most likely token.
    pub mean_abs_logprob_diff: f64,
    /// The largest of these differences.
    pub max_abs_logprob_diff: f64,
    /// Mean negative log-likelihood of the reference's tokens.
    pub nll: f64,
    /// Hash of the bits of every logit at the compared positions, in order.
    pub logits_blake3: String,
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The reference file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The reference file is not what it should be.
    #[error("{} is not a reference file: {reason}", path.display())]
    BadReference {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The model file's header is not usable.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A step failed; most likely the reference belongs to another model.
    #[error("{0}; does the reference belong to this model?")]
    Stage(#[from] StageError),
}

/// Compares the model file at `model` with the reference file at `reference`. `progress` is told
/// how many of how many completions are done.
pub fn evaluate(
    model: &Path,
    reference: &Path,
    options: &LoadOptions,
    progress: &dyn Fn(usize, usize),
) -> Result<EvalReport, EvalError> {
    let reference = Reference::read(reference)?;
    let gguf = Gguf::open(model)?;
    let shape = ModelShape::from_gguf(&gguf)?;
    let mut stage = load_stage(model, &gguf, LayerRange::whole(shape.layers), options)?;
    compare(stage.as_mut(), &reference, progress)
}

/// Compares a loaded model (a stage of all layers) with a reference.
pub fn compare(
    stage: &mut dyn Stage,
    reference: &Reference,
    progress: &dyn Fn(usize, usize),
) -> Result<EvalReport, EvalError> {
    let mut sums = Sums::default();
    let total = reference.completions.len();
    for (done, completion) in reference.completions.iter().enumerate() {
        progress(done, total);
        let seq = done as u64;
        stage.open(seq, completion.len())?;
        let outcome = run(stage, seq, completion, &mut sums);
        stage.close(seq);
        outcome?;
    }
    progress(total, total);
    Ok(sums.report())
}

/// Feeds one completion and adds up the comparison at each token of its answer.
fn run(
    stage: &mut dyn Stage,
    seq: u64,
    completion: &Completion,
    sums: &mut Sums,
) -> Result<(), EvalError> {
    // The last token of the prompt already predicts the first of the answer.
    let (warm_up, last) = completion.split_prompt();
    if !warm_up.is_empty() {
        let input = StageInput::Tokens(warm_up.to_vec());
        stage.step(seq, 0, input, Logits::None)?;
    }
    let mut position = warm_up.len();
    let mut inputs = vec![last];
    inputs.extend_from_slice(&completion.tokens);
    inputs.truncate(completion.tokens.len());
    let mut targets = completion.targets();
    for chunk in inputs.chunks(ROWS) {
        let input = StageInput::Tokens(chunk.to_vec());
        let StageOutput::Logits { rows, data } = stage.step(seq, position, input, Logits::All)?
        else {
            let reason = "a comparison needs a stage that holds every layer".to_owned();
            return Err(StageError::BadInput { reason }.into());
        };
        let width = data.len() / rows.max(1);
        for (logits, (token, listed)) in data.chunks_exact(width.max(1)).zip(&mut targets) {
            sums.add(logits, token, listed);
        }
        position += chunk.len();
    }
    Ok(())
}

/// Running sums over all positions.
#[derive(Default)]
struct Sums {
    positions: usize,
    agreed: usize,
    diff: f64,
    max_diff: f64,
    nll: f64,
    hasher: blake3::Hasher,
}

impl Sums {
    fn add(&mut self, logits: &[f32], token: u32, listed: &[(u32, f64)]) {
        let log_sum = log_sum_exp(logits);
        let logprob_of = |token: u32| {
            let logit = logits.get(token as usize).copied();
            logit.map_or(f64::NEG_INFINITY, |logit| f64::from(logit) - log_sum)
        };
        self.positions += 1;
        self.nll -= logprob_of(token);
        if let Some((top, expected)) = listed.first() {
            if highest(logits).is_ok_and(|(token, _)| token == *top) {
                self.agreed += 1;
            }
            let diff = (logprob_of(*top) - expected).abs();
            self.diff += diff;
            self.max_diff = self.max_diff.max(diff);
        }
        for logit in logits {
            self.hasher.update(&logit.to_bits().to_le_bytes());
        }
    }

    fn report(&self) -> EvalReport {
        let positions = self.positions.max(1) as f64;
        EvalReport {
            positions: self.positions,
            top1_agreement: self.agreed as f64 / positions,
            mean_abs_logprob_diff: self.diff / positions,
            max_abs_logprob_diff: self.max_diff,
            nll: self.nll / positions,
            logits_blake3: self.hasher.finalize().to_hex().to_string(),
        }
    }
}

/// The logarithm of the sum of all exponentials, by which logits become log-probabilities.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let highest = f64::from(highest);
    let sum: f64 = logits
        .iter()
        .map(|logit| libm::exp(f64::from(*logit) - highest))
        .sum();
    highest + libm::log(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_count_agreement_and_difference() {
        let mut sums = Sums::default();
        let logits = [0.0, 0.0, f32::MIN / 2.0];
        let half = 0.5f64.ln();
        sums.add(&logits, 0, &[(0, half - 0.5), (1, half)]);
        sums.add(&logits, 1, &[(1, half)]);
        let report = sums.report();
        assert_eq!(report.positions, 2);
        assert_eq!(report.top1_agreement, 0.5);
        assert!((report.max_abs_logprob_diff - 0.5).abs() < 1e-12);
        assert!((report.mean_abs_logprob_diff - 0.25).abs() < 1e-12);
        assert!((report.nll + half).abs() < 1e-12);
    }
}
