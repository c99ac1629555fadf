//! The cache of a sequence over the layers of a stage: it grows, is cut off, and goes from stage to
//! stage in ranges of tokens.

use super::{Budget, KvShape, LayerKv, TOKENS};
use crate::stage::StageError;

/// The cache of a sequence over all layers of a stage.
pub(crate) struct Sequence {
    /// Tokens that have gone through all layers.
    pub len: usize,
    /// Tokens that may be held.
    pub limit: usize,
    /// One cache per layer of the stage.
    pub layers: Vec<LayerKv>,
    budget: Budget,
}

impl Sequence {
    /// An empty cache for at most `limit` tokens; one window, or none, per layer.
    pub(crate) fn new(
        limit: usize,
        shape: KvShape,
        windows: impl Iterator<Item = Option<usize>>,
        budget: &Budget,
    ) -> Self {
        Self {
            len: 0,
            limit,
            layers: windows.map(|window| LayerKv::new(shape, window)).collect(),
            budget: budget.clone(),
        }
    }

    /// Takes memory for tokens below `len`: for all layers, or none.
    pub(crate) fn reach(&mut self, len: usize) -> Result<(), StageError> {
        let missing = self.layers.iter().map(|layer| layer.missing_bytes(len));
        self.budget.check(missing.sum())?;
        let layers = self.layers.len();
        for layer in &mut self.layers {
            if layer.reach(len, &self.budget).is_err() {
                let bytes = (len * layers * layer.shape.token_bytes()) as u64;
                self.give_back();
                return Err(StageError::OutOfMemory { tokens: len, bytes });
            }
        }
        Ok(())
    }

    /// Gives back the blocks behind the last token.
    fn give_back(&mut self) {
        for layer in &mut self.layers {
            layer.truncate(self.len);
        }
    }

    /// Takes over the tokens below `len` as part of the sequence.
    pub(crate) fn commit(&mut self, len: usize) {
        self.len = len;
        for layer in &mut self.layers {
            layer.trim(len);
        }
    }

    /// Forgets everything from token number `len` on, also what an unfinished step has left.
    pub(crate) fn truncate(&mut self, len: usize) -> Result<(), StageError> {
        let len = self.len.min(len);
        if !self.layers.iter().all(|layer| layer.covers(len)) {
            return Err(StageError::Forgotten { len });
        }
        self.len = len;
        self.give_back();
        Ok(())
    }

    /// The rows of `tokens`, layer after layer: keys and values of each token as `f16`, little
    /// endian.
    pub(crate) fn export(&self, tokens: std::ops::Range<usize>) -> Result<Vec<u8>, StageError> {
        if tokens.end > self.len || tokens.start > tokens.end {
            return Err(StageError::PositionGap {
                have: self.len,
                got: tokens.end,
            });
        }
        let is_there = |layer: &LayerKv| layer.first * TOKENS <= tokens.start;
        if !self.layers.iter().all(is_there) {
            return Err(StageError::Forgotten { len: tokens.start });
        }
        let mut numbers = Vec::new();
        for layer in &self.layers {
            layer.read(tokens.clone(), &mut numbers);
        }
        Ok(numbers.iter().flat_map(|bits| bits.to_le_bytes()).collect())
    }

    /// Appends rows that [`Self::export`] gave on a stage of the same layers.
    pub(crate) fn import(&mut self, position: usize, data: &[u8]) -> Result<(), StageError> {
        let Some(shape) = self.layers.first().map(|layer| layer.shape) else {
            return Ok(());
        };
        let per_token = shape.token_bytes() * self.layers.len();
        if position != self.len {
            return Err(StageError::PositionGap {
                have: self.len,
                got: position,
            });
        }
        if !data.len().is_multiple_of(per_token) {
            return Err(StageError::BadInput {
                reason: format!("{} bytes are not rows of {per_token}", data.len()),
            });
        }
        let count = data.len() / per_token;
        if position + count > self.limit {
            return Err(StageError::ContextOverflow {
                needed: position + count,
                limit: self.limit,
            });
        }
        let numbers: Vec<u16> = data
            .as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| u16::from_le_bytes(*bytes))
            .collect();
        let is_finite = |bits: &u16| half::f16::from_bits(*bits).is_finite();
        if !numbers.iter().all(is_finite) {
            return Err(StageError::NonFinite {
                what: "the imported cache".to_owned(),
            });
        }
        self.reach(position + count)?;
        let width = shape.width();
        for (layer, rows) in self
            .layers
            .iter()
            .zip(numbers.chunks(2 * width * count.max(1)))
        {
            for (index, row) in rows.chunks_exact(2 * width).enumerate() {
                let (keys, values) = row.split_at(width);
                // SAFETY: the blocks were reached above, and the sequence is held exclusively.
                unsafe { layer.write(position + index, keys, values) };
            }
        }
        self.commit(position + count);
        Ok(())
    }
}
