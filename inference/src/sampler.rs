//! Draws the next token. Nothing is remembered between calls: the token is a function of the
//! logits, the parameters and the position, so any machine draws the same one.
//!
//! The order is llama.cpp's: top-k, top-p, min-p, then temperature. Top-p and min-p look at the
//! distribution as the model gave it; the temperature shapes only what they leave. All arithmetic
//! is in f64 in a fixed order, with `libm`'s functions instead of the platform's.

mod params;
mod philox;
mod ranked;
#[cfg(test)]
mod tests;

pub use params::{MAX_TOP_LOGPROBS, SampleError, SamplingParams, TEMPERATURES};

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
        let mut best = None;
        for (token, &value) in (0u32..).zip(logits) {
            if value.is_nan() || value == f32::INFINITY {
                return Err(SampleError::BadLogit { token, value });
            }
            if best.is_none_or(|(_, highest)| value > highest) {
                best = Some((token, value));
            }
        }
        let best = best.ok_or(SampleError::NoLogits)?;
        if best.1 == f32::NEG_INFINITY {
            let (token, value) = best;
            return Err(SampleError::BadLogit { token, value });
        }
        let mass = logits.iter().map(|&logit| weight(logit, best.1, 1.0)).sum();
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

/// `exp((logit - highest) / temperature)`: never above 1.
fn weight(logit: f32, highest: f32, temperature: f32) -> f64 {
    let below = f64::from(logit) - f64::from(highest);
    libm::exp(below / f64::from(temperature))
}

/// What is left to draw from: the `count` most likely tokens, shaped by a temperature.
struct Truncated {
    count: usize,
    temperature: f32,
    highest: f32,
    /// Sum of the weights of these tokens.
    mass: f64,
}

impl Truncated {
    fn new(whole: &Distribution<'_>, ranked: &mut Ranked<'_>, params: &SamplingParams) -> Self {
        let vocab = whole.logits.len();
        let (highest, temperature) = (whole.best.1, params.temperature);
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
            ranked_weights(ranked, count, highest, temperature).sum()
        } else if temperature == 1.0 {
            whole.mass
        } else {
            let weights = whole.logits.iter();
            weights
                .map(|&logit| weight(logit, highest, temperature))
                .sum()
        };
        Self {
            count,
            temperature,
            highest,
            mass,
        }
    }

    /// The token at `uniform` of the way through the mass, most likely first.
    fn draw(&self, ranked: &mut Ranked<'_>, uniform: f64) -> (u32, f32) {
        let target = uniform * self.mass;
        let mut sum = 0.0;
        let mut last = None;
        for rank in 0..self.count {
            let Some((token, logit)) = ranked.get(rank) else {
                break;
            };
            let weight = weight(logit, self.highest, self.temperature);
            // Rounding may leave the target beyond the sum: then the last possible one is it.
            if weight > 0.0 {
                last = Some((token, logit));
            }
            sum += weight;
            if sum > target {
                break;
            }
        }
        last.expect("the most likely token has weight 1 and is always kept")
    }
}

fn ranked_weights(
    ranked: &mut Ranked<'_>,
    count: usize,
    highest: f32,
    temperature: f32,
) -> impl Iterator<Item = f64> {
    let logits = (0..count).map_while(|rank| ranked.get(rank));
    logits.map(move |(_, logit)| weight(logit, highest, temperature))
}

/// Top-p: the fewest of the `count` most likely tokens that have the share `top_p` of their mass.
fn keep_mass(whole: &Distribution<'_>, ranked: &mut Ranked<'_>, count: usize, top_p: f32) -> usize {
    let highest = whole.best.1;
    let mass = if count == whole.logits.len() {
        whole.mass
    } else {
        ranked_weights(ranked, count, highest, 1.0).sum()
    };
    let enough = f64::from(top_p) * mass;
    let mut sum = 0.0;
    for (kept, weight) in (1..).zip(ranked_weights(ranked, count, highest, 1.0)) {
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
    let weights = ranked_weights(ranked, count, whole.best.1, 1.0);
    let likely = weights.take_while(|&weight| weight >= f64::from(min_p));
    likely.count().max(1)
}
