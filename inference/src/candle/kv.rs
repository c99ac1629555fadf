//! The KV cache of one sequence: per layer, rows of keys and values.

use crate::stage::StageError;

/// Keys and values of one layer, one row of all KV heads per token.
///
/// Room for the longest sequence is reserved at the start, so appending never moves the rows;
/// the operating system hands out the pages only when they are written.
pub(crate) struct LayerKv {
    width: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl LayerKv {
    pub(crate) fn append(&mut self, keys: &[f32], values: &[f32]) {
        self.keys.extend_from_slice(keys);
        self.values.extend_from_slice(values);
    }

    /// Key rows, each `width` wide.
    pub(crate) fn keys(&self) -> &[f32] {
        &self.keys
    }

    /// Value rows, each `width` wide.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// Width of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    fn truncate(&mut self, len: usize) {
        self.keys.truncate(len * self.width);
        self.values.truncate(len * self.width);
    }
}

/// The cache of a sequence over all layers of a stage.
pub(crate) struct Sequence {
    /// Tokens that have gone through all layers.
    pub len: usize,
    /// Tokens that room was reserved for.
    pub limit: usize,
    /// One cache per layer of the stage.
    pub layers: Vec<LayerKv>,
}

impl Sequence {
    /// Reserves room for `limit` tokens in `layers` layers of rows `width` wide.
    pub(crate) fn new(layers: usize, width: usize, limit: usize) -> Result<Self, StageError> {
        let values = limit.saturating_mul(width);
        let reserve = || {
            let mut rows: Vec<f32> = Vec::new();
            rows.try_reserve_exact(values).map(|()| rows)
        };
        let mut caches = Vec::with_capacity(layers);
        for _ in 0..layers {
            let (Ok(keys), Ok(values)) = (reserve(), reserve()) else {
                let floats = values.saturating_mul(2).saturating_mul(layers);
                return Err(StageError::OutOfMemory {
                    tokens: limit,
                    bytes: floats.saturating_mul(size_of::<f32>()) as u64,
                });
            };
            caches.push(LayerKv {
                width,
                keys,
                values,
            });
        }
        Ok(Self {
            len: 0,
            limit,
            layers: caches,
        })
    }

    /// Forgets everything from token number `len` on, also what an unfinished step has left.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for layer in &mut self.layers {
            layer.truncate(self.len);
        }
    }
}
