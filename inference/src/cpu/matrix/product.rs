//! Products of matrices with rows, on all threads.

use super::Matrix;
use crate::cpu::isa::{Isa, Kernel, LANES, dispatch};
use crate::cpu::kernels::Rows;
use crate::cpu::math::Gate;
use crate::cpu::pool::Pool;
use crate::hardware::IsaName;
use std::cell::RefCell;

/// Rows of activations that pass over a tile before the next tile: their results stay in the
/// nearest cache until they are written out.
const PANEL: usize = 128;
/// Pieces that each thread should get of a product, so that a slow one holds up little.
const PIECES: usize = 4;

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
    let mut biases = [0.0; LANES];
    if let Some(bias) = part.bias {
        biases[..lanes].copy_from_slice(&bias[first..first + lanes]);
    }
    // SAFETY: tiles write different columns, and each tile is one thread's.
    unsafe {
        let biases = I::load(biases.as_ptr());
        for (row, results) in rows.zip(results.chunks_exact(LANES)) {
            let to = output.at(row, part.column + first);
            let mut value = I::load(results.as_ptr());
            if part.bias.is_some() {
                value = I::add(value, biases);
            }
            if lanes < LANES {
                store_some::<I>(to, value, lanes, store);
                continue;
            }
            if store == Store::Add {
                value = I::add(I::load(to), value);
            }
            I::store(to, value);
        }
    }
}

/// Stores the first lanes of a vector.
#[inline(always)]
unsafe fn store_some<I: Isa>(to: *mut f32, value: I::F, lanes: usize, store: Store) {
    let mut own = [0.0; LANES];
    // SAFETY: promised by the caller; the array is a vector.
    unsafe {
        I::store(own.as_mut_ptr(), value);
        for (lane, own) in own.iter().enumerate().take(lanes) {
            let to = to.add(lane);
            *to = if store == Store::Add { *to + own } else { *own };
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
