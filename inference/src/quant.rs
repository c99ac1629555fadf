//! Which quantisations the engine computes with, and in which form it keeps them in memory.

use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::shape::ModelError;

/// The types that the kernels take.
const SUPPORTED: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

/// What people call each value of `general.file_type`.
const FILE_TYPES: [(u32, &str); 17] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (32, "BF16"),
];

/// The type in which a tensor is kept in memory.
///
/// `Q5_0` becomes `Q8_0`: the five-bit integers and the scale are kept as they are, so every
/// product is the same bit for bit, and the kernel is several times faster.
pub(crate) fn loaded_type(stored: TensorType) -> TensorType {
    if stored == TensorType::Q5_0 {
        TensorType::Q8_0
    } else {
        stored
    }
}

/// Bytes that a tensor takes in memory once loaded.
pub(crate) fn loaded_bytes(tensor: &TensorInfo) -> u64 {
    let loaded = loaded_type(tensor.dtype);
    loaded.bytes_of(tensor.len()).unwrap_or(tensor.bytes)
}

/// Refuses a tensor that the kernels cannot compute with.
pub(crate) fn check(tensor: &TensorInfo) -> Result<(), ModelError> {
    if !SUPPORTED.contains(&tensor.dtype) {
        return Err(ModelError::UnsupportedQuantisation {
            tensor: tensor.name.clone(),
            name: tensor.dtype.name.to_owned(),
            known: SUPPORTED.iter().map(|known| known.name).collect(),
        });
    }
    // The kernels of these walk a row two blocks at a time.
    let in_pairs = [TensorType::Q4_1, TensorType::Q5_1];
    let columns = tensor.dims.first().copied().unwrap_or(0);
    if in_pairs.contains(&tensor.dtype) && columns % 64 != 0 {
        return Err(ModelError::UnsupportedFeature {
            feature: format!(
                "rows of {columns} values in {} ({}), not a multiple of 64",
                tensor.dtype, tensor.name
            ),
        });
    }
    Ok(())
}

/// What people call the quantisation of a file: what the file says of itself, else the type that
/// takes most of its bytes.
pub(crate) fn name_of(gguf: &Gguf) -> String {
    let file_type = gguf.metadata.u32("general.file_type");
    let named = FILE_TYPES.iter().find(|(id, _)| Some(*id) == file_type);
    if let Some((_, name)) = named {
        return (*name).to_owned();
    }
    let bytes_in = |dtype: &TensorType| -> u64 {
        let of_type = gguf.tensors.iter().filter(|tensor| tensor.dtype == *dtype);
        of_type.map(|tensor| tensor.bytes).sum()
    };
    let mut types: Vec<_> = gguf.tensors.iter().map(|tensor| tensor.dtype).collect();
    types.sort_by_key(|dtype| dtype.id);
    types.dedup();
    let most = types.into_iter().max_by_key(bytes_in);
    most.map_or_else(|| "none".to_owned(), |dtype| dtype.name.to_owned())
}

/// Turns one `Q5_0` block (scale, 32 high bits, 32 low nibbles) into a `Q8_0` block (the same
/// scale, 32 bytes).
pub(crate) fn widen_q5_0(stored: &[u8], loaded: &mut [u8]) {
    let (scale, rest) = stored.split_at(2);
    let (high, low) = rest.split_at(4);
    let high = u32::from_le_bytes(
        high.try_into()
            .expect("a block has four bytes of high bits"),
    );
    let (loaded_scale, values) = loaded.split_at_mut(2);
    loaded_scale.copy_from_slice(scale);
    let (first_half, second_half) = values.split_at_mut(16);
    let halves = first_half.iter_mut().zip(second_half);
    for ((index, nibbles), (first, second)) in low.iter().enumerate().zip(halves) {
        let high_of = |value: usize| ((high >> value) as u8 & 1) << 4;
        *first = (nibbles & 0x0f | high_of(index)).wrapping_sub(16);
        *second = (nibbles >> 4 | high_of(index + 16)).wrapping_sub(16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::k_quants::{BlockQ5_0, BlockQ8_0};
    use candle_core::quantized::{GgmlDType, GgmlType};

    #[test]
    fn widening_q5_0_keeps_every_value_bit_for_bit() {
        let values: Vec<f32> = (0..320).map(|i| (i as f32 * 0.71).sin() * 3.0).collect();
        let mut narrow = GgmlDType::Q5_0.cpu_zeros(values.len());
        narrow.from_float(&values);
        let len = narrow.storage_size_in_bytes();
        // SAFETY: the storage owns `len` initialised bytes and outlives the slice.
        let stored = unsafe { std::slice::from_raw_parts(narrow.as_ptr(), len) };
        let mut loaded = vec![0u8; len / 22 * 34];
        for (stored, loaded) in stored.chunks(22).zip(loaded.chunks_mut(34)) {
            widen_q5_0(stored, loaded);
        }
        let wide = GgmlDType::Q8_0.from_data(loaded.into());
        let floats = |blocks: &dyn candle_core::quantized::QuantizedType| {
            let storage = blocks.dequantize(values.len()).expect("sizes fit");
            storage.as_slice::<f32>().expect("floats").to_vec()
        };
        assert_eq!(floats(&*narrow), floats(&*wide));
        assert_eq!(BlockQ5_0::BLCK_SIZE, BlockQ8_0::BLCK_SIZE);
    }
}
