//! Weight matrices in tiles.

mod product;
#[cfg(test)]
mod tests;

pub(crate) use product::{Output, Part, Store, multiply, multiply_gated};

use super::format::{ActivationForm, Format, Kind, with_format};
use super::isa::LANES;
use super::kernels::{Rows, TileProduct};
use super::memory::Arena;
use super::pack::{CHUNK, Pack};
use crate::gguf::TensorType;
use std::ptr::NonNull;
use std::sync::Arc;

/// A weight matrix; `rows` outputs of `columns` inputs.
pub(crate) struct Matrix {
    kind: Kind,
    rows: usize,
    columns: usize,
    tile_bytes: usize,
    tiles: NonNull<u8>,
    /// Owns the tiles.
    _arena: Arc<Arena>,
}

// SAFETY: the tiles are written while the matrix is made, by who makes it, and only read later.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

/// The weights hold a number that is not finite.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotFinite;

impl Matrix {
    /// Takes room for a matrix, or gives `None` when there is no memory. Every tile must be
    /// filled ([`Self::fill_tile`]) before it is used.
    pub(crate) fn reserve(
        arena: &Arc<Arena>,
        dtype: TensorType,
        rows: usize,
        columns: usize,
    ) -> Option<Self> {
        let kind = Kind::of(dtype);
        let tile_bytes = kind.tile_bytes(columns);
        let tiles = arena.take(tile_bytes.checked_mul(rows.div_ceil(LANES))?)?;
        Some(Self {
            kind,
            rows,
            columns,
            tile_bytes,
            tiles,
            _arena: Arc::clone(arena),
        })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Number of tiles.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Memory that the tiles take.
    pub(crate) fn bytes(&self) -> usize {
        self.tiles() * self.tile_bytes
    }

    /// The form of activations that it is multiplied with.
    pub(crate) fn form(&self) -> ActivationForm {
        self.kind.activations()
    }

    /// The bytes of a tile, which must have been filled.
    pub(crate) fn tile_bytes(&self, tile: usize) -> &[u8] {
        assert!(tile < self.tiles());
        // SAFETY: the tile lies within what was taken from the arena and has been filled.
        unsafe { std::slice::from_raw_parts(self.tile(tile), self.tile_bytes) }
    }

    fn product<'a>(
        &self,
        tile: usize,
        rows: Rows<'a>,
        out: *mut f32,
        scratch: &'a mut Vec<u8>,
    ) -> TileProduct<'a> {
        TileProduct {
            kind: self.kind,
            tile: self.tile(tile),
            rows,
            out,
            scratch,
        }
    }

    fn tile(&self, tile: usize) -> *const u8 {
        debug_assert!(tile < self.tiles());
        self.tiles.as_ptr().wrapping_add(tile * self.tile_bytes)
    }

    /// Fills tile `tile` with `stored`, the bytes of its rows (sixteen, or fewer in the last
    /// tile) as the file has them.
    ///
    /// # Safety
    /// No other thread may use the same tile at the time.
    pub(crate) unsafe fn fill_tile(&self, tile: usize, stored: &[u8]) -> Result<(), NotFinite> {
        let start = self.tile(tile).cast_mut();
        // SAFETY: the tile lies within what was taken from the arena, and is this caller's alone.
        let target = unsafe {
            std::ptr::write_bytes(start, 0, self.tile_bytes);
            std::slice::from_raw_parts_mut(start, self.tile_bytes)
        };
        match self.kind {
            Kind::Float(dtype) => fill_floats(dtype, self.columns, stored, target),
            Kind::Quantised(dtype) => {
                with_format!(
                    dtype,
                    fill_blocks,
                    fill_blocks,
                    [],
                    self.columns,
                    stored,
                    target
                )
            }
        }
    }

    /// Fills tile `tile`, not the first, with what the first one holds.
    ///
    /// # Safety
    /// The first tile must have been filled, and no other thread may use this one at the time.
    pub(crate) unsafe fn copy_first_tile(&self, tile: usize) {
        assert!(0 < tile && tile < self.tiles());
        let target = self.tile(tile).cast_mut();
        // SAFETY: both tiles lie within what was taken from the arena, and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.tile(0), target, self.tile_bytes) };
    }

    /// Writes row `row`, which must be below `rows`, as floats to `out`.
    pub(crate) fn restore_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns);
        let tile = self.tile_bytes(row / LANES);
        let lane = row % LANES;
        match self.kind {
            Kind::Float(dtype) => restore_floats(dtype, tile, lane, out),
            Kind::Quantised(dtype) => {
                with_format!(dtype, restore_blocks, restore_blocks, [], tile, lane, out);
            }
        }
    }
}

fn fill_blocks<F: Format>(
    columns: usize,
    stored: &[u8],
    target: &mut [u8],
) -> Result<(), NotFinite> {
    let block_bytes = F::DTYPE.block_bytes as usize;
    let row_bytes = columns / F::BLOCK * block_bytes;
    let mut values = [0u8; 256];
    let values = &mut values[..F::BLOCK];
    for (lane, row) in stored.chunks_exact(row_bytes).enumerate() {
        let blocks = row.chunks_exact(block_bytes);
        for (block, target) in blocks.zip(target.chunks_exact_mut(F::TILE_BLOCK)) {
            let (meta, chunks) = target.split_at_mut(F::META);
            F::decode(block, lane, meta, values);
            for scale in 0..F::SCALES {
                let at = 2 * (scale * LANES + lane);
                let bits = u16::from_ne_bytes([meta[at], meta[at + 1]]);
                if !half::f16::from_bits(bits).is_finite() {
                    return Err(NotFinite);
                }
            }
            let chunks = chunks.chunks_exact_mut(F::Packing::BYTES);
            for (values, chunk) in values.chunks_exact(CHUNK).zip(chunks) {
                let values = values.try_into().expect("a chunk has as many values");
                F::Packing::put(values, lane, chunk);
            }
        }
    }
    Ok(())
}

fn restore_blocks<F: Format>(tile: &[u8], lane: usize, out: &mut [f32]) {
    let blocks = tile.chunks_exact(F::TILE_BLOCK);
    for (block, out) in blocks.zip(out.chunks_exact_mut(F::BLOCK)) {
        let (meta, chunks) = block.split_at(F::META);
        for (index, out) in out.iter_mut().enumerate() {
            let chunk = &chunks[index / CHUNK * F::Packing::BYTES..];
            let value = F::Packing::get(chunk, lane, index % CHUNK);
            *out = F::restore(meta, lane, index, value);
        }
    }
}

fn fill_floats(
    dtype: TensorType,
    columns: usize,
    stored: &[u8],
    target: &mut [u8],
) -> Result<(), NotFinite> {
    let width = dtype.block_bytes as usize;
    for (lane, row) in stored.chunks_exact(columns * width).enumerate() {
        for (column, bytes) in row.chunks_exact(width).enumerate() {
            let at = (column * LANES + lane) * width;
            let target = &mut target[at..at + width];
            target.copy_from_slice(bytes);
            if cfg!(target_endian = "big") {
                target.reverse();
            }
            if !float_of(dtype, target).is_finite() {
                return Err(NotFinite);
            }
        }
    }
    Ok(())
}

fn restore_floats(dtype: TensorType, tile: &[u8], lane: usize, out: &mut [f32]) {
    let width = dtype.block_bytes as usize;
    for (column, out) in out.iter_mut().enumerate() {
        let at = (column * LANES + lane) * width;
        *out = float_of(dtype, &tile[at..at + width]);
    }
}

/// A number in the machine's byte order.
fn float_of(dtype: TensorType, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (TensorType::F32, &[a, b, c, d]) => f32::from_ne_bytes([a, b, c, d]),
        (TensorType::F16, &[a, b]) => half::f16::from_ne_bytes([a, b]).to_f32(),
        (_, &[a, b]) => half::bf16::from_ne_bytes([a, b]).to_f32(),
        _ => f32::NAN,
    }
}
