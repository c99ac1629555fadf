//! What a node may be asked to have ready, for sessions that may need it later.

use cid::Cid;
use libp2p::PeerId;

use super::control::check_layers;
use super::{limit, wire_struct};

/// Layers that a peer may soon have to compute, because another peer may be lost. Nothing is
/// reserved: whoever is asked fetches them, and loads them if there is memory to spare.
#[derive(Debug, Clone, PartialEq)]
pub struct WarmOrder {
    /// Root of the model.
    pub model: Cid,
    /// Size of the model, to be held against the root node.
    pub model_bytes: u64,
    /// Layers to have ready, half open: `first..end`.
    pub layers: (u32, u32),
    /// Layers of the whole model; first and last stages do more than their layers.
    pub total_layers: u32,
    /// Who is known to have blocks of the model; best first.
    pub providers: Vec<PeerId>,
}

wire_struct!(WarmOrder { model, model_bytes, layers, total_layers, providers[limit::PROVIDERS] });

impl WarmOrder {
    pub(super) fn check(&self) -> Result<(), String> {
        check_layers(self.layers, self.total_layers)
    }
}
