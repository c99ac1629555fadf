//! Writes GGUF version 3 files: small models for tests and self-checks.

use super::metadata::{Array, Metadata, Value};
use super::tensor::TensorType;
use super::{GgufError, MAGIC};
use std::path::Path;

const ALIGNMENT: usize = 32;

/// Collects metadata and tensors and turns them into the bytes of a file.
#[derive(Debug, Default)]
pub struct Writer {
    metadata: Metadata,
    tensors: Vec<Tensor>,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    dtype: TensorType,
    data: Vec<u8>,
}

impl Writer {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a metadata pair.
    pub fn set(&mut self, key: impl Into<String>, value: Value) -> &mut Self {
        self.metadata.insert(key, value);
        self
    }

    /// Appends a tensor; `data` holds the values as the type stores them.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        dims: &[u64],
        dtype: TensorType,
        data: Vec<u8>,
    ) -> &mut Self {
        self.tensors.push(Tensor {
            name: name.into(),
            dims: dims.to_vec(),
            dtype,
            data,
        });
        self
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_u32(&mut out, 3);
        put_u64(&mut out, self.tensors.len() as u64);
        put_u64(&mut out, self.metadata.len() as u64);
        for (key, value) in self.metadata.iter() {
            put_str(&mut out, key);
            put_value(&mut out, value);
        }
        self.put_descriptions(&mut out);
        for tensor in &self.tensors {
            pad(&mut out);
            out.extend_from_slice(&tensor.data);
        }
        pad(&mut out);
        out
    }

    /// Writes the file to `path`.
    pub fn write(&self, path: &Path) -> Result<(), GgufError> {
        std::fs::write(path, self.to_bytes()).map_err(|source| GgufError::Io {
            path: path.to_path_buf(),
            source,
        })
    }

    fn put_descriptions(&self, out: &mut Vec<u8>) {
        let mut offset = 0;
        for tensor in &self.tensors {
            put_str(out, &tensor.name);
            put_u32(out, tensor.dims.len() as u32);
            for &dim in &tensor.dims {
                put_u64(out, dim);
            }
            put_u32(out, tensor.dtype.id);
            put_u64(out, offset as u64);
            offset += tensor.data.len().next_multiple_of(ALIGNMENT);
        }
    }
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_str(out: &mut Vec<u8>, value: &str) {
    put_u64(out, value.len() as u64);
    out.extend_from_slice(value.as_bytes());
}

/// Writes a type number and the little-endian bytes of a scalar.
fn put_scalar(out: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    put_u32(out, kind);
    out.extend_from_slice(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => put_scalar(out, 0, &v.to_le_bytes()),
        Value::I8(v) => put_scalar(out, 1, &v.to_le_bytes()),
        Value::U16(v) => put_scalar(out, 2, &v.to_le_bytes()),
        Value::I16(v) => put_scalar(out, 3, &v.to_le_bytes()),
        Value::U32(v) => put_scalar(out, 4, &v.to_le_bytes()),
        Value::I32(v) => put_scalar(out, 5, &v.to_le_bytes()),
        Value::F32(v) => put_scalar(out, 6, &v.to_le_bytes()),
        Value::Bool(v) => put_scalar(out, 7, &[u8::from(*v)]),
        Value::Str(v) => {
            put_u32(out, 8);
            put_str(out, v);
        }
        Value::Array(v) => {
            put_u32(out, 9);
            put_array(out, v);
        }
        Value::U64(v) => put_scalar(out, 10, &v.to_le_bytes()),
        Value::I64(v) => put_scalar(out, 11, &v.to_le_bytes()),
        Value::F64(v) => put_scalar(out, 12, &v.to_le_bytes()),
    }
}

/// Writes an element type, a length and the elements.
fn put_numbers<T: Copy, const N: usize>(
    out: &mut Vec<u8>,
    kind: u32,
    values: &[T],
    encode: fn(T) -> [u8; N],
) {
    put_u32(out, kind);
    put_u64(out, values.len() as u64);
    for &value in values {
        out.extend_from_slice(&encode(value));
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(v) => put_numbers(out, 0, v, u8::to_le_bytes),
        Array::I8(v) => put_numbers(out, 1, v, i8::to_le_bytes),
        Array::U16(v) => put_numbers(out, 2, v, u16::to_le_bytes),
        Array::I16(v) => put_numbers(out, 3, v, i16::to_le_bytes),
        Array::U32(v) => put_numbers(out, 4, v, u32::to_le_bytes),
        Array::I32(v) => put_numbers(out, 5, v, i32::to_le_bytes),
        Array::F32(v) => put_numbers(out, 6, v, f32::to_le_bytes),
        Array::Bool(v) => put_numbers(out, 7, v, |v| [u8::from(v)]),
        Array::Str(v) => {
            put_u32(out, 8);
            put_u64(out, v.len() as u64);
            for value in v.iter() {
                put_str(out, value);
            }
        }
        Array::U64(v) => put_numbers(out, 10, v, u64::to_le_bytes),
        Array::I64(v) => put_numbers(out, 11, v, i64::to_le_bytes),
        Array::F64(v) => put_numbers(out, 12, v, f64::to_le_bytes),
    }
}
