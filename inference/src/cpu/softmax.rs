//! The weights of a softmax over a vocabulary, which sampling needs at every token.

#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::isa::{Isa, Kernel, LANES, dispatch};
use super::math::exp;
use crate::hardware::{IsaName, chosen_isa};
use std::sync::OnceLock;

/// Gives a logit the weight `exp((logit - highest) / temperature)`, between 0 and 1: the same bits
/// on every instruction set. Minus infinity has no weight at all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax {
    /// No logit is above it.
    pub highest: f32,
    /// Above zero.
    pub temperature: f32,
}

impl Softmax {
    /// The weights of some logits, [`LANES`] at most; what is missing has none.
    pub(crate) fn weights(self, logits: &[f32]) -> [f32; LANES] {
        let mut all = [f32::NEG_INFINITY; LANES];
        for (own, logit) in all.iter_mut().zip(logits) {
            *own = *logit;
        }
        dispatch(isa(), Weights(self, &all))
    }

    /// The sum of all weights.
    pub(crate) fn mass(self, logits: &[f32]) -> f64 {
        let whole = logits.len() / LANES * LANES;
        let (whole, rest) = logits.split_at(whole);
        let mut lanes = dispatch(isa(), Mass(self, whole));
        for (lane, weight) in lanes.iter_mut().zip(self.weights(rest)) {
            *lane += f64::from(weight);
        }
        lanes.iter().sum()
    }
}

/// What the engine computes with; a name that the machine lacks was refused when it loaded.
fn isa() -> IsaName {
    static ISA: OnceLock<IsaName> = OnceLock::new();
    *ISA.get_or_init(|| chosen_isa().unwrap_or(IsaName::Scalar))
}

struct Weights<'a>(Softmax, &'a [f32; LANES]);

impl Kernel for Weights<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> Self::Output {
        let mut out = [0.0; LANES];
        I::store(out.as_mut_ptr(), weigh::<I>(self.0, self.1.as_ptr()));
        out
    }
}

/// The sums of every sixteenth weight; the logits are whole vectors.
struct Mass<'a>(Softmax, &'a [f32]);

impl Kernel for Mass<'_> {
    type Output = [f64; LANES];

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> Self::Output {
        let mut sums = [0.0; LANES];
        for logits in self.1.chunks_exact(LANES) {
            let mut weights = [0.0; LANES];
            I::store(weights.as_mut_ptr(), weigh::<I>(self.0, logits.as_ptr()));
            for lane in 0..LANES {
                sums[lane] += f64::from(weights[lane]);
            }
        }
        sums
    }
}

/// # Safety
/// See [`Isa`]; sixteen logits must lie at `from`.
#[inline(always)]
unsafe fn weigh<I: Isa>(softmax: Softmax, from: *const f32) -> I::F {
    let below = I::sub(I::load(from), I::splat(softmax.highest));
    let x = I::div(below, I::splat(softmax.temperature));
    // `exp` stays at its border below -87; from -88 on there is nothing.
    let left = I::max(I::add(x, I::splat(88.0)), I::splat(0.0));
    I::mul(exp::<I>(x), I::min(left, I::splat(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::isas;

    fn logits() -> Vec<f32> {
        let spread = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 60_000.0 - 260.0;
        let mut logits: Vec<f32> = (0..1003).map(spread).collect();
        logits[17] = f32::NEG_INFINITY;
        logits
    }

    #[test]
    fn weights_are_those_of_the_exponential_on_every_instruction_set() {
        let logits = logits();
        let highest = logits.iter().copied().fold(f32::MIN, f32::max);
        for temperature in [f32::MIN_POSITIVE, 0.3, 1.0, 100.0] {
            let softmax = Softmax {
                highest,
                temperature,
            };
            for logits in logits.as_chunks().0 {
                let scalar = dispatch(IsaName::Scalar, Weights(softmax, logits));
                for (weight, logit) in scalar.iter().zip(logits) {
                    let exact = f64::from((logit - highest) / temperature).exp();
                    let error = (f64::from(*weight) - exact).abs();
                    assert!(error <= 2e-7 * exact + 1e-37, "{weight} {exact}");
                }
                for &isa in isas() {
                    assert_eq!(dispatch(isa, Weights(softmax, logits)), scalar, "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn the_mass_is_the_sum_of_the_weights_on_every_instruction_set() {
        let logits = logits();
        let softmax = Softmax {
            highest: 20.0,
            temperature: 7.0,
        };
        let weights = logits.chunks(LANES).flat_map(|some| softmax.weights(some));
        let sum: f64 = weights.map(f64::from).sum();
        let mass = softmax.mass(&logits);
        assert!((mass - sum).abs() <= 1e-12 * sum, "{mass} {sum}");
        let whole = &logits[..992];
        let scalar = dispatch(IsaName::Scalar, Mass(softmax, whole));
        for &isa in isas() {
            assert_eq!(dispatch(isa, Mass(softmax, whole)), scalar, "{isa:?}");
        }
    }

    #[test]
    fn what_cannot_be_has_no_weight() {
        let softmax = Softmax {
            highest: 3.0,
            temperature: 1.0,
        };
        let weights = softmax.weights(&[3.0, f32::NEG_INFINITY, -500.0]);
        assert_eq!(weights[..4], [1.0, 0.0, 0.0, 0.0]);
    }
}
