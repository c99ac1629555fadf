//! The cache of a sequence over the layers of a stage: it grows, is cut off, and goes from stage to
//! stage in ranges of tokens.

use super::{Budget, KvShape, LayerKv, TOKENS, check_row};
use crate::kv_format::KvFormat;
use crate::stage::StageError;
use std::ops::Range;

/// The cache of a sequence over all layers of a stage.
pub(crate) struct Sequence {
    /// Tokens that have gone through all layers.
    pub len: usize,
    /// Tokens that may be held.
    pub limit: usize,
    /// One cache per layer of the stage.
    pub layers: Vec<LayerKv>,
    shape: KvShape,
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
            shape,
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
                let bytes = (len * layers * self.shape.token_bytes()) as u64;
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

    /// The rows of `tokens`, layer after layer, behind the code of their form.
    pub(crate) fn export(&self, tokens: Range<usize>) -> Result<Vec<u8>, StageError> {
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
        let mut rows = vec![self.shape.format.code()];
        rows.reserve(tokens.len() * self.layers.len() * self.shape.token_bytes());
        for layer in &self.layers {
            for token in tokens.clone() {
                layer.read(token, &mut rows);
            }
        }
        Ok(rows)
    }

    /// Appends rows that [`Self::export`] gave on a stage of the same layers.
    pub(crate) fn import(&mut self, position: usize, data: &[u8]) -> Result<(), StageError> {
        if position != self.len {
            return Err(StageError::PositionGap {
                have: self.len,
                got: position,
            });
        }
        let rows = self.rows_of(data)?;
        let per_token = self.shape.token_bytes();
        let count = rows.len() / (per_token * self.layers.len()).max(1);
        let len = position + count;
        if len > self.limit {
            return Err(StageError::ContextOverflow {
                needed: len,
                limit: self.limit,
            });
        }
        for row in rows.chunks_exact(per_token) {
            check_row(self.shape, row)?;
        }
        self.reach(len)?;
        let layers = self.layers.iter();
        for (layer, rows) in layers.zip(rows.chunks(per_token * count.max(1))) {
            for (index, row) in rows.chunks_exact(per_token).enumerate() {
                // SAFETY: the blocks were reached above, and the sequence is held exclusively.
                unsafe { layer.write(position + index, row) };
            }
        }
        self.commit(len);
        Ok(())
    }

    /// Takes the code off exported data; the rows are whole and of the sequence's own form.
    fn rows_of<'a>(&self, data: &'a [u8]) -> Result<&'a [u8], StageError> {
        let Some((code, rows)) = data.split_first() else {
            return Err(bad_rows("rows without the code of their form".to_owned()));
        };
        let have = self.shape.format;
        match KvFormat::of_code(*code) {
            Some(got) if got == have => {}
            Some(got) => return Err(StageError::KvMismatch { have, got }),
            None => return Err(bad_rows(format!("rows of an unknown form {code}"))),
        }
        let per_token = self.shape.token_bytes() * self.layers.len();
        if !rows.len().is_multiple_of(per_token) {
            let reason = format!("{} bytes are not rows of {per_token}", rows.len());
            return Err(bad_rows(reason));
        }
        Ok(rows)
    }
}

fn bad_rows(reason: String) -> StageError {
    StageError::BadInput { reason }
}
