//! Weight matrices in the file's own quantisation, and products with them.

use crate::gguf::TensorType;
use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};
use half::{bf16, f16};
use rayon::prelude::*;

/// Outputs that one thread computes before it looks for more. A multiple of the four that the
/// kernels compute at once, so that the borders of the chunks do not change the arithmetic.
const CHUNK: usize = 32;
/// Rows of activations that are multiplied while a few rows of weights are in the cache.
const ROW_TILE: usize = 16;

/// A weight matrix; `rows` outputs of `columns` inputs.
pub(crate) struct Matrix {
    dtype: TensorType,
    rows: usize,
    columns: usize,
    /// The blocks as the file has them. Words of eight bytes align every block type.
    words: Vec<u64>,
    /// How many of the words' bytes are blocks.
    bytes: usize,
}

/// Runs `$body` with `$T` standing for the block type of the matrix.
macro_rules! with_block_type {
    ($matrix:expr, $T:ident => $body:expr) => {
        match $matrix.dtype {
            TensorType::F32 => {
                type $T = f32;
                $body
            }
            TensorType::F16 => {
                type $T = f16;
                $body
            }
            TensorType::BF16 => {
                type $T = bf16;
                $body
            }
            TensorType::Q4_0 => {
                type $T = BlockQ4_0;
                $body
            }
            TensorType::Q4_1 => {
                type $T = BlockQ4_1;
                $body
            }
            TensorType::Q5_1 => {
                type $T = BlockQ5_1;
                $body
            }
            TensorType::Q8_0 => {
                type $T = BlockQ8_0;
                $body
            }
            TensorType::Q2_K => {
                type $T = BlockQ2K;
                $body
            }
            TensorType::Q3_K => {
                type $T = BlockQ3K;
                $body
            }
            TensorType::Q4_K => {
                type $T = BlockQ4K;
                $body
            }
            TensorType::Q5_K => {
                type $T = BlockQ5K;
                $body
            }
            TensorType::Q6_K => {
                type $T = BlockQ6K;
                $body
            }
            other => unreachable!("quant::check lets no matrix of {other} through"),
        }
    };
}

impl Matrix {
    /// Takes the blocks of a matrix. `words` must hold `bytes` bytes, as many as the sizes need.
    pub(crate) fn new(
        dtype: TensorType,
        rows: usize,
        columns: usize,
        words: Vec<u64>,
        bytes: usize,
    ) -> Self {
        let expected = dtype.bytes_of(rows as u64 * columns as u64);
        assert_eq!(expected, Some(bytes as u64), "the blocks fill the matrix");
        assert!(bytes <= size_of_val(words.as_slice()));
        Self {
            dtype,
            rows,
            columns,
            words,
            bytes,
        }
    }

    fn blocks<T: GgmlType>(&self) -> &[T] {
        assert!(align_of::<T>() <= align_of::<u64>());
        // SAFETY: the words outlive the slice, are aligned for `T` (checked above) and hold
        // `bytes` initialised bytes (checked in `new`). `with_block_type` pairs each type number
        // with the `repr(C)` block of that type, which has no padding and for which every bit
        // pattern is a value.
        unsafe {
            let start = self.words.as_ptr().cast::<T>();
            std::slice::from_raw_parts(start, self.bytes / size_of::<T>())
        }
    }

    /// The rows `indices` as floats, one after the other. Each index must be below `rows`.
    pub(crate) fn gather(&self, indices: &[u32]) -> Vec<f32> {
        let mut out = vec![0.0; indices.len() * self.columns];
        with_block_type!(self, T => {
            let blocks = self.blocks::<T>();
            let per_row = self.columns / T::BLCK_SIZE;
            for (&row, out) in indices.iter().zip(out.chunks_exact_mut(self.columns)) {
                let start = row as usize * per_row;
                T::to_float(&blocks[start..start + per_row], out);
            }
        });
        out
    }

    /// `x` (rows of `columns` values) times the transposed matrix: one row of `rows` values each.
    pub(crate) fn multiply(&self, x: &[f32]) -> Vec<f32> {
        let count = x.len() / self.columns;
        let mut out = vec![0.0; count * self.rows];
        with_block_type!(self, T => {
            let product = Product::<T> {
                blocks: self.blocks(),
                per_row: self.columns / T::BLCK_SIZE,
                columns: self.columns,
                activations: &quantise::<T>(x, self.columns),
            };
            match count {
                1 => product.vector(&mut out),
                _ => product.matrix(&mut out, count, self.rows),
            }
        });
        out
    }
}

/// Brings activations into the form that the kernels of `T` multiply with, row by row.
fn quantise<T: GgmlType>(x: &[f32], columns: usize) -> Vec<T::VecDotType> {
    let per_row = columns / T::VecDotType::BLCK_SIZE;
    let mut out = vec![T::VecDotType::zeros(); x.len() / T::VecDotType::BLCK_SIZE];
    let rows = x.chunks_exact(columns).zip(out.chunks_exact_mut(per_row));
    for (row, out) in rows {
        T::VecDotType::from_float(row, out);
    }
    out
}

/// A product under way.
struct Product<'a, T: GgmlType> {
    blocks: &'a [T],
    per_row: usize,
    columns: usize,
    activations: &'a [T::VecDotType],
}

impl<T: GgmlType> Product<'_, T> {
    /// One row of activations.
    fn vector(&self, out: &mut [f32]) {
        let activations = self.activations;
        let chunks = out.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each(|(chunk, out)| {
            for (quad, out) in out.chunks_mut(4).enumerate() {
                self.quad(chunk * CHUNK + quad * 4, activations, out);
            }
        });
    }

    /// Several rows. The threads divide the outputs of a row, so the result is first built
    /// transposed (outputs, rows): that way each thread writes to a part of its own.
    fn matrix(&self, out: &mut [f32], count: usize, outputs: usize) {
        let mut transposed = vec![0.0; out.len()];
        let chunks = transposed.par_chunks_mut(CHUNK * count).enumerate();
        chunks.for_each(|(chunk, part)| self.columns_of(chunk * CHUNK, part, count));
        let rows = out.par_chunks_mut(outputs).enumerate();
        rows.for_each(|(row, out)| {
            for (out, column) in out.iter_mut().zip(transposed.chunks_exact(count)) {
                *out = column[row];
            }
        });
    }

    /// Outputs from number `first` on, for all rows; `part` is (outputs, rows).
    fn columns_of(&self, first: usize, part: &mut [f32], count: usize) {
        let outputs = part.len() / count;
        for tile in (0..count).step_by(ROW_TILE) {
            let tile = tile..count.min(tile + ROW_TILE);
            for quad in (0..outputs).step_by(4) {
                let width = 4.min(outputs - quad);
                for row in tile.clone() {
                    let row_start = row * self.per_row;
                    let activations = &self.activations[row_start..row_start + self.per_row];
                    let mut values = [0.0; 4];
                    self.quad(first + quad, activations, &mut values[..width]);
                    for (offset, value) in values[..width].iter().enumerate() {
                        part[(quad + offset) * count + row] = *value;
                    }
                }
            }
        }
    }

    /// Up to four neighbouring outputs of one row.
    fn quad(&self, first: usize, activations: &[T::VecDotType], out: &mut [f32]) {
        let row = |index: usize| {
            let start = (first + index) * self.per_row;
            &self.blocks[start..start + self.per_row]
        };
        match out {
            [a, b, c, d] => {
                let four = T::vec_dot_4(self.columns, row(0), row(1), row(2), row(3), activations);
                (*a, *b, *c, *d) = four;
            }
            fewer => {
                for (index, out) in fewer.iter_mut().enumerate() {
                    *out = T::vec_dot(self.columns, row(index), activations);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Matrix {
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
            .collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let words = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&chunk| u64::from_le_bytes(chunk))
            .collect();
        Matrix::new(TensorType::F32, rows, columns, words, bytes.len())
    }

    #[test]
    fn a_row_gives_the_same_bits_alone_and_among_others() {
        let weights = matrix(70, 64);
        let x: Vec<f32> = (0..64 * 37).map(|i| (i as f32 * 0.37).sin()).collect();
        let together = weights.multiply(&x);
        for (row, expected) in x.chunks_exact(64).zip(together.chunks_exact(70)) {
            assert_eq!(weights.multiply(row), expected);
        }
    }

    #[test]
    fn gathered_rows_are_the_rows_of_the_matrix() {
        let weights = matrix(5, 8);
        let rows = weights.gather(&[4, 0]);
        assert_eq!(rows.len(), 16);
        assert_eq!(rows[8], -1.0);
        assert_eq!(rows[0], ((32 * 37 % 101) as f32 - 50.0) / 50.0);
    }
}
