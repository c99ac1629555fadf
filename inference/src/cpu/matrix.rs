//! Weight matrices in tiles, and products with them on all threads.

use super::format::{ActivationForm, Format, Kind, with_format};
use super::isa::{Isa, Kernel, LANES, dispatch};
use super::kernels::{Rows, TileProduct};
use super::math::Gate;
use super::memory::Arena;
use super::pack::{CHUNK, Pack};
use super::pool::Pool;
use crate::gguf::TensorType;
use crate::hardware::IsaName;
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;

/// Rows of activations that pass over a tile before the next tile: their results stay in the
/// nearest cache until they are written out.
const PANEL: usize = 128;
/// Pieces that each thread should get of a product, so that a slow one holds up little.
const PIECES: usize = 4;

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

/// Rows of floats that several threads write to, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    start: *mut f32,
    /// Values from one row to the next.
    stride: usize,
}

// SAFETY: users write disjoint parts; see `Output::at`.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// Rows of `stride` values each in `values`.
    pub(crate) fn new(values: &mut [f32], stride: usize) -> Self {
        Self {
            start: values.as_mut_ptr(),
            stride,
        }
    }

    /// Where value `column` of row `row` lies.
    ///
    /// # Safety
    /// Both must lie within the rows, and no two threads may write the same value.
    #[inline(always)]
    pub(crate) unsafe fn at(self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: promised by the caller.
        unsafe { self.start.add(row * self.stride + column) }
    }
}

/// What becomes of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// It replaces what was there.
    Replace,
    /// It is added to what was there.
    Add,
}

/// A matrix, a bias perhaps, and the column of the output where its results begin.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub matrix: &'a Matrix,
    pub bias: Option<&'a [f32]>,
    pub column: usize,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    unpacked: Vec<u8>,
    results: Vec<f32>,
    others: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// How threads share a product.
struct Shares {
    tiles: usize,
    per_task: usize,
}

impl Shares {
    fn new(tiles: usize, threads: usize) -> Self {
        let per_task = (tiles / (threads * PIECES)).max(1);
        Self { tiles, per_task }
    }

    fn tasks(&self) -> usize {
        self.tiles.div_ceil(self.per_task)
    }

    fn range(&self, task: usize) -> std::ops::Range<usize> {
        let start = task * self.per_task;
        start..(start + self.per_task).min(self.tiles)
    }
}

/// Multiplies the rows with several matrices at once.
pub(crate) fn multiply(
    pool: &mut Pool,
    isa: IsaName,
    parts: &[Part<'_>],
    rows: Rows<'_>,
    output: Output,
    store: Store,
) {
    let tiles = parts.iter().map(|part| part.matrix.tiles()).sum();
    let shares = Shares::new(tiles, pool.threads());
    pool.run(shares.tasks(), &|task| {
        SCRATCH.with_borrow_mut(|scratch| {
            let tiles = shares.range(task);
            let work = Multiply {
                parts,
                tiles,
                rows,
                output,
                store,
                scratch,
            };
            dispatch(isa, work);
        });
    });
}

struct Multiply<'a> {
    parts: &'a [Part<'a>],
    tiles: std::ops::Range<usize>,
    rows: Rows<'a>,
    output: Output,
    store: Store,
    scratch: &'a mut Scratch,
}

/// The rows, panel after panel, with the number of the first row of each.
fn panels(rows: Rows<'_>) -> impl Iterator<Item = (usize, Rows<'_>)> {
    (0..rows.count).step_by(PANEL).map(move |done| {
        let panel = Rows {
            first: rows.first + done,
            count: PANEL.min(rows.count - done),
            ..rows
        };
        (done, panel)
    })
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Scratch {
            unpacked, results, ..
        } = self.scratch;
        results.resize(PANEL * LANES, 0.0);
        for (done, panel) in panels(self.rows) {
            let mut before = 0;
            for part in self.parts {
                let matrix = part.matrix;
                let own = before..before + matrix.tiles();
                before = own.end;
                let first = self.tiles.start.max(own.start);
                for tile in first..self.tiles.end.min(own.end) {
                    let tile = tile - own.start;
                    let out = results.as_mut_ptr();
                    // SAFETY: the tile is one of the matrix, the rows are as wide as it is and in
                    // its form (the caller chose the forms by `Matrix::form`), and there is room
                    // for a panel of results.
                    unsafe {
                        I::call(matrix.product(tile, panel, out, unpacked));
                        write_out::<I>(
                            part,
                            tile,
                            results,
                            done..done + panel.count,
                            self.output,
                            self.store,
                        );
                    }
                }
            }
        }
    }
}

/// Writes the results of one tile where they belong.
#[inline(always)]
unsafe fn write_out<I: Isa>(
    part: &Part<'_>,
    tile: usize,
    results: &[f32],
    rows: std::ops::Range<usize>,
    output: Output,
    store: Store,
) {
    let first = tile * LANES;
    let lanes = LANES.min(part.matrix.rows - first);
    for (row, results) in rows.zip(results.chunks_exact(LANES)) {
        let mut own = [0.0; LANES];
        own.copy_from_slice(results);
        if let Some(bias) = part.bias {
            for (own, bias) in own.iter_mut().zip(&bias[first..first + lanes]) {
                *own += bias;
            }
        }
        // SAFETY: tiles write different columns, and each tile is one thread's.
        unsafe {
            let to = output.at(row, part.column + first);
            if lanes == LANES {
                let mut value = I::load(own.as_ptr());
                if store == Store::Add {
                    value = I::add(I::load(to), value);
                }
                I::store(to, value);
            } else {
                for (lane, own) in own.iter().enumerate().take(lanes) {
                    let to = to.add(lane);
                    *to = if store == Store::Add { *to + own } else { *own };
                }
            }
        }
    }
}

/// `output = gate(rows · gate matrix) * (rows · up matrix)`, value by value.
pub(crate) fn multiply_gated(
    pool: &mut Pool,
    isa: IsaName,
    (gate, up): (&Matrix, &Matrix),
    rows: Rows<'_>,
    output: Output,
    function: Gate,
) {
    assert_eq!(gate.rows, up.rows, "gate and up have equal sizes");
    let shares = Shares::new(gate.tiles(), pool.threads());
    pool.run(shares.tasks(), &|task| {
        SCRATCH.with_borrow_mut(|scratch| {
            let work = Gated {
                gate,
                up,
                tiles: shares.range(task),
                rows,
                output,
                function,
                scratch,
            };
            dispatch(isa, work);
        });
    });
}

struct Gated<'a> {
    gate: &'a Matrix,
    up: &'a Matrix,
    tiles: std::ops::Range<usize>,
    rows: Rows<'a>,
    output: Output,
    function: Gate,
    scratch: &'a mut Scratch,
}

impl Kernel for Gated<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Scratch {
            unpacked,
            results,
            others,
        } = self.scratch;
        results.resize(PANEL * LANES, 0.0);
        others.resize(PANEL * LANES, 0.0);
        let (gate, up) = (self.gate, self.up);
        for (done, panel) in panels(self.rows) {
            for tile in self.tiles.clone() {
                // SAFETY: as in `Multiply`.
                unsafe {
                    let (first, second) = (results.as_mut_ptr(), others.as_mut_ptr());
                    I::call(gate.product(tile, panel, first, unpacked));
                    I::call(up.product(tile, panel, second, unpacked));
                    for row in 0..panel.count {
                        let at = row * LANES;
                        let gated = self.function.apply::<I>(I::load(first.add(at)));
                        I::store(first.add(at), I::mul(gated, I::load(second.add(at))));
                    }
                    let part = Part {
                        matrix: gate,
                        bias: None,
                        column: 0,
                    };
                    let rows = done..done + panel.count;
                    write_out::<I>(&part, tile, results, rows, self.output, Store::Replace);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
