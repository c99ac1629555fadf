//! Grouped-query attention over the KV cache.

use super::kv::LayerKv;
use super::norm::{add, dot};
use super::{LayerWeights, Matrix, Norm, Pass};
use crate::shape::ModelShape;
use crate::stage::LoadError;
use rayon::prelude::*;

/// Below this many multiplications, waking other threads costs more than it saves.
const PARALLEL_WORK: usize = 1 << 16;

/// The attention part of a layer.
pub(crate) struct Attention {
    queries: Linear,
    keys: Linear,
    values: Linear,
    output: Matrix,
    head_dim: usize,
    heads: usize,
    /// Query heads that share a KV head.
    group: usize,
    /// Norm of each query head, in architectures that have one.
    pub query_norm: Option<Norm>,
    /// Norm of each key head, in architectures that have one.
    pub key_norm: Option<Norm>,
    /// Which of the pass's rotary embeddings is used.
    pub rope: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// How many tokens back a token sees, itself included.
    pub window: Option<usize>,
}

impl Attention {
    /// Plain attention; architectures set what is different in theirs.
    pub(crate) fn load(weights: &LayerWeights<'_>, shape: &ModelShape) -> Result<Self, LoadError> {
        Ok(Self {
            queries: Linear::load(weights, "attn_q")?,
            keys: Linear::load(weights, "attn_k")?,
            values: Linear::load(weights, "attn_v")?,
            output: weights.matrix("attn_output.weight")?,
            head_dim: shape.head_dim as usize,
            heads: shape.heads as usize,
            group: (shape.heads / shape.kv_heads) as usize,
            query_norm: None,
            key_norm: None,
            rope: 0,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            window: None,
        })
    }

    /// `x` is (rows, hidden), and so is the result.
    pub(crate) fn forward(&self, pass: &Pass<'_>, x: &[f32], kv: &mut LayerKv) -> Vec<f32> {
        let mut queries = self.queries.apply(x); // (rows, heads * head_dim)
        let mut keys = self.keys.apply(x); // (rows, kv_heads * head_dim)
        let values = self.values.apply(x); // (rows, kv_heads * head_dim)
        if let Some(norm) = &self.query_norm {
            norm.apply_in_place(&mut queries);
        }
        if let Some(norm) = &self.key_norm {
            norm.apply_in_place(&mut keys);
        }
        self.turn(pass, &mut queries, self.heads * self.head_dim);
        self.turn(pass, &mut keys, kv.width());
        kv.append(&keys, &values);
        let attended = self.attend(pass.position, &queries, kv);
        self.output.multiply(&attended)
    }

    fn turn(&self, pass: &Pass<'_>, rows: &mut [f32], width: usize) {
        let rope = &pass.ropes[self.rope];
        for (row, values) in rows.chunks_exact_mut(width).enumerate() {
            rope.turn(pass.position + row, values, self.head_dim);
        }
    }

    /// Every head of every row is one piece of work.
    fn attend(&self, position: usize, queries: &[f32], kv: &LayerKv) -> Vec<f32> {
        let mut out = vec![0.0; queries.len()];
        let heads = out.chunks_exact_mut(self.head_dim);
        if queries.len() * (position + 1) < PARALLEL_WORK {
            let mut scores = Vec::new();
            for (index, out) in heads.enumerate() {
                self.attend_one(position, index, queries, kv, &mut scores, out);
            }
        } else {
            let heads = out.par_chunks_exact_mut(self.head_dim).enumerate();
            heads.for_each_init(Vec::new, |scores, (index, out)| {
                self.attend_one(position, index, queries, kv, scores, out);
            });
        }
        out
    }

    /// One head of one row; `index` counts heads through all rows.
    fn attend_one(
        &self,
        position: usize,
        index: usize,
        queries: &[f32],
        kv: &LayerKv,
        scores: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let width = self.head_dim;
        let query = &queries[index * width..(index + 1) * width];
        let end = position + index / self.heads + 1;
        let start = self.window.map_or(0, |window| end.saturating_sub(window));
        let offset = (index % self.heads) / self.group * width;
        let own = offset..offset + width; // this head's part of a row of the cache

        let key_rows = kv.keys()[start * kv.width()..end * kv.width()].chunks_exact(kv.width());
        scores.clear();
        scores.extend(key_rows.map(|row| dot(query, &row[own.clone()]) * self.scale));
        let sum = exponentials(scores);

        let value_rows = kv.values()[start * kv.width()..end * kv.width()].chunks_exact(kv.width());
        for (weight, row) in scores.iter().zip(value_rows) {
            for (out, value) in out.iter_mut().zip(&row[own.clone()]) {
                *out = weight.mul_add(*value, *out);
            }
        }
        let scale = 1.0 / sum;
        for out in out {
            *out *= scale;
        }
    }
}

/// Turns scores into weights and gives their sum, added up in the order of the sequence. The
/// result of the head is divided by it once, instead of every weight.
fn exponentials(scores: &mut [f32]) -> f32 {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores {
        *score = libm::expf(*score - highest);
        sum += *score;
    }
    sum
}

/// A matrix with an optional bias.
struct Linear {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    fn load(weights: &LayerWeights<'_>, name: &str) -> Result<Self, LoadError> {
        Ok(Self {
            matrix: weights.matrix(&format!("{name}.weight"))?,
            bias: weights.optional_vector(&format!("{name}.bias"))?,
        })
    }

    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = self.matrix.multiply(x);
        if let Some(bias) = &self.bias {
            for row in out.chunks_exact_mut(bias.len()) {
                add(row, bias);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_stay_finite_even_for_large_scores() {
        let mut scores = vec![1000.0, 999.0, -1000.0];
        let sum = exponentials(&mut scores);
        assert_eq!(scores[0], 1.0);
        assert!(scores[0] > scores[1] && scores[2] == 0.0);
        assert_eq!(sum, scores[0] + scores[1]);
    }
}
