//! Reads tensors of a stage out of the model file.
//!
//! The blocks are read, not mapped: a mapped file that shrinks kills the process, and weights
//! that live in memory of their own are not evicted in the middle of an answer.

use super::Matrix;
use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::quant;
use crate::shape::ModelError;
use crate::stage::LoadError;
use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Blocks that are read and widened at a time.
const WIDEN_BLOCKS: usize = 1 << 14;

/// A model file, open for reading tensors.
pub(crate) struct Weights<'a> {
    file: File,
    path: PathBuf,
    gguf: &'a Gguf,
    bytes: Cell<u64>,
}

impl<'a> Weights<'a> {
    pub(crate) fn open(path: &Path, gguf: &'a Gguf) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|source| LoadError::Read {
            tensor: "header".to_owned(),
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            gguf,
            bytes: Cell::new(0),
        })
    }

    /// Memory that the tensors read so far take.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// A tensor of two dimensions.
    pub(crate) fn matrix(&self, name: &str) -> Result<Matrix, LoadError> {
        let tensor = self.info(name)?;
        let [columns, rows] = tensor.dims[..] else {
            return Err(ModelError::WrongSizes {
                tensor: name.to_owned(),
                found: tensor.dims.clone(),
                expected: vec![0, 0],
            }
            .into());
        };
        self.read(tensor, rows as usize, columns as usize)
    }

    /// A tensor as floats.
    pub(crate) fn vector(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let tensor = self.info(name)?;
        let row = self.read(tensor, 1, tensor.len() as usize)?;
        Ok(row.gather(&[0]))
    }

    /// A tensor as floats, if the file has it.
    pub(crate) fn optional_vector(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        let exists = self.gguf.tensor(name).is_some();
        exists.then(|| self.vector(name)).transpose()
    }

    fn info(&self, name: &str) -> Result<&'a TensorInfo, LoadError> {
        let found = self.gguf.tensor(name);
        found.ok_or_else(|| {
            let tensor = name.to_owned();
            ModelError::MissingTensor { tensor }.into()
        })
    }

    fn read(&self, tensor: &TensorInfo, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        quant::check(tensor)?;
        let bytes = quant::loaded_bytes(tensor);
        let mut words = reserve(tensor, bytes)?;
        // A word has no padding and any bits are a value: bytemuck checks this for the cast.
        let target: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        let target = target.get_mut(..bytes as usize);
        let target = target.expect("reserve rounds the size up to whole words");
        self.fill(tensor, target)
            .map_err(|source| LoadError::Read {
                tensor: tensor.name.clone(),
                path: self.path.clone(),
                source,
            })?;
        self.bytes.set(self.bytes.get() + bytes);
        let dtype = quant::loaded_type(tensor.dtype);
        Ok(Matrix::new(dtype, rows, columns, words, bytes as usize))
    }

    /// Reads a tensor's blocks into `target`, widening them where the engine wants that.
    fn fill(&self, tensor: &TensorInfo, target: &mut [u8]) -> std::io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.gguf.tensor_range(tensor).start))?;
        if tensor.dtype != TensorType::Q5_0 {
            return file.read_exact(target);
        }
        let stored_block = TensorType::Q5_0.block_bytes as usize;
        let loaded_block = TensorType::Q8_0.block_bytes as usize;
        let mut stored = vec![0u8; WIDEN_BLOCKS * stored_block];
        for part in target.chunks_mut(WIDEN_BLOCKS * loaded_block) {
            let len = part.len() / loaded_block * stored_block;
            let stored = &mut stored[..len];
            file.read_exact(stored)?;
            let blocks = stored.chunks_exact(stored_block);
            for (stored, loaded) in blocks.zip(part.chunks_exact_mut(loaded_block)) {
                quant::widen_q5_0(stored, loaded);
            }
        }
        Ok(())
    }
}

/// Zeroed room for `bytes` bytes, in whole words.
fn reserve(tensor: &TensorInfo, bytes: u64) -> Result<Vec<u64>, LoadError> {
    let count = bytes.div_ceil(size_of::<u64>() as u64) as usize;
    let mut words = Vec::new();
    words
        .try_reserve_exact(count)
        .map_err(|_| LoadError::OutOfMemory {
            tensor: tensor.name.clone(),
            bytes,
        })?;
    words.resize(count, 0);
    Ok(words)
}

/// The weights of one layer.
pub(crate) struct LayerWeights<'a> {
    weights: &'a Weights<'a>,
    layer: u32,
}

impl<'a> LayerWeights<'a> {
    pub(crate) fn new(weights: &'a Weights<'a>, layer: u32) -> Self {
        Self { weights, layer }
    }

    /// Number of the layer in the model.
    pub(crate) fn layer(&self) -> u32 {
        self.layer
    }

    fn full(&self, name: &str) -> String {
        format!("blk.{}.{name}", self.layer)
    }

    pub(crate) fn matrix(&self, name: &str) -> Result<Matrix, LoadError> {
        self.weights.matrix(&self.full(name))
    }

    pub(crate) fn vector(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        self.weights.vector(&self.full(name))
    }

    pub(crate) fn optional_vector(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        self.weights.optional_vector(&self.full(name))
    }
}
