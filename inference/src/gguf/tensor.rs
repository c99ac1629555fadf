//! Tensor descriptions and the table of tensor types.

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// The number in the file; never reused by the format.
    pub id: u32,
    /// The usual name, e.g. `Q4_K`.
    pub name: &'static str,
    /// Values per block.
    pub block_len: u32,
    /// Bytes per block.
    pub block_bytes: u32,
}

/// Builds one row of the table.
const fn row(id: u32, name: &'static str, block_len: u32, block_bytes: u32) -> TensorType {
    TensorType {
        id,
        name,
        block_len,
        block_bytes,
    }
}

/// Every type that the format defines today. The engine computes with only some of them; the
/// others are here so that a refusal can name what it refuses.
const TYPES: &[TensorType] = &[
    TensorType::F32,
    TensorType::F16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    row(9, "Q8_1", 32, 36),
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
    row(15, "Q8_K", 256, 292),
    row(16, "IQ2_XXS", 256, 66),
    row(17, "IQ2_XS", 256, 74),
    row(18, "IQ3_XXS", 256, 98),
    row(19, "IQ1_S", 256, 50),
    row(20, "IQ4_NL", 32, 18),
    row(21, "IQ3_S", 256, 110),
    row(22, "IQ2_S", 256, 82),
    row(23, "IQ4_XS", 256, 136),
    row(24, "I8", 1, 1),
    row(25, "I16", 1, 2),
    row(26, "I32", 1, 4),
    row(27, "I64", 1, 8),
    row(28, "F64", 1, 8),
    row(29, "IQ1_M", 256, 56),
    TensorType::BF16,
    row(34, "TQ1_0", 256, 54),
    row(35, "TQ2_0", 256, 66),
    row(39, "MXFP4", 32, 17),
];

#[allow(missing_docs, reason = "each constant is named after its type")]
impl TensorType {
    pub const F32: Self = row(0, "F32", 1, 4);
    pub const F16: Self = row(1, "F16", 1, 2);
    pub const Q4_0: Self = row(2, "Q4_0", 32, 18);
    pub const Q4_1: Self = row(3, "Q4_1", 32, 20);
    pub const Q5_0: Self = row(6, "Q5_0", 32, 22);
    pub const Q5_1: Self = row(7, "Q5_1", 32, 24);
    pub const Q8_0: Self = row(8, "Q8_0", 32, 34);
    pub const Q2_K: Self = row(10, "Q2_K", 256, 84);
    pub const Q3_K: Self = row(11, "Q3_K", 256, 110);
    pub const Q4_K: Self = row(12, "Q4_K", 256, 144);
    pub const Q5_K: Self = row(13, "Q5_K", 256, 176);
    pub const Q6_K: Self = row(14, "Q6_K", 256, 210);
    pub const BF16: Self = row(30, "BF16", 1, 2);
}

impl TensorType {
    /// The type with this number.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().copied().find(|known| known.id == id)
    }

    /// Bytes that `len` values take, or `None` when they do not fill whole blocks or overflow.
    pub fn bytes_of(self, len: u64) -> Option<u64> {
        let block_len = u64::from(self.block_len);
        if !len.is_multiple_of(block_len) {
            return None;
        }
        (len / block_len).checked_mul(self.block_bytes.into())
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// E.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// Sizes in the order of the file: the first is the contiguous one (columns, then rows).
    pub dims: Vec<u64>,
    /// How the values are stored.
    pub dtype: TensorType,
    /// Start, counted from [`super::Gguf::data_offset`].
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of values.
    pub fn len(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Whether the tensor holds no value; the parser refuses such tensors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
