//! Which quantisations the engine computes with, and in which form it keeps them in memory.

use crate::cpu::{Kind, LANES};
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

/// Bytes that a tensor takes in memory once loaded: whole tiles of rows.
pub(crate) fn loaded_bytes(tensor: &TensorInfo) -> u64 {
    let columns = tensor.dims.first().copied().unwrap_or(0);
    let rows: u64 = tensor.dims.get(1..).unwrap_or_default().iter().product();
    if tensor.dims.len() < 2 {
        return tensor.len().saturating_mul(size_of::<f32>() as u64);
    }
    if !SUPPORTED.contains(&tensor.dtype) {
        return tensor.bytes;
    }
    let tile = Kind::of(tensor.dtype).tile_bytes(columns as usize) as u64;
    rows.div_ceil(LANES as u64).saturating_mul(tile)
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
