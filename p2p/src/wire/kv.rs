//! Rows of keys and values on their way from a peer that has them to a stage that needs them.

use super::{PeerEndpoint, SessionId, limit, wire_struct};

/// The coordinator has a peer send rows of its KV cache to a stage of the same layers.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyOrder {
    /// Whose rows.
    pub session: SessionId,
    /// The plan that is live.
    pub epoch: u64,
    /// The step that they become.
    pub step: u64,
    /// The first position.
    pub position: u64,
    /// How many positions.
    pub rows: u32,
    /// Who gets them.
    pub to: PeerEndpoint,
}

/// What rows of keys and values are; the rows themselves are the payload.
#[derive(Debug, Clone, PartialEq)]
pub struct KvRows {
    /// Whose rows.
    pub session: SessionId,
    /// The plan that is live.
    pub epoch: u64,
    /// The step that they are.
    pub step: u64,
    /// The first position; must be the length of the stage's KV cache.
    pub position: u64,
    /// How many positions.
    pub rows: u32,
    /// The layers, half open: `first..end`; must be the stage's own.
    pub layers: (u32, u32),
    /// The numerics class; must be the stage's own.
    pub numerics: String,
}

wire_struct!(CopyOrder {
    session,
    epoch,
    step,
    position,
    rows,
    to
});
wire_struct!(KvRows {
    session,
    epoch,
    step,
    position,
    rows,
    layers,
    numerics[limit::LABEL]
});
