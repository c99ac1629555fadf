//! Draws the next token. Nothing is remembered between calls: the token is a function of the
//! logits, the parameters and the position, so any machine draws the same one.
//!
//! The order is llama.cpp's: top-k, top-p, min-p, then temperature. Top-p and min-p look at the
//! distribution as the model gave it; the temperature shapes only what they leave. Weights are the
//! engine's own exponentials, which have the same bits on every instruction set; they are added in
//! f64 in a fixed order.

mod highest;
mod params;
mod philox;
mod ranked;
#[cfg(test)]
mod tests;

pub use params::{MAX_TOP_LOGPROBS, SampleError, SamplingParams, TEMPERATURES};

use crate::cpu::{LANES, Softmax};
pub(crate) use highest::highest;
use ranked::Ranked;

/// A token that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log-probability as the model gave it, before any parameter.
    pub logprob: f32,
    /// The most likely tokens with their log-probabilities, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Draws the token at `position` of a sequence: the count of tokens before it, prompt included.
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    position: u64,
) -> Result<Sampled, SampleError> {
    params.check()?;
    let whole = Distribution::new(logits)?;
    let mut ranked = Ranked::new(logits);
    let (token, logit) = if params.temperature == 0.0 {
        whole.best
    } else {
        let uniform = philox::uniform(params.seed, position);
        Truncated::new(&whole, &mut ranked, params).draw(&mut ranked, uniform)
    };
    let most_likely = (0..params.top_logprobs as usize).map_while(|rank| ranked.get(rank));
    let top = most_likely.map(|(token, logit)| (token, whole.logprob(logit)));
    Ok(Sampled {
        token,
        logprob: whole.logprob(logit),
        top: top.collect(),
    })
}

/// The distribution as the model gave it.
struct Distribution<'a> {
    logits: &'a [f32],
    /// The most likely token, of equals the lowest, and its logit.
    best: (u32, f32),
    /// Sum of `exp(logit - best)`.
    mass: f64,
    log_mass: f64,
}

impl<'a> Distribution<'a> {
    /// Minus infinity is a fine logit (a token that cannot be), as long as another is finite.
    fn new(logits: &'a [f32]) -> Result<Self, SampleError> {
        let best = highest(logits)?;
        let mass = softmax(best.1, 1.0).mass(logits);
        Ok(Self {
            logits,
            best,
            mass,
            log_mass: libm::log(mass),
        })
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.best.1) - self.log_mass) as f32
    }
}

fn softmax(highest: f32, temperature: f32) -> Softmax {
    Softmax {
        highest,
        temperature,
    }
}

/// What is left to draw from: the `count` most likely tokens, shaped by a temperature.
struct Truncated {
    count: usize,
    softmax: Softmax,
    /// Sum of the weights of these tokens.
    mass: f64,
}

impl Truncated {
    fn new(whole: &Distribution<'_>, ranked: &mut Ranked<'_>, params: &SamplingParams) -> Self {
        let vocab = whole.logits.len();
        let softmax = softmax(whole.best.1, params.temperature);
        let mut count = match params.top_k {
            0 => vocab,
            top_k => vocab.min(top_k as usize),
        };
        if params.top_p < 1.0 {
            count = keep_mass(whole, ranked, count, params.top_p);
        }
        if params.min_p > 0.0 {
            count = keep_likely(whole, ranked, count, params.min_p);
        }
        // The whole vocabulary is added up as it lies, without sorting it.
        let mass = if count < vocab {
            ranked_weights(ranked, count, softmax)
                .map(|(_, weight)| weight)
                .sum()
        } else if softmax.temperature == 1.0 {
            whole.mass
        } else {
            softmax.mass(whole.logits)
        };
        Self {
            count,
            softmax,
            mass,
        }
    }

    /// The token at `uniform` of the way through the mass, most likely first.
    fn draw(&self, ranked: &mut Ranked<'_>, uniform: f64) -> (u32, f32) {
        let target = uniform * self.mass;
        let mut sum = 0.0;
        let mut last = None;
        for (drawn, weight) in ranked_weights(ranked, self.count, self.softmax) {
            // Rounding may leave the target beyond the sum: then the last possible one is it.
            if weight > 0.0 {
                last = Some(drawn);
            }
            sum += weight;
            if sum > target {
                break;
            }
        }
        last.expect("the most likely token has weight 1 and is always kept")
    }
}

/// The `count` most likely tokens with their logits, and their weights.
fn ranked_weights(
    ranked: &mut Ranked<'_>,
    count: usize,
    softmax: Softmax,
) -> impl Iterator<Item = ((u32, f32), f64)> {
    (0..count).step_by(LANES).flat_map(move |first| {
        let ranks = first..count.min(first + LANES);
        let tokens: Vec<_> = ranks.map_while(|rank| ranked.get(rank)).collect();
        let logits: Vec<_> = tokens.iter().map(|(_, logit)| *logit).collect();
        let weights = softmax.weights(&logits).map(f64::from);
        tokens.into_iter().zip(weights)
    })
}

/// Top-p: the fewest of the `count` most likely tokens that have the share `top_p` of their mass.
fn keep_mass(whole: &Distribution<'_>, ranked: &mut Ranked<'_>, count: usize, top_p: f32) -> usize {
    let softmax = softmax(whole.best.1, 1.0);
    let mass = if count == whole.logits.len() {
        whole.mass
    } else {
        ranked_weights(ranked, count, softmax)
            .map(|(_, weight)| weight)
            .sum()
    };
    let enough = f64::from(top_p) * mass;
    let mut sum = 0.0;
    for (kept, (_, weight)) in (1..).zip(ranked_weights(ranked, count, softmax)) {
        sum += weight;
        if sum >= enough {
            return kept;
        }
    }
    count
}

/// Min-p: those of the `count` most likely tokens with the share `min_p` of the highest
/// probability.
fn keep_likely(
    whole: &Distribution<'_>,
    ranked: &mut Ranked<'_>,
    count: usize,
    min_p: f32,
) -> usize {
    let weights = ranked_weights(ranked, count, softmax(whole.best.1, 1.0));
    let likely = weights.take_while(|(_, weight)| *weight >= f64::from(min_p));
    likely.count().max(1)
}
