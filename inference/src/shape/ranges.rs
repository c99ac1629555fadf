//! Which bytes of the file a stage needs.

use super::{EMBEDDING, ModelShape, OUTPUT, OUTPUT_NORM, ROPES};
use crate::gguf::Gguf;
use crate::layers::LayerRange;
use std::ops::Range;

/// Splits `blk.LAYER.SUFFIX`.
pub(super) fn layer_of(tensor: &str) -> Option<(u32, &str)> {
    let (layer, suffix) = tensor.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, suffix))
}

/// The header and the stage's tensors, ordered and merged.
pub(super) fn of_stage(shape: &ModelShape, gguf: &Gguf, range: &LayerRange) -> Vec<Range<u64>> {
    let header = 0..gguf.data_offset.min(gguf.file_len);
    let mut ranges = vec![header];
    for tensor in &gguf.tensors {
        if is_needed(shape, &tensor.name, range) {
            ranges.push(gguf.tensor_range(tensor));
        }
    }
    merge(ranges, gguf.alignment)
}

fn is_needed(shape: &ModelShape, tensor: &str, range: &LayerRange) -> bool {
    let is_last = range.is_last(shape.layers);
    match tensor {
        EMBEDDING => range.is_first() || (is_last && shape.tied_embeddings),
        OUTPUT | OUTPUT_NORM => is_last,
        _ if ROPES.contains(&tensor) => true,
        _ => layer_of(tensor).is_some_and(|(layer, _)| range.contains(layer)),
    }
}

/// Orders the ranges and joins those that touch or have only padding between them.
fn merge(mut ranges: Vec<Range<u64>>, alignment: u64) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(alignment) => {
                last.end = last.end.max(range.end);
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_with_only_padding_between_them_are_joined() {
        let merged = merge(vec![200..300, 0..90, 96..150, 160..180], 32);
        assert_eq!(merged, vec![0..300]);
        let apart = merge(vec![200..300, 0..90], 32);
        assert_eq!(apart, vec![0..90, 200..300]);
    }

    #[test]
    fn the_layer_of_a_tensor_is_read_from_its_name() {
        assert_eq!(
            layer_of("blk.12.attn_q.weight"),
            Some((12, "attn_q.weight"))
        );
        assert_eq!(layer_of("output.weight"), None);
        assert_eq!(layer_of("blk.x.attn_q.weight"), None);
    }
}
