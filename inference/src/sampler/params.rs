//! The parameters of a request and their ranges.

use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Temperatures that are taken.
pub const TEMPERATURES: RangeInclusive<f32> = 0.0..=100.0;
/// The most alternatives that are reported with a token.
pub const MAX_TOP_LOGPROBS: u32 = 20;

/// How tokens are drawn. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Flattens the distribution above 1 and sharpens it below; 0 is greedy.
    pub temperature: f32,
    /// Keeps the most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens that have at least this share of the highest probability; 0 keeps all.
    pub min_p: f32,
    /// With the position of a token it decides all randomness.
    pub seed: u64,
    /// How many of the most likely tokens are reported with their log-probabilities.
    pub top_logprobs: u32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            top_logprobs: 0,
        }
    }
}

/// Why no token can be drawn.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A parameter is out of its range.
    #[error("{name} is {value}, but must be {range}; change the request")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// What was asked for.
        value: f64,
        /// What is taken, in words.
        range: &'static str,
    },
    /// There is nothing to draw from.
    #[error("the model gave no logits; this is a defect of the engine, please report it")]
    NoLogits,
    /// The model's output is broken.
    #[error("the logit of token {token} is {value}; the model file may be damaged, fetch it again")]
    BadLogit {
        /// The token.
        token: u32,
        /// NaN or infinity.
        value: f32,
    },
}

impl SamplingParams {
    /// Checks every parameter against its range.
    pub fn check(&self) -> Result<(), SampleError> {
        let out_of_range = |name, value: f32, range| SampleError::OutOfRange {
            name,
            value: value.into(),
            range,
        };
        if !TEMPERATURES.contains(&self.temperature) {
            return Err(out_of_range(
                "temperature",
                self.temperature,
                "from 0 to 100",
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(out_of_range("top_p", self.top_p, "above 0 and at most 1"));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(out_of_range("min_p", self.min_p, "from 0 to 1"));
        }
        if self.top_logprobs > MAX_TOP_LOGPROBS {
            let value = self.top_logprobs as f32;
            return Err(out_of_range("top_logprobs", value, "at most 20"));
        }
        Ok(())
    }
}
