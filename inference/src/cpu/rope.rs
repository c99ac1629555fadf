//! Rotary position embedding (Su et al., 2021) with tables that are built once.

use crate::shape::{Keys, ModelError, ModelShape};

/// Which two values of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// `2i` and `2i + 1`.
    Neighbours,
    /// `i` and `i + half`.
    Halves,
}

/// How positions beyond the trained context are brought into it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scaling {
    /// Every angle is divided by this; 1 changes nothing.
    Linear(f32),
    /// YaRN (Peng et al., 2023): slow pairs are divided, fast ones left.
    Yarn(Yarn),
}

/// Numbers of YaRN, named as in the paper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Yarn {
    /// How much longer than trained the context may be.
    pub factor: f32,
    /// Context that the model was trained for.
    pub original_context: u32,
    /// Turns in the original context above which a pair is left as it is.
    pub beta_fast: f32,
    /// Turns in the original context below which a pair is divided.
    pub beta_slow: f32,
}

/// One kind of rotary embedding.
#[derive(Debug, Clone)]
pub(crate) struct RopeSpec {
    /// Base of the frequencies.
    pub base: f32,
    /// How long contexts are treated.
    pub scaling: Scaling,
    /// Sines and cosines are multiplied by this.
    pub magnitude: f32,
    /// Which values make a pair.
    pub pairing: Pairing,
    /// How many values of a head are turned; the rest stay.
    pub turned: usize,
    /// Tensor of divisors of the frequencies, one per pair; the model may lack it.
    pub divisors: &'static str,
}

impl RopeSpec {
    /// Reads `rope.*` of the model.
    pub(crate) fn read(
        keys: &Keys<'_>,
        shape: &ModelShape,
        pairing: Pairing,
    ) -> Result<Self, ModelError> {
        let turned = keys.u32_or("rope.dimension_count", shape.head_dim)?;
        if turned == 0 || turned > shape.head_dim || turned % 2 != 0 {
            return Err(ModelError::UnsupportedFeature {
                feature: format!("a rotary embedding of {turned} values"),
            });
        }
        let own_magnitude = keys.positive_or("rope.scaling.attn_factor", 1.0)?;
        let (scaling, magnitude) = Self::read_scaling(keys, shape)?;
        Ok(Self {
            base: keys.positive_or("rope.freq_base", 10_000.0)?,
            scaling,
            magnitude: magnitude * own_magnitude,
            pairing,
            turned: turned as usize,
            divisors: crate::shape::ROPE_FREQS,
        })
    }

    fn read_scaling(keys: &Keys<'_>, shape: &ModelShape) -> Result<(Scaling, f32), ModelError> {
        let factor = keys.positive_or("rope.scaling.factor", 1.0)?;
        match keys.str("rope.scaling.type") {
            None | Some("linear") => Ok((Scaling::Linear(factor), 1.0)),
            Some("none") => Ok((Scaling::Linear(1.0), 1.0)),
            Some("yarn") => {
                let yarn = Yarn {
                    factor,
                    original_context: keys
                        .u32_or("rope.scaling.original_context_length", shape.context)?
                        .max(1),
                    beta_fast: keys.positive_or("rope.scaling.yarn_beta_fast", 32.0)?,
                    beta_slow: keys.positive_or("rope.scaling.yarn_beta_slow", 1.0)?,
                };
                // The temperature of the attention, section 3.4 of the paper.
                let usual = if factor > 1.0 {
                    0.1 * libm::logf(factor) + 1.0
                } else {
                    1.0
                };
                let magnitude = keys.positive_or("rope.scaling.yarn_attn_factor", usual)?;
                Ok((Scaling::Yarn(yarn), magnitude))
            }
            Some(other) => Err(ModelError::UnsupportedFeature {
                feature: format!("rope scaling of type {other}"),
            }),
        }
    }

    fn frequency(&self, pair: usize) -> f64 {
        let exponent = -(2.0 * pair as f64) / self.turned as f64;
        let plain = libm::pow(self.base.into(), exponent);
        match self.scaling {
            Scaling::Linear(divisor) => plain / f64::from(divisor),
            Scaling::Yarn(yarn) => plain * self.yarn_factor(yarn, pair),
        }
    }

    /// Between 1 for fast pairs and `1 / factor` for slow ones.
    fn yarn_factor(&self, yarn: Yarn, pair: usize) -> f64 {
        let width = self.turned as f64;
        let pair_with_turns = |turns: f32| {
            let context = f64::from(yarn.original_context);
            let per_turn = context / (f64::from(turns) * 2.0 * std::f64::consts::PI);
            width * libm::log(per_turn) / (2.0 * libm::log(self.base.into()))
        };
        let low = pair_with_turns(yarn.beta_fast).floor().max(0.0);
        let high = pair_with_turns(yarn.beta_slow).ceil().min(width - 1.0);
        let ramp = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        1.0 - ramp + ramp / f64::from(yarn.factor)
    }
}

/// Sines and cosines for the positions reached so far.
pub(crate) struct RopeTable {
    pairing: Pairing,
    magnitude: f64,
    /// Turn per position of each pair.
    frequencies: Vec<f64>,
    /// Cosines of the pairs, position after position.
    cosines: Vec<f32>,
    /// Sines, likewise.
    sines: Vec<f32>,
}

impl RopeTable {
    /// `divisors` are the model's own, one per pair, or empty.
    pub(crate) fn new(spec: &RopeSpec, divisors: &[f32]) -> Self {
        let frequency = |pair: usize| {
            let own = divisors.get(pair).copied().unwrap_or(1.0);
            spec.frequency(pair) / f64::from(own)
        };
        Self {
            pairing: spec.pairing,
            magnitude: spec.magnitude.into(),
            frequencies: (0..spec.turned / 2).map(frequency).collect(),
            cosines: Vec::new(),
            sines: Vec::new(),
        }
    }

    /// Extends the table to at least `positions`.
    pub(crate) fn reach(&mut self, positions: usize) {
        let known = self.sines.len() / self.frequencies.len();
        for position in known..positions {
            for frequency in &self.frequencies {
                let angle = position as f64 * frequency;
                self.cosines
                    .push((libm::cos(angle) * self.magnitude) as f32);
                self.sines.push((libm::sin(angle) * self.magnitude) as f32);
            }
        }
    }

    /// Turns every head of one row; the table must reach `position`.
    #[inline(always)]
    pub(crate) fn turn(&self, position: usize, row: &mut [f32], head_dim: usize) {
        let pairs = self.frequencies.len();
        let cosines = &self.cosines[position * pairs..(position + 1) * pairs];
        let sines = &self.sines[position * pairs..(position + 1) * pairs];
        for head in row.chunks_exact_mut(head_dim) {
            match self.pairing {
                Pairing::Halves => turn_halves(&mut head[..2 * pairs], cosines, sines),
                Pairing::Neighbours => turn_neighbours(&mut head[..2 * pairs], cosines, sines),
            }
        }
    }
}

#[inline(always)]
fn turn_halves(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head.split_at_mut(cosines.len());
    for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        let (old_a, old_b) = (*a, *b);
        *a = old_a * cosine - old_b * sine;
        *b = old_a * sine + old_b * cosine;
    }
}

#[inline(always)]
fn turn_neighbours(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    for ((pair, cosine), sine) in head.chunks_exact_mut(2).zip(cosines).zip(sines) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * cosine - b * sine;
        pair[1] = a * sine + b * cosine;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pairing: Pairing) -> RopeTable {
        let spec = RopeSpec {
            base: 10_000.0,
            scaling: Scaling::Linear(1.0),
            magnitude: 1.0,
            pairing,
            turned: 4,
            divisors: "",
        };
        let mut table = RopeTable::new(&spec, &[]);
        table.reach(8);
        table
    }

    #[test]
    fn position_zero_is_left_as_it_is() {
        let mut row = vec![1.0, 2.0, 3.0, 4.0];
        table(Pairing::Halves).turn(0, &mut row, 4);
        assert_eq!(row, [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn the_pairing_says_which_values_turn_together() {
        let turned = |pairing| {
            let mut row = vec![1.0, 0.0, 0.0, 0.0];
            table(pairing).turn(1, &mut row, 4);
            row
        };
        assert!(turned(Pairing::Neighbours)[1] > 0.8);
        assert!(turned(Pairing::Halves)[2] > 0.8);
    }

    #[test]
    fn reaching_in_two_steps_gives_the_same_table() {
        let mut grown = table(Pairing::Halves);
        grown.reach(20);
        let mut other = table(Pairing::Halves);
        other.reach(13);
        other.reach(20);
        assert_eq!((grown.cosines, grown.sines), (other.cosines, other.sines));
    }
}
