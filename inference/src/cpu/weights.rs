//! Reads tensors of a stage out of the model file into tiles, on all threads.
//!
//! The file is read, not mapped: a mapped file that shrinks kills the process, and mapped pages
//! would count twice beside the tiles. Each thread reads a few tiles at a time, so the file's
//! form of the weights never takes more than some hundred kilobytes.

use super::isa::LANES;
use super::matrix::Matrix;
use super::memory::Arena;
use super::pool::Pool;
use crate::gguf::{Gguf, TensorInfo};
use crate::quant;
use crate::shape::ModelError;
use crate::stage::LoadError;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of the file that a thread reads at a time.
const READ: usize = 64 << 10;

/// A model file, open for reading tensors.
pub(crate) struct Weights<'a> {
    file: File,
    path: PathBuf,
    gguf: &'a Gguf,
    arena: Arc<Arena>,
    pool: RefCell<&'a mut Pool>,
    bytes: Cell<u64>,
}

impl<'a> Weights<'a> {
    pub(crate) fn open(path: &Path, gguf: &'a Gguf, pool: &'a mut Pool) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|source| LoadError::Read {
            tensor: "header".to_owned(),
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            gguf,
            arena: Arc::default(),
            pool: RefCell::new(pool),
            bytes: Cell::new(0),
        })
    }

    /// Ends the reading; gives the memory that all weights take.
    pub(crate) fn finish(self) -> u64 {
        self.arena.trim();
        self.bytes.get()
    }

    /// Whether the file has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// A whole tensor of two dimensions.
    pub(crate) fn matrix(&self, name: &str) -> Result<Matrix, LoadError> {
        let rows = outer(self.info(name)?);
        self.rows(name, 0..rows)
    }

    /// Some rows of a tensor; a tensor of three dimensions is taken as one long matrix.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Matrix, LoadError> {
        let tensor = self.info(name)?;
        let columns = tensor.dims.first().copied().unwrap_or(0) as usize;
        if rows.end > outer(tensor) {
            return Err(ModelError::WrongSizes {
                tensor: name.to_owned(),
                found: tensor.dims.clone(),
                expected: vec![columns as u64, rows.end as u64],
            }
            .into());
        }
        let matrix = self.read(tensor, rows, columns, &self.arena)?;
        self.bytes.set(self.bytes.get() + matrix.bytes() as u64);
        Ok(matrix)
    }

    /// A tensor as floats.
    pub(crate) fn vector(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let tensor = self.info(name)?;
        let columns = tensor.len() as usize;
        // As a matrix of one row, in memory of its own that is given back at once.
        let own = Arc::new(Arena::for_one_part());
        let row = self.read(tensor, 0..1, columns, &own)?;
        let mut values = vec![0.0; columns];
        row.restore_row(0, &mut values);
        self.bytes.set(self.bytes.get() + 4 * columns as u64);
        Ok(values)
    }

    /// A tensor as floats, if the file has it.
    pub(crate) fn optional_vector(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        self.has(name).then(|| self.vector(name)).transpose()
    }

    fn info(&self, name: &str) -> Result<&'a TensorInfo, LoadError> {
        let found = self.gguf.tensor(name);
        found.ok_or_else(|| {
            let tensor = name.to_owned();
            ModelError::MissingTensor { tensor }.into()
        })
    }

    fn read(
        &self,
        tensor: &TensorInfo,
        rows: Range<usize>,
        columns: usize,
        arena: &Arc<Arena>,
    ) -> Result<Matrix, LoadError> {
        quant::check(tensor)?;
        let matrix = Matrix::reserve(arena, tensor.dtype, rows.len(), columns);
        let matrix = matrix.ok_or_else(|| LoadError::OutOfMemory {
            tensor: tensor.name.clone(),
            bytes: tensor.bytes,
        })?;
        let row_bytes = tensor.dtype.bytes_of(columns as u64).unwrap_or(0) as usize;
        let start = self.gguf.tensor_range(tensor).start + (rows.start * row_bytes) as u64;
        let source = Source {
            file: &self.file,
            start,
            row_bytes,
        };
        let failure = Mutex::new(None);
        let per_task = (READ / (LANES * row_bytes).max(1)).max(1);
        let tasks = matrix.tiles().div_ceil(per_task);
        self.pool.borrow_mut().run(tasks, &|task| {
            let first = task * per_task;
            let tiles = first..(first + per_task).min(matrix.tiles());
            if let Err(error) = source.fill(&matrix, tiles) {
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
            }
        });
        let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        match failure {
            None => Ok(matrix),
            Some(error) => Err(self.named(tensor, error)),
        }
    }

    fn named(&self, tensor: &TensorInfo, error: FillError) -> LoadError {
        let tensor = tensor.name.clone();
        match error {
            FillError::Read(source) => LoadError::Read {
                tensor,
                path: self.path.clone(),
                source,
            },
            FillError::NotFinite => LoadError::NotFinite { tensor },
        }
    }
}

/// Rows of a tensor, all inner ones together.
fn outer(tensor: &TensorInfo) -> usize {
    let outer = tensor.dims.get(1..).unwrap_or_default();
    outer.iter().product::<u64>() as usize
}

enum FillError {
    Read(std::io::Error),
    NotFinite,
}

/// Where the rows of a matrix lie in the file.
struct Source<'a> {
    file: &'a File,
    start: u64,
    row_bytes: usize,
}

impl Source<'_> {
    fn fill(&self, matrix: &Matrix, tiles: Range<usize>) -> Result<(), FillError> {
        let rows = tiles.start * LANES..(tiles.end * LANES).min(matrix.rows());
        let mut stored = vec![0; rows.len() * self.row_bytes];
        let at = self.start + (rows.start * self.row_bytes) as u64;
        read_at(self.file, &mut stored, at).map_err(FillError::Read)?;
        for (tile, stored) in tiles.zip(stored.chunks(LANES * self.row_bytes)) {
            // SAFETY: each tile is filled by one task.
            let filled = unsafe { matrix.fill_tile(tile, stored) };
            filled.map_err(|_| FillError::NotFinite)?;
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_at(file: &File, to: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut to: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !to.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, to, at)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        to = &mut to[read..];
        at += read as u64;
    }
    Ok(())
}

/// The weights of one layer.
pub(crate) struct LayerWeights<'a, 'file> {
    weights: &'a Weights<'file>,
    layer: u32,
}

impl<'a, 'file> LayerWeights<'a, 'file> {
    pub(crate) fn new(weights: &'a Weights<'file>, layer: u32) -> Self {
        Self { weights, layer }
    }

    fn full(&self, name: &str) -> String {
        format!("blk.{}.{name}", self.layer)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.has(&self.full(name))
    }

    pub(crate) fn matrix(&self, name: &str) -> Result<Matrix, LoadError> {
        self.weights.matrix(&self.full(name))
    }

    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Matrix, LoadError> {
        self.weights.rows(&self.full(name), rows)
    }

    pub(crate) fn vector(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        self.weights.vector(&self.full(name))
    }

    /// A tensor of one dimension as a matrix of one row.
    pub(crate) fn row_vector(&self, name: &str) -> Result<Matrix, LoadError> {
        let tensor = self.weights.info(&self.full(name))?;
        let columns = tensor.len() as usize;
        let weights = self.weights;
        weights.bytes.set(weights.bytes.get() + 4 * columns as u64);
        weights.read(tensor, 0..1, columns, &weights.arena)
    }

    pub(crate) fn optional_vector(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        self.weights.optional_vector(&self.full(name))
    }
}
