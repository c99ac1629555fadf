//! The header parser.

use super::metadata::{Array, Metadata, Value};
use super::tensor::{TensorInfo, TensorType};
use super::{Gguf, GgufError, HEADER_LIMIT, MAGIC, Strings};
use std::borrow::Cow;
use std::collections::HashMap;

const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 18;
const MAX_NAME_BYTES: u64 = 1 << 12;
const MAX_STRING_BYTES: u64 = 16 << 20;
const MAX_ARRAY_LEN: u64 = 1 << 25;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Parses a whole header; see [`Gguf::parse`].
pub(super) fn header(prefix: &[u8], file_len: u64) -> Result<Gguf, GgufError> {
    let mut reader = Reader::new(prefix, file_len);
    let version = read_version(&mut reader)?;
    let tensor_count = reader.count("tensors", MAX_TENSORS)?;
    let key_count = reader.count("metadata keys", MAX_KEYS)?;
    let metadata = read_metadata(&mut reader, key_count)?;
    let alignment = read_alignment(&metadata, &reader)?;
    let tensors = read_tensors(&mut reader, tensor_count)?;
    let data_offset = (reader.position as u64).next_multiple_of(alignment);
    let index = check_tensors(&tensors, data_offset, alignment, file_len)?;
    Ok(Gguf {
        version,
        metadata,
        tensors,
        alignment,
        data_offset,
        file_len,
        index,
    })
}

fn read_version(reader: &mut Reader<'_>) -> Result<u32, GgufError> {
    let found: [u8; 4] = reader.bytes()?;
    if found != MAGIC {
        return Err(GgufError::NotGguf { found });
    }
    match reader.u32()? {
        version @ (2 | 3) => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => Err(GgufError::BigEndian),
        version => Err(GgufError::UnsupportedVersion { version }),
    }
}

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::default();
    for _ in 0..count {
        let key = reader.string("bytes in a key", MAX_NAME_BYTES)?;
        let kind = reader.u32()?;
        let value = reader.value(kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(reader.corrupt(format!("the key {key:?} appears twice")));
        }
    }
    Ok(metadata)
}

fn read_alignment(metadata: &Metadata, reader: &Reader<'_>) -> Result<u64, GgufError> {
    let key = "general.alignment";
    if metadata.get(key).is_none() {
        return Ok(DEFAULT_ALIGNMENT);
    }
    match metadata.u64(key) {
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => {
            Ok(alignment)
        }
        other => Err(reader.corrupt(format!("the alignment {other:?} is not a power of two"))),
    }
}

fn read_tensors(reader: &mut Reader<'_>, count: u64) -> Result<Vec<TensorInfo>, GgufError> {
    // A description takes at least 32 bytes, so the prefix bounds the allocation.
    let affordable = reader.remaining() / 32;
    let mut tensors = Vec::with_capacity((count as usize).min(affordable));
    for _ in 0..count {
        tensors.push(read_tensor(reader)?);
    }
    Ok(tensors)
}

fn read_tensor(reader: &mut Reader<'_>) -> Result<TensorInfo, GgufError> {
    let name = reader.string("bytes in a tensor name", MAX_NAME_BYTES)?;
    let rank = reader.u32()?;
    if rank == 0 || rank > MAX_DIMS {
        return Err(reader.corrupt(format!("tensor {name:?} has {rank} dimensions")));
    }
    let mut dims = Vec::with_capacity(rank as usize);
    for _ in 0..rank {
        dims.push(reader.u64()?);
    }
    let id = reader.u32()?;
    let offset = reader.u64()?;
    let Some(dtype) = TensorType::from_id(id) else {
        return Err(GgufError::UnknownTensorType { tensor: name, id });
    };
    match bytes_of(&dims, dtype) {
        Some(bytes) => Ok(TensorInfo {
            name,
            dims,
            dtype,
            offset,
            bytes,
        }),
        None => Err(reader.corrupt(format!(
            "tensor {name:?} cannot have the sizes {dims:?} in {dtype}"
        ))),
    }
}

/// Size of a tensor, or `None` when it is empty, too large or has broken rows.
fn bytes_of(dims: &[u64], dtype: TensorType) -> Option<u64> {
    let columns = *dims.first()?;
    if columns % u64::from(dtype.block_len) != 0 {
        return None;
    }
    let mut len = 1u64;
    for &dim in dims {
        len = len.checked_mul(dim)?;
    }
    if len == 0 {
        return None;
    }
    dtype.bytes_of(len)
}

/// Checks that every tensor lies inside the file, and builds the index by name.
fn check_tensors(
    tensors: &[TensorInfo],
    data_offset: u64,
    alignment: u64,
    file_len: u64,
) -> Result<HashMap<String, usize>, GgufError> {
    let mut index = HashMap::with_capacity(tensors.len());
    for (at, tensor) in tensors.iter().enumerate() {
        let corrupt = |what: String| GgufError::Corrupt {
            offset: data_offset,
            what,
        };
        let name = &tensor.name;
        if tensor.offset % alignment != 0 {
            return Err(corrupt(format!("tensor {name:?} is not aligned")));
        }
        let end = data_offset
            .checked_add(tensor.offset)
            .and_then(|start| start.checked_add(tensor.bytes))
            .ok_or_else(|| corrupt(format!("tensor {name:?} lies beyond any file")))?;
        if end > file_len {
            return Err(GgufError::Truncated {
                needed: end,
                file_len,
            });
        }
        if index.insert(name.clone(), at).is_some() {
            return Err(corrupt(format!("the tensor {name:?} appears twice")));
        }
    }
    check_order(tensors, data_offset, alignment)?;
    Ok(index)
}

/// Checks that tensors follow each other with nothing but padding in between, as ggml demands of a
/// file: a wrong offset, or a type of another size, would give weights that are not meant.
fn check_order(tensors: &[TensorInfo], data_offset: u64, alignment: u64) -> Result<(), GgufError> {
    let mut in_order: Vec<&TensorInfo> = tensors.iter().collect();
    in_order.sort_by_key(|tensor| tensor.offset);
    let mut expected = 0;
    for tensor in in_order {
        if tensor.offset != expected {
            let (name, found) = (&tensor.name, tensor.offset);
            return Err(GgufError::Corrupt {
                offset: data_offset,
                what: format!(
                    "tensor {name:?} begins at {found} of the data, where {expected} is expected; \
                     its offset, or the type or size of the tensor before it, is wrong"
                ),
            });
        }
        let end = tensor.offset.saturating_add(tensor.bytes);
        expected = end.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    }
    Ok(())
}

/// A cursor over the prefix that knows how long the whole file is.
struct Reader<'a> {
    prefix: &'a [u8],
    position: usize,
    file_len: u64,
}

impl<'a> Reader<'a> {
    fn new(prefix: &'a [u8], file_len: u64) -> Self {
        let usable = usize::try_from(file_len).unwrap_or(usize::MAX);
        let prefix = prefix.get(..usable).unwrap_or(prefix);
        Self {
            prefix,
            position: 0,
            file_len,
        }
    }

    fn remaining(&self) -> usize {
        self.prefix.len().saturating_sub(self.position)
    }

    fn corrupt(&self, what: String) -> GgufError {
        GgufError::Corrupt {
            offset: self.position as u64,
            what,
        }
    }

    /// The next `len` bytes; nothing is copied or allocated.
    fn take(&mut self, len: u64) -> Result<&'a [u8], GgufError> {
        let at_least = (self.position as u64).saturating_add(len);
        if at_least > self.file_len {
            return Err(GgufError::Truncated {
                needed: at_least,
                file_len: self.file_len,
            });
        }
        if at_least > HEADER_LIMIT {
            return Err(GgufError::LimitExceeded {
                what: "bytes of header",
                found: at_least,
                limit: HEADER_LIMIT,
            });
        }
        let end = at_least as usize;
        let taken = self
            .prefix
            .get(self.position..end)
            .ok_or(GgufError::NeedMore { at_least })?;
        self.position = end;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let taken = self.take(N as u64)?;
        Ok(taken
            .try_into()
            .expect("take returns as many bytes as asked"))
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A 64-bit count that must not exceed `limit`.
    fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, GgufError> {
        let found = self.u64()?;
        if found > limit {
            return Err(GgufError::LimitExceeded { what, found, limit });
        }
        Ok(found)
    }

    /// A length-prefixed string. Invalid UTF-8 is replaced, as other readers of the format do.
    fn text(&mut self, what: &'static str, limit: u64) -> Result<Cow<'a, str>, GgufError> {
        let len = self.count(what, limit)?;
        self.take(len).map(String::from_utf8_lossy)
    }

    fn string(&mut self, what: &'static str, limit: u64) -> Result<String, GgufError> {
        self.text(what, limit).map(Cow::into_owned)
    }

    fn bool(&mut self) -> Result<bool, GgufError> {
        let [byte] = self.bytes()?;
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.corrupt(format!("{other} is not a boolean"))),
        }
    }

    fn value(&mut self, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.bytes()?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes()?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes()?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.bytes()?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes()?)),
            7 => Value::Bool(self.bool()?),
            8 => Value::Str(self.string("bytes in a string", MAX_STRING_BYTES)?),
            9 => Value::Array(self.array()?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.bytes()?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.corrupt(format!("the value type {other} is unknown"))),
        })
    }

    fn array(&mut self) -> Result<Array, GgufError> {
        let kind = self.u32()?;
        let len = self.count("array elements", MAX_ARRAY_LEN)?;
        Ok(match kind {
            0 => Array::U8(self.numbers(len, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(len, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(len, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(len, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(len, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(len, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(len, f32::from_le_bytes)?),
            7 => Array::Bool(self.bools(len)?),
            8 => Array::Str(self.strings(len)?),
            10 => Array::U64(self.numbers(len, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(len, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(len, f64::from_le_bytes)?),
            other => return Err(self.corrupt(format!("an array of type {other} is not allowed"))),
        })
    }

    /// `len` numbers of `N` bytes; allocates only once the bytes are known to be there.
    fn numbers<T, const N: usize>(
        &mut self,
        len: u64,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        let bytes = self.take(len.saturating_mul(N as u64))?;
        let (chunks, _) = bytes.as_chunks::<N>();
        Ok(chunks.iter().map(|&chunk| decode(chunk)).collect())
    }

    fn bools(&mut self, len: u64) -> Result<Vec<bool>, GgufError> {
        // The bytes must be there before room is made for them.
        let affordable = self.remaining() as u64;
        let mut values = Vec::with_capacity(len.min(affordable) as usize);
        for _ in 0..len {
            values.push(self.bool()?);
        }
        Ok(values)
    }

    fn strings(&mut self, len: u64) -> Result<Strings, GgufError> {
        let mut values = Strings::default();
        for _ in 0..len {
            values.push(&self.text("bytes in a string", MAX_STRING_BYTES)?);
        }
        values.shrink_to_fit();
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, offset: u64, dtype: u32) -> TensorInfo {
        let dtype = TensorType::from_id(dtype).expect("a type of ggml");
        let dims = vec![64, 3];
        TensorInfo {
            name: name.to_owned(),
            bytes: bytes_of(&dims, dtype).expect("whole blocks"),
            dims,
            dtype,
            offset,
        }
    }

    #[test]
    fn tensors_follow_each_other_in_any_order_without_overlap_or_hole() {
        const F32: u32 = 0;
        const Q4_1: u32 = 3;
        const Q5_1: u32 = 7;
        // 120, 768 and 144 bytes.
        let sound = [
            tensor("b", 128, F32),
            tensor("a", 0, Q4_1),
            tensor("c", 896, Q5_1),
        ];
        assert!(check_order(&sound, 0, 32).is_ok());
        let refused = [
            [tensor("b", 0, F32), tensor("a", 0, Q4_1)],
            [tensor("b", 96, F32), tensor("a", 0, Q4_1)],
            [tensor("b", 128, F32), tensor("a", 0, Q5_1)],
            [tensor("b", 160, F32), tensor("a", 32, Q4_1)],
        ];
        for tensors in refused {
            let error = check_order(&tensors, 0, 32);
            assert!(matches!(error, Err(GgufError::Corrupt { .. })), "{error:?}");
        }
    }
}
