//! The gated feed-forward part of a layer.

use super::{LayerWeights, Matrix};
use crate::stage::LoadError;
use rayon::prelude::*;

/// Values that one thread computes before it looks for more.
const CHUNK: usize = 2048;

/// The function between the gate and the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// `x / (1 + e^-x)`
    Silu,
    /// Gaussian error linear unit, in the approximation by a hyperbolic tangent.
    GeluTanh,
}

/// `down(gate(x) * up(x))`
pub(crate) struct FeedForward {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    function: Gate,
}

impl FeedForward {
    pub(crate) fn load(weights: &LayerWeights<'_>, function: Gate) -> Result<Self, LoadError> {
        Ok(Self {
            gate: weights.matrix("ffn_gate.weight")?,
            up: weights.matrix("ffn_up.weight")?,
            down: weights.matrix("ffn_down.weight")?,
            function,
        })
    }

    /// `x` is (rows, hidden), and so is the result.
    pub(crate) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut gated = self.gate.multiply(x); // (rows, feed_forward)
        let up = self.up.multiply(x); // (rows, feed_forward)
        let function = match self.function {
            Gate::Silu => silu,
            Gate::GeluTanh => gelu_tanh,
        };
        let chunks = gated.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK));
        chunks.for_each(|(gated, up)| {
            for (gated, up) in gated.iter_mut().zip(up) {
                *gated = function(*gated) * up;
            }
        });
        self.down.multiply(&gated)
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + libm::expf(-x))
}

fn gelu_tanh(x: f32) -> f32 {
    const ROOT_OF_TWO_OVER_PI: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;
    let inner = ROOT_OF_TWO_OVER_PI * x * (1.0 + CUBIC * x * x);
    0.5 * x * (1.0 + libm::tanhf(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_have_their_known_values() {
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-6);
        assert!((gelu_tanh(1.0) - 0.841_192).abs() < 1e-5);
        assert_eq!(silu(0.0), 0.0);
        assert_eq!(gelu_tanh(0.0), 0.0);
    }
}
