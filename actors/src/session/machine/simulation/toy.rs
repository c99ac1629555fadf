//! A model in miniature. Each layer keeps a running hash of all rows that it has seen, as a KV
//! cache does, so that a token depends on every token before it, on every layer, and on nothing
//! else: a row that is missing, doubled, changed or from elsewhere changes all that follows.

use std::ops::Range;

use accel_inference::LayerRange;

use crate::request::FinishReason;

pub(crate) const LAYERS: u32 = 6;
/// The model ends its answer with this token.
pub(crate) const END: u32 = 0;
pub(crate) const VOCAB: u32 = 100;

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The layers of one stage with what they remember of each position.
pub(super) struct Layers {
    first: u32,
    count: usize,
    /// (positions, layers)
    states: Vec<u64>,
}

impl Layers {
    pub(super) fn new(range: LayerRange) -> Self {
        Self {
            first: range.first,
            count: range.len() as usize,
            states: Vec::new(),
        }
    }

    /// One row in, one row out.
    pub(super) fn row(&mut self, mut value: u64) -> u64 {
        for layer in self.first..self.first + self.count as u32 {
            let before = self.states.len().checked_sub(self.count);
            let before = before.map_or(0, |index| self.states[index]);
            let state = mix(before.wrapping_add(value) ^ (u64::from(layer) << 40));
            value = mix(state ^ value.rotate_left(17));
            self.states.push(state);
        }
        value
    }

    /// Positions that they remember.
    pub(super) fn len(&self) -> u64 {
        (self.states.len() / self.count) as u64
    }

    /// What they remember of some positions.
    pub(super) fn export(&self, positions: Range<u64>) -> Option<Vec<u64>> {
        let at = |position: u64| position as usize * self.count;
        let states = self.states.get(at(positions.start)..at(positions.end));
        states.map(<[u64]>::to_vec)
    }

    /// Takes what other such layers remember of the next positions.
    pub(super) fn import(&mut self, states: &[u64]) {
        self.states.extend_from_slice(states);
    }

    pub(super) fn truncate(&mut self, len: u64) {
        self.states.truncate(len as usize * self.count);
    }
}

/// What is drawn from the last row.
pub(super) fn token(row: u64) -> u32 {
    (row % u64::from(VOCAB)) as u32
}

/// The answer without any fault: its tokens, and why it ends.
pub(super) fn answer(prompt: &[u32], most: u64, stop: Option<u32>) -> (Vec<u32>, FinishReason) {
    let mut layers = Layers::new(LayerRange::whole(LAYERS));
    let mut row = 0;
    for token in prompt {
        row = layers.row(u64::from(*token));
    }
    let mut answer = Vec::new();
    loop {
        let next = token(row);
        if next == END {
            return (answer, FinishReason::Stop);
        }
        answer.push(next);
        if stop == Some(next) {
            return (answer, FinishReason::Stop);
        }
        if answer.len() as u64 >= most {
            return (answer, FinishReason::Length);
        }
        row = layers.row(u64::from(next));
    }
}
