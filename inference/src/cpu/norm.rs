//! Root-mean-square norm, and the preparation of rows for a product.

#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

use super::isa::{Isa, LANES};

/// A root-mean-square norm with weights (Zhang and Sennrich, 2019).
pub(crate) struct Norm {
    weights: Vec<f32>,
    eps: f32,
}

impl Norm {
    pub(crate) fn new(weights: Vec<f32>, eps: f32) -> Self {
        Self { weights, eps }
    }

    /// Width of the rows.
    pub(crate) fn width(&self) -> usize {
        self.weights.len()
    }

    /// Writes the normed row `from` to `to`, which may be the same.
    ///
    /// # Safety
    /// See [`Isa`]; both must be as wide as the norm.
    #[inline(always)]
    pub(crate) unsafe fn apply<I: Isa>(&self, from: *const f32, to: *mut f32) {
        let width = self.weights.len();
        let mean = sum_of_squares::<I>(from, width) / width as f32;
        let scale = 1.0 / (mean + self.eps).sqrt();
        let vectors = width / LANES;
        for vector in 0..vectors {
            let at = vector * LANES;
            let scaled = I::mul(I::load(from.add(at)), I::splat(scale));
            I::store(
                to.add(at),
                I::mul(scaled, I::load(self.weights.as_ptr().add(at))),
            );
        }
        for at in vectors * LANES..width {
            *to.add(at) = *from.add(at) * scale * self.weights[at];
        }
    }
}

/// Sixteen partial sums, and the rest behind the last full vector.
#[inline(always)]
unsafe fn sum_of_squares<I: Isa>(from: *const f32, width: usize) -> f32 {
    let vectors = width / LANES;
    let mut sums = I::splat(0.0);
    for vector in 0..vectors {
        let values = I::load(from.add(vector * LANES));
        sums = I::fma(values, values, sums);
    }
    let mut sum = I::sum(sums);
    for at in vectors * LANES..width {
        let value = *from.add(at);
        sum = value.mul_add(value, sum);
    }
    sum
}
