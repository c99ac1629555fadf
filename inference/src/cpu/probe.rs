//! Short measurements of the machine with the engine's own kernels.

use super::activations::{Activations, Forms};
use super::isa::{Isa, Kernel, LANES, TileUnit, dispatch};
use super::kernels::Rows;
use super::matrix::{Matrix, Output, Part, Store, multiply};
use super::memory::Arena;
use super::pack::GROUP_BYTES;
use super::pool::Pool;
use crate::gguf::TensorType;
use crate::hardware::IsaName;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Sizes of the matrix: 150 MB, several times what the caches of most machines hold, for a smaller
/// one is read from there in part and looks faster than memory.
const ROWS: usize = 65_536;
const COLUMNS: usize = 4_096;
/// How long each measurement lasts.
const DURATION: Duration = Duration::from_millis(200);
const MAX_ROUNDS: u32 = 1_000;

/// A matrix in `Q4_0` and a vector.
pub(crate) struct Probe {
    isa: IsaName,
    pool: Pool,
    matrix: Matrix,
    vector: Activations,
}

struct Ramp<'a>(&'a mut Activations, Forms);

impl Kernel for Ramp<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        for (index, value) in self.0.floats_mut().iter_mut().enumerate() {
            *value = index as f32 / COLUMNS as f32;
        }
        // SAFETY: room was made for this one row.
        unsafe { self.0.quantise::<I>(0, self.1) };
    }
}

impl Probe {
    /// Fills the matrix, or gives `None` when there is no memory or no thread for it.
    pub(crate) fn new(threads: usize, isa: IsaName) -> Option<Self> {
        let mut pool = Pool::new(threads).ok()?;
        let dtype = TensorType::Q4_0;
        let matrix = Matrix::reserve(&Arc::new(Arena::default()), dtype, ROWS, COLUMNS)?;
        // Blocks of ones as far as the kernels care: scale and nibbles are small, finite numbers.
        let stored = vec![0x11; dtype.bytes_of((LANES * COLUMNS) as u64)? as usize];
        // SAFETY: nobody else has the matrix yet.
        let filled = unsafe { matrix.fill_tile(0, &stored) };
        filled.expect("the scales are finite");
        pool.run(matrix.tiles() - 1, &|tile| {
            // SAFETY: each tile is written by one task; the first one only read.
            unsafe { matrix.copy_first_tile(tile + 1) };
        });
        let forms = Forms::of([matrix.form()]);
        let mut vector = Activations::default();
        vector.resize(isa, 1, COLUMNS, forms);
        dispatch(isa, Ramp(&mut vector, forms));
        Some(Self {
            isa,
            pool,
            matrix,
            vector,
        })
    }

    /// Bytes of weights per second, in units of 10⁹, that a matrix–vector product gets through.
    pub(crate) fn matvec_gb_s(&mut self) -> f64 {
        let mut out = vec![0.0; ROWS];
        let parts = [Part {
            matrix: &self.matrix,
            bias: None,
            column: 0,
        }];
        let rows = Rows {
            activations: &self.vector,
            first: 0,
            count: 1,
        };
        let (pool, isa) = (&mut self.pool, self.isa);
        let seconds = seconds_per_round(|| {
            multiply(
                pool,
                isa,
                &parts,
                rows,
                Output::new(&mut out, ROWS),
                Store::Replace,
            );
            std::hint::black_box(&out);
        });
        self.matrix.bytes() as f64 / seconds / 1e9
    }

    /// Bytes per second, in units of 10⁹, that plain reading gets through.
    pub(crate) fn memory_gb_s(&mut self) -> f64 {
        let (matrix, isa) = (&self.matrix, self.isa);
        let pool = &mut self.pool;
        let seconds = seconds_per_round(|| {
            pool.run(matrix.tiles(), &|tile| {
                std::hint::black_box(dispatch(isa, ReadAll(matrix.tile_bytes(tile))));
            });
        });
        matrix.bytes() as f64 / seconds / 1e9
    }

    /// Products of eight-bit integers per second, in units of 10⁹, with everything in registers.
    pub(crate) fn int8_gmac_s(&mut self) -> f64 {
        const TURNS: usize = 200_000;
        let isa = self.isa;
        let threads = self.pool.threads();
        let pool = &mut self.pool;
        let products = AtomicUsize::new(0);
        let seconds = seconds_per_round(|| {
            products.store(0, Ordering::Relaxed);
            pool.run(threads, &|_| {
                let own = std::hint::black_box(dispatch(isa, Products(TURNS)));
                products.fetch_add(own.0, Ordering::Relaxed);
            });
        });
        products.into_inner() as f64 / seconds / 1e9
    }
}

struct Products(usize);

impl Kernel for Products {
    /// The number of products, and something that depends on them.
    type Output = (usize, i32);

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> (usize, i32) {
        // SAFETY: the processor has the instruction set.
        unsafe {
            if I::Tiles::THERE {
                I::Tiles::begin();
                let products = I::Tiles::work(self.0 / 16);
                I::Tiles::end();
                return (products, 0);
            }
            match I::CHAINS {
                ..8 => self.in_chains::<I, 5>(),
                _ => self.in_chains::<I, 10>(),
            }
        }
    }
}

impl Products {
    /// # Safety
    /// See [`Isa`].
    #[inline(always)]
    unsafe fn in_chains<I: Isa, const CHAINS: usize>(self) -> (usize, i32) {
        // SAFETY: promised by the caller; the array is one group.
        unsafe {
            let weights = I::load_b(std::hint::black_box([1u8; GROUP_BYTES]).as_ptr());
            // Each product has an activation of its own, or the compiler would make only one.
            let activations = std::hint::black_box([0x0101_0101; 64 + 10]);
            let mut sums = [I::acc_zero(); CHAINS];
            for turn in 0..self.0 {
                for (chain, sum) in sums.iter_mut().enumerate() {
                    *sum = I::acc(*sum, weights, activations[turn % 64 + chain]);
                }
                I::pin(&mut sums);
            }
            let mut total = 0i32;
            for sum in sums {
                total = total.wrapping_add(I::sum_i(I::acc_finish(sum)));
            }
            (self.0 * CHAINS * GROUP_BYTES, total)
        }
    }
}

struct ReadAll<'a>(&'a [u8]);

impl Kernel for ReadAll<'_> {
    type Output = i32;

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> i32 {
        let mut sums = [[0u64; 8]; 4];
        for lines in self.0.as_chunks::<256>().0 {
            for (sum, line) in sums.iter_mut().zip(lines.as_chunks::<64>().0) {
                for (sum, word) in sum.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
                }
            }
        }
        sums.iter()
            .flatten()
            .fold(0, |sum, part| sum ^ *part as i32)
    }
}

fn seconds_per_round(mut round: impl FnMut()) -> f64 {
    round();
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < MAX_ROUNDS && started.elapsed() < DURATION {
        round();
        rounds += 1;
    }
    started.elapsed().as_secs_f64() / f64::from(rounds.max(1))
}
