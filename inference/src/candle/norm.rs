//! Root-mean-square norm, and sums of slices in a fixed order.

use super::weights::LayerWeights;
use crate::stage::LoadError;

/// Independent partial sums; the compiler turns them into vector registers, and their order is
/// the same on every machine.
const LANES: usize = 32;

/// The dot product of two slices of equal length.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = a.mul_add(*b, *lane);
        }
    }
    let mut sum = 0.0;
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum = a.mul_add(*b, sum);
    }
    lanes.iter().fold(sum, |sum, lane| sum + lane)
}

/// The sum of squares, in double precision: a row may hold one value far above the others.
fn sum_of_squares(row: &[f32]) -> f64 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            let value = f64::from(*value);
            *lane = value.mul_add(value, *lane);
        }
    }
    let rest: f64 = rest.iter().map(|value| f64::from(*value).powi(2)).sum();
    lanes.iter().fold(rest, |sum, lane| sum + lane)
}

/// `x += y`
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// A root-mean-square norm with weights.
pub(crate) struct Norm {
    weights: Vec<f32>,
    eps: f32,
}

impl Norm {
    pub(crate) fn new(weights: Vec<f32>, eps: f32) -> Self {
        Self { weights, eps }
    }

    pub(crate) fn load(
        weights: &LayerWeights<'_>,
        name: &str,
        eps: f32,
    ) -> Result<Self, LoadError> {
        Ok(Self::new(weights.vector(name)?, eps))
    }

    /// Norms each row (as wide as the weights) of `x`.
    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = x.to_vec();
        self.apply_in_place(&mut out);
        out
    }

    /// The same, in place.
    pub(crate) fn apply_in_place(&self, x: &mut [f32]) {
        let width = self.weights.len();
        for row in x.chunks_exact_mut(width) {
            let mean = (sum_of_squares(row) / width as f64) as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            for (value, weight) in row.iter_mut().zip(&self.weights) {
                *value = *value * scale * weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normed_row_has_a_mean_square_of_one() {
        let norm = Norm::new(vec![1.0; 40], 0.0);
        let row: Vec<f32> = (0..40).map(|i| i as f32 - 7.0).collect();
        let normed = norm.apply(&row);
        let mean = dot(&normed, &normed) / 40.0;
        assert!((mean - 1.0).abs() < 1e-5, "{mean}");
    }

    #[test]
    fn dot_covers_the_values_beyond_the_last_full_chunk() {
        let ones = vec![1.0; 77];
        assert_eq!(dot(&ones, &ones), 77.0);
    }
}
