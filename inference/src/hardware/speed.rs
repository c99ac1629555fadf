//! A short measurement of the engine's own arithmetic.

use super::cores;
use crate::candle::Matrix;
use crate::gguf::TensorType;
use crate::stage::MAX_THREADS;
use rayon::ThreadPoolBuilder;
use std::time::{Duration, Instant};

/// Sizes of the matrix: large enough to come from memory rather than from a cache, small enough
/// to be made in no time.
const ROWS: usize = 16_384;
const COLUMNS: usize = 4_096;
/// How long to measure.
const DURATION: Duration = Duration::from_millis(200);
const MAX_ROUNDS: u32 = 1_000;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Bytes of quantised weights per second, in units of 10⁹, that a matrix–vector product gets
    /// through: what bounds the decoding of one sequence.
    pub matvec_gb_s: f32,
}

/// Multiplies a matrix in `Q4_0` with a vector for a fifth of a second. `threads` as for loading
/// a stage.
pub fn measure(threads: Option<usize>) -> Measured {
    let threads = threads.unwrap_or_else(cores).clamp(1, MAX_THREADS);
    let Ok(pool) = ThreadPoolBuilder::new().num_threads(threads).build() else {
        return Measured { matvec_gb_s: 0.0 };
    };
    let dtype = TensorType::Q4_0;
    let bytes = ROWS * COLUMNS / dtype.block_len as usize * dtype.block_bytes as usize;
    // Blocks of ones as far as the kernels care: scale and nibbles are small, finite numbers.
    let words = vec![0x1111_1111_1111_1111; bytes.div_ceil(size_of::<u64>())];
    let matrix = Matrix::new(dtype, ROWS, COLUMNS, words, bytes);
    let vector: Vec<f32> = (0..COLUMNS).map(|i| i as f32 / COLUMNS as f32).collect();
    let seconds = pool.install(|| {
        std::hint::black_box(matrix.multiply(&vector));
        seconds_per_round(|| {
            std::hint::black_box(matrix.multiply(&vector));
        })
    });
    Measured {
        matvec_gb_s: (bytes as f64 / seconds / 1e9) as f32,
    }
}

fn seconds_per_round(mut round: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < MAX_ROUNDS && started.elapsed() < DURATION {
        round();
        rounds += 1;
    }
    started.elapsed().as_secs_f64() / f64::from(rounds.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measurement_gives_a_positive_number() {
        let measured = measure(Some(2));
        assert!(measured.matvec_gb_s.is_finite() && measured.matvec_gb_s > 0.0);
    }
}
