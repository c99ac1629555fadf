//! Ranges of layers.

use serde::{Deserialize, Serialize};

/// A contiguous, half-open range of layers: what one stage holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerRange {
    /// The first layer.
    pub first: u32,
    /// One past the last layer.
    pub end: u32,
}

impl LayerRange {
    /// Layers `first..end`.
    pub fn new(first: u32, end: u32) -> Self {
        Self { first, end }
    }

    /// All layers of a model that has `total`.
    pub fn whole(total: u32) -> Self {
        Self::new(0, total)
    }

    /// Number of layers.
    pub fn len(&self) -> u32 {
        self.end.saturating_sub(self.first)
    }

    /// Whether the range holds no layer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the range begins the model, and so needs the token embedding.
    pub fn is_first(&self) -> bool {
        self.first == 0
    }

    /// Whether the range ends a model of `total` layers, and so needs the output head.
    pub fn is_last(&self, total: u32) -> bool {
        self.end == total
    }

    /// Whether `layer` is in the range.
    pub fn contains(&self, layer: u32) -> bool {
        (self.first..self.end).contains(&layer)
    }

    /// The layers in order.
    pub fn iter(&self) -> std::ops::Range<u32> {
        self.first..self.end
    }
}

impl std::fmt::Display for LayerRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..{}", self.first, self.end)
    }
}
