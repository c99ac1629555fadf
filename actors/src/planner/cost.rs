//! What a range of layers costs: memory, and predicted time per token.

use accel_inference::{KvFormat, LayerRange, ModelShape};

use super::PeerFacts;

/// Price of a hop besides its bytes: half a millisecond, between loopback (0.1) and Wi-Fi (2).
const HOP_NS: u64 = 500_000;
/// Nanoseconds per byte on a hop: a gigabit link.
const HOP_NS_PER_BYTE: u64 = 8;
/// Peers that report no speed are taken for slow, not for unusable.
const LEAST_GB_S: f64 = 0.1;

/// The sizes of a model, ready for quick sums.
pub(super) struct Costs {
    /// Sum of the bytes of the layers before index n.
    prefix: Vec<u64>,
    embedding_bytes: u64,
    head_bytes: u64,
    tied: bool,
    kv_bytes_per_layer: u64,
    hop_ns: u64,
}

impl Costs {
    /// What the model costs on peers that keep their caches in this form.
    pub(super) fn new(shape: &ModelShape, tokens: u32, kv: KvFormat) -> Self {
        let mut prefix = vec![0];
        let mut sum: u64 = 0;
        for bytes in &shape.layer_bytes {
            sum = sum.saturating_add(*bytes);
            prefix.push(sum);
        }
        Self {
            prefix,
            embedding_bytes: shape.embedding_bytes,
            head_bytes: shape.head_bytes,
            tied: shape.tied_embeddings,
            kv_bytes_per_layer: shape
                .kv_bytes_per_token_layer(kv)
                .saturating_mul(u64::from(tokens)),
            hop_ns: HOP_NS + u64::from(shape.hidden) * 4 * HOP_NS_PER_BYTE,
        }
    }

    pub(super) fn layers(&self) -> u32 {
        (self.prefix.len() - 1) as u32
    }

    pub(super) fn whole(&self) -> LayerRange {
        LayerRange::whole(self.layers())
    }

    fn layer_sum(&self, range: LayerRange) -> u64 {
        let at = |layer: u32| self.prefix.get(layer as usize).copied().unwrap_or(0);
        at(range.end).saturating_sub(at(range.first))
    }

    /// Memory that the weights of a stage take, as [`ModelShape::stage_bytes`] has it.
    pub(super) fn weights(&self, range: LayerRange) -> u64 {
        let mut sum = self.layer_sum(range);
        if range.is_first() {
            sum += self.embedding_bytes;
        }
        if range.is_last(self.layers()) {
            sum += self.head_bytes;
            if range.is_first() && self.tied {
                sum -= self.embedding_bytes;
            }
        }
        sum
    }

    pub(super) fn kv(&self, range: LayerRange) -> u64 {
        self.kv_bytes_per_layer
            .saturating_mul(u64::from(range.len()))
    }

    pub(super) fn memory(&self, range: LayerRange) -> u64 {
        self.weights(range).saturating_add(self.kv(range))
    }

    /// Predicted time per token of a stage: every weight is read once; of the embedding, one row.
    pub(super) fn stage_ns(&self, range: LayerRange, peer: &PeerFacts) -> u64 {
        let mut bytes = self.layer_sum(range);
        if range.is_last(self.layers()) {
            bytes += self.head_bytes;
        }
        // Bytes over GB/s are nanoseconds.
        (bytes as f64 / speed(peer)).round() as u64
    }

    pub(super) fn hop_ns(&self) -> u64 {
        self.hop_ns
    }

    /// Whether the peer can hold the range.
    pub(super) fn fits(&self, range: LayerRange, peer: &PeerFacts) -> bool {
        let within_layers = peer.max_layers.is_none_or(|most| range.len() <= most);
        within_layers && self.memory(range) <= peer.memory_bytes
    }
}

fn speed(peer: &PeerFacts) -> f64 {
    let gb_s = f64::from(peer.gb_s);
    match gb_s.is_finite() {
        true => gb_s.max(LEAST_GB_S),
        false => LEAST_GB_S,
    }
}

/// Speed as a number that orders totally.
pub(super) fn speed_key(peer: &PeerFacts) -> u64 {
    (speed(peer) * 1000.0).round() as u64
}
