//! The tensors of a generated model.
//!
//! The order in which they are added is the order in which the random numbers are drawn.

use super::recipe::{Experts, Recipe, Scaling};
use super::sizes::Sizes;
use super::weights::{self, Random, Rows};
use super::{SyntheticError, SyntheticSpec};
use crate::gguf::TensorType;
use crate::gguf::writer::Writer;
use std::f64::consts::TAU;

/// Adds the weights. The rows of `special` tokens are faint, so that an answer seldom ends early.
pub(super) fn add(
    writer: &mut Writer,
    spec: &SyntheticSpec,
    recipe: &Recipe,
    special: &[u32],
) -> Result<(), SyntheticError> {
    let mut random = Random::new(spec.seed);
    let sizes = Sizes::of(spec, recipe);
    let table = Rows {
        count: sizes.vocab,
        width: sizes.hidden,
        faint: special,
    };
    let mut tensors = Tensors {
        writer,
        random: &mut random,
        quantisation: spec.quantisation,
    };
    tensors.table("token_embd.weight", &table)?;
    for layer in 0..spec.layers {
        let mut layer = Layer {
            tensors: &mut tensors,
            number: layer,
            recipe,
            sizes: &sizes,
        };
        layer.add()?;
    }
    tensors.norm("output_norm.weight", sizes.hidden);
    if !recipe.is_tied {
        tensors.table("output.weight", &table)?;
    }
    add_divisors(&mut tensors, recipe, &sizes);
    Ok(())
}

/// Adds the divisors of the rope frequencies.
fn add_divisors(tensors: &mut Tensors<'_>, recipe: &Recipe, sizes: &Sizes) {
    let pairs = recipe.rope_dims() / 2;
    match recipe.rope.scaling {
        Scaling::None | Scaling::Linear { .. } | Scaling::Yarn { .. } => {}
        Scaling::RandomDivisors => tensors.norm("rope_freqs.weight", pairs),
        Scaling::Llama3 { factor, low, high } => {
            let base = f64::from(recipe.rope.base.unwrap_or(10_000.0));
            let context = f64::from(sizes.trained_context);
            let divisor = |pair: u32| {
                let exponent = f64::from(2 * pair) / f64::from(recipe.rope_dims());
                let wavelength = TAU * libm::pow(base, exponent);
                llama3_divisor(context / wavelength, factor, low, high) as f32
            };
            let divisors: Vec<f32> = (0..pairs).map(divisor).collect();
            tensors.vector("rope_freqs.weight", &divisors);
        }
        Scaling::Long => {
            let long: Vec<f32> = (0..pairs).map(|pair| 1.0 + 3.0 * pair as f32).collect();
            tensors.vector("rope_factors_long.weight", &long);
            tensors.norm("rope_factors_short.weight", pairs);
        }
    }
}

/// What Llama 3 divides a frequency by that turns `turns` times within the context it was
/// trained on: nothing above `high` turns, `factor` below `low`, and a mix in between.
fn llama3_divisor(turns: f64, factor: f64, low: f64, high: f64) -> f64 {
    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    1.0 / (kept + (1.0 - kept) / factor)
}

/// Adds the tensors of one layer.
struct Layer<'a, 'b> {
    tensors: &'a mut Tensors<'b>,
    number: u32,
    recipe: &'a Recipe,
    sizes: &'a Sizes,
}

impl Layer<'_, '_> {
    fn add(&mut self) -> Result<(), SyntheticError> {
        self.norm("attn_norm.weight", self.sizes.hidden);
        self.add_attention()?;
        self.norm("ffn_norm.weight", self.sizes.hidden);
        match self.recipe.layer.experts {
            Experts::None => self.add_feed_forward()?,
            Experts::Plain => self.add_experts()?,
            Experts::WithShared => {
                self.add_experts()?;
                self.add_shared_expert()?;
            }
        }
        self.add_extras();
        Ok(())
    }

    fn add_attention(&mut self) -> Result<(), SyntheticError> {
        let Sizes {
            hidden,
            queries,
            keys,
            ..
        } = *self.sizes;
        if self.recipe.layer.is_fused {
            self.matrix("attn_qkv.weight", hidden, queries + 2 * keys)?;
        } else {
            self.matrix("attn_q.weight", hidden, queries)?;
            self.matrix("attn_k.weight", hidden, keys)?;
            self.matrix("attn_v.weight", hidden, keys)?;
        }
        self.matrix("attn_output.weight", queries, hidden)
    }

    fn add_feed_forward(&mut self) -> Result<(), SyntheticError> {
        let (hidden, inner) = (self.sizes.hidden, self.sizes.feed_forward);
        if self.recipe.layer.is_fused {
            self.matrix("ffn_up.weight", hidden, 2 * inner)?;
        } else {
            self.matrix("ffn_gate.weight", hidden, inner)?;
            self.matrix("ffn_up.weight", hidden, inner)?;
        }
        self.matrix("ffn_down.weight", inner, hidden)
    }

    fn add_experts(&mut self) -> Result<(), SyntheticError> {
        let Sizes {
            hidden,
            experts,
            expert,
            ..
        } = *self.sizes;
        let router = self.name("ffn_gate_inp.weight");
        self.tensors.float_matrix(&router, hidden, experts);
        self.stack("ffn_gate_exps.weight", hidden, expert)?;
        self.stack("ffn_up_exps.weight", hidden, expert)?;
        self.stack("ffn_down_exps.weight", expert, hidden)
    }

    fn add_shared_expert(&mut self) -> Result<(), SyntheticError> {
        let (hidden, inner) = (self.sizes.hidden, self.sizes.shared_expert);
        let gate = self.name("ffn_gate_inp_shexp.weight");
        self.tensors.float_row(&gate, hidden);
        self.matrix("ffn_gate_shexp.weight", hidden, inner)?;
        self.matrix("ffn_up_shexp.weight", hidden, inner)?;
        self.matrix("ffn_down_shexp.weight", inner, hidden)
    }

    fn add_extras(&mut self) {
        let (recipe, sizes) = (self.recipe, self.sizes);
        if recipe.layer.has_biases {
            self.bias("attn_q.bias", sizes.queries);
            self.bias("attn_k.bias", sizes.keys);
            self.bias("attn_v.bias", sizes.keys);
        }
        if recipe.layer.has_head_norms {
            self.norm("attn_q_norm.weight", recipe.head_dim);
            self.norm("attn_k_norm.weight", recipe.head_dim);
        }
        if recipe.layer.has_post_norms {
            self.norm("post_attention_norm.weight", sizes.hidden);
            self.norm("post_ffw_norm.weight", sizes.hidden);
        }
    }

    fn name(&self, suffix: &str) -> String {
        format!("blk.{}.{suffix}", self.number)
    }

    fn norm(&mut self, suffix: &str, len: u32) {
        let name = self.name(suffix);
        self.tensors.norm(&name, len);
    }

    fn bias(&mut self, suffix: &str, len: u32) {
        let name = self.name(suffix);
        self.tensors.bias(&name, len);
    }

    fn matrix(&mut self, suffix: &str, columns: u32, rows: u32) -> Result<(), SyntheticError> {
        let name = self.name(suffix);
        self.tensors.matrix(&name, &[columns, rows])
    }

    /// One matrix for each expert, one after the other.
    fn stack(&mut self, suffix: &str, columns: u32, rows: u32) -> Result<(), SyntheticError> {
        let name = self.name(suffix);
        let dims = [columns, rows, self.sizes.experts];
        self.tensors.matrix(&name, &dims)
    }
}

/// Adds random tensors to a file.
struct Tensors<'a> {
    writer: &'a mut Writer,
    random: &'a mut Random,
    quantisation: TensorType,
}

impl Tensors<'_> {
    /// Values around one: norm weights, divisors of frequencies.
    fn norm(&mut self, name: &str, len: u32) {
        let values = weights::around_one(self.random, len);
        self.vector(name, &values);
    }

    /// Values around zero.
    fn bias(&mut self, name: &str, len: u32) {
        let values = weights::around_zero(self.random, len);
        self.vector(name, &values);
    }

    /// The values given.
    fn vector(&mut self, name: &str, values: &[f32]) {
        self.floats(name, &[values.len() as u64], values);
    }

    /// A random matrix that no converter quantises.
    fn float_matrix(&mut self, name: &str, columns: u32, rows: u32) {
        let values = Rows::plain(rows, columns).values(self.random);
        self.floats(name, &[columns.into(), rows.into()], &values);
    }

    /// The same with one row, which is then stored as a vector.
    fn float_row(&mut self, name: &str, columns: u32) {
        let values = Rows::plain(1, columns).values(self.random);
        self.vector(name, &values);
    }

    fn floats(&mut self, name: &str, dims: &[u64], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        self.writer
            .tensor(name, dims, TensorType::F32, bytes.collect());
    }

    /// A random matrix, or several one after the other.
    fn matrix(&mut self, name: &str, dims: &[u32]) -> Result<(), SyntheticError> {
        let columns = dims.first().copied().unwrap_or_default();
        let rows = dims.iter().skip(1).product();
        self.quantised(name, dims, &Rows::plain(rows, columns))
    }

    fn table(&mut self, name: &str, rows: &Rows<'_>) -> Result<(), SyntheticError> {
        self.quantised(name, &[rows.width, rows.count], rows)
    }

    fn quantised(
        &mut self,
        name: &str,
        dims: &[u32],
        rows: &Rows<'_>,
    ) -> Result<(), SyntheticError> {
        let values = rows.values(self.random);
        let bytes = weights::quantise(&values, self.quantisation)?;
        let dims: Vec<u64> = dims.iter().map(|&dim| dim.into()).collect();
        self.writer.tensor(name, &dims, self.quantisation, bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_fast_frequencies_divides_slow_ones_and_mixes_between() {
        assert_eq!(llama3_divisor(100.0, 8.0, 1.0, 4.0), 1.0);
        assert_eq!(llama3_divisor(0.5, 8.0, 1.0, 4.0), 8.0);
        let mixed = llama3_divisor(2.5, 8.0, 1.0, 4.0);
        assert!((mixed - 1.0 / 0.5625).abs() < 1e-12, "{mixed}");
    }
}
