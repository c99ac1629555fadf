//! Rotary position embedding with tables that are built once.

use crate::shape::{Keys, ModelError, ModelShape};

/// Which two values of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// `2i` and `2i + 1`.
    Neighbours,
    /// `i` and `i + half`.
    Halves,
}

/// One kind of rotary embedding.
#[derive(Debug, Clone)]
pub(crate) struct RopeSpec {
    /// Base of the frequencies.
    pub base: f32,
    /// Positions are divided by this (linear scaling).
    pub divisor: f32,
    /// Which values make a pair.
    pub pairing: Pairing,
    /// How many values of a head are turned; the rest stay.
    pub turned: usize,
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
        let divisor = match keys.str("rope.scaling.type") {
            None | Some("none") if !keys.has("rope.scaling.factor") => 1.0,
            None | Some("linear") => keys.positive_or("rope.scaling.factor", 1.0)?,
            Some("none") => 1.0,
            Some(other) => {
                return Err(ModelError::UnsupportedFeature {
                    feature: format!("rope scaling of type {other}"),
                });
            }
        };
        Ok(Self {
            base: keys.positive_or("rope.freq_base", 10_000.0)?,
            divisor,
            pairing,
            turned: turned as usize,
        })
    }
}

/// Sines and cosines for the positions reached so far.
pub(crate) struct RopeTable {
    pairing: Pairing,
    /// Turn per position of each pair.
    frequencies: Vec<f64>,
    /// (cosine, sine) of each pair, position after position.
    turns: Vec<(f32, f32)>,
}

impl RopeTable {
    /// `divisors` are the model's own, one per pair, or empty.
    pub(crate) fn new(spec: &RopeSpec, divisors: &[f32]) -> Self {
        let pairs = spec.turned / 2;
        let frequency = |pair: usize| {
            let exponent = -(2.0 * pair as f64) / spec.turned as f64;
            let own = divisors.get(pair).copied().unwrap_or(1.0);
            libm::pow(spec.base.into(), exponent) / f64::from(own) / f64::from(spec.divisor)
        };
        Self {
            pairing: spec.pairing,
            frequencies: (0..pairs).map(frequency).collect(),
            turns: Vec::new(),
        }
    }

    /// Extends the table to at least `positions`.
    pub(crate) fn reach(&mut self, positions: usize) {
        let known = self.turns.len() / self.frequencies.len();
        for position in known..positions {
            for frequency in &self.frequencies {
                let angle = position as f64 * frequency;
                let turn = (libm::cos(angle) as f32, libm::sin(angle) as f32);
                self.turns.push(turn);
            }
        }
    }

    /// Turns every head of one row; the table must reach `position`.
    pub(crate) fn turn(&self, position: usize, row: &mut [f32], head_dim: usize) {
        let pairs = self.frequencies.len();
        let turns = &self.turns[position * pairs..(position + 1) * pairs];
        for head in row.chunks_exact_mut(head_dim) {
            for (pair, &(cosine, sine)) in turns.iter().enumerate() {
                let (first, second) = match self.pairing {
                    Pairing::Neighbours => (2 * pair, 2 * pair + 1),
                    Pairing::Halves => (pair, pair + pairs),
                };
                let (a, b) = (head[first], head[second]);
                head[first] = a * cosine - b * sine;
                head[second] = a * sine + b * cosine;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pairing: Pairing) -> RopeTable {
        let spec = RopeSpec {
            base: 10_000.0,
            divisor: 1.0,
            pairing,
            turned: 4,
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
        assert_eq!(grown.turns, other.turns);
    }
}
