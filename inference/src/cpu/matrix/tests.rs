//! Every format on every instruction set against plain arithmetic on the weights as candle reads
//! them.

use super::*;
use crate::cpu::activations::{Activations, Forms};
use crate::cpu::isa::{Isa, Kernel, dispatch};
use crate::cpu::pool::Pool;
use crate::hardware::{IsaName, isas};
use candle_core::quantized::GgmlDType;
use proptest::prelude::*;

const DTYPES: [(TensorType, GgmlDType); 13] = [
    (TensorType::F32, GgmlDType::F32),
    (TensorType::F16, GgmlDType::F16),
    (TensorType::BF16, GgmlDType::BF16),
    (TensorType::Q4_0, GgmlDType::Q4_0),
    (TensorType::Q4_1, GgmlDType::Q4_1),
    (TensorType::Q5_0, GgmlDType::Q5_0),
    (TensorType::Q5_1, GgmlDType::Q5_1),
    (TensorType::Q8_0, GgmlDType::Q8_0),
    (TensorType::Q2_K, GgmlDType::Q2K),
    (TensorType::Q3_K, GgmlDType::Q3K),
    (TensorType::Q4_K, GgmlDType::Q4K),
    (TensorType::Q5_K, GgmlDType::Q5K),
    (TensorType::Q6_K, GgmlDType::Q6K),
];

struct Quantise<'a>(&'a Activations, usize, Forms);

impl Kernel for Quantise<'_> {
    type Output = ();

    unsafe fn run<I: Isa>(self) {
        for row in 0..self.1 {
            // SAFETY: room was made for the rows, and there is one thread.
            unsafe { self.0.quantise::<I>(row, self.2) };
        }
    }
}

/// Numbers around zero that depend on nothing but their place and the seed.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A matrix, and its weights as candle reads them.
fn matrix(
    (dtype, candle): (TensorType, GgmlDType),
    rows: usize,
    columns: usize,
    seed: u32,
) -> (Matrix, Vec<f32>) {
    let mut stored = candle.cpu_zeros(rows * columns);
    stored.from_float(&values(rows * columns, seed));
    let len = stored.storage_size_in_bytes();
    // SAFETY: the storage owns `len` initialised bytes and outlives the slice.
    let bytes = unsafe { std::slice::from_raw_parts(stored.as_ptr(), len) };
    let matrix = Matrix::reserve(&Arc::default(), dtype, rows, columns).unwrap();
    let row_bytes = dtype.bytes_of(columns as u64).unwrap() as usize;
    for (tile, bytes) in bytes.chunks(LANES * row_bytes).enumerate() {
        // SAFETY: there is one thread.
        unsafe { matrix.fill_tile(tile, bytes) }.unwrap();
    }
    let storage = stored.dequantize(rows * columns).unwrap();
    let floats = storage.as_slice::<f32>().unwrap().to_vec();
    (matrix, floats)
}

/// The bits of the products with some rows of `x`.
fn product(
    isa: IsaName,
    threads: usize,
    matrix: &Matrix,
    x: &[f32],
    range: std::ops::Range<usize>,
) -> Vec<u32> {
    let columns = matrix.columns();
    let count = range.len();
    let forms = Forms::of([matrix.form()]);
    let mut activations = Activations::default();
    activations.resize(isa, count, columns, forms);
    let x = &x[range.start * columns..range.end * columns];
    activations.floats_mut().copy_from_slice(x);
    dispatch(isa, Quantise(&activations, count, forms));
    let mut out = vec![f32::NAN; count * matrix.rows()];
    let parts = [Part {
        matrix,
        bias: None,
        column: 0,
    }];
    let rows = Rows {
        activations: &activations,
        first: 0,
        count,
    };
    let output = Output::new(&mut out, matrix.rows());
    let mut pool = Pool::new(threads).unwrap();
    multiply(&mut pool, isa, &parts, rows, output, Store::Replace);
    out.iter().map(|value| value.to_bits()).collect()
}

/// The largest error that eight-bit activations explain, and the exact result.
fn exact(weights: &[f32], x: &[f32]) -> (f64, f64) {
    let terms = weights
        .iter()
        .zip(x)
        .map(|(w, x)| f64::from(*w) * f64::from(*x));
    let (mut sum, mut magnitudes) = (0.0, 0.0);
    for term in terms {
        sum += term;
        magnitudes += term.abs();
    }
    (sum, 0.03 * magnitudes + 1e-3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn every_format_gives_the_same_bits_on_every_instruction_set_and_for_any_number_of_rows(
        rows in 1usize..70,
        blocks in 1usize..4,
        count in 1usize..36,
        seed in any::<u32>(),
    ) {
        for dtype in DTYPES {
            let columns = blocks * (dtype.0.block_len as usize).max(32);
            let (matrix, weights) = matrix(dtype, rows, columns, seed);
            let x = values(count * columns, !seed);
            let expected = product(IsaName::Scalar, 1, &matrix, &x, 0..count);
            for &isa in isas() {
                let got = product(isa, 2, &matrix, &x, 0..count);
                prop_assert!(got == expected, "{} on {isa}", dtype.0);
                for row in 0..count {
                    let alone = product(isa, 1, &matrix, &x, row..row + 1);
                    prop_assert!(alone == expected[row * rows..(row + 1) * rows]);
                }
            }
            for (row, x) in x.chunks(columns).enumerate() {
                for (output, weights) in weights.chunks(columns).enumerate() {
                    let (exact, bound) = exact(weights, x);
                    let got = f64::from(f32::from_bits(expected[row * rows + output]));
                    prop_assert!((got - exact).abs() <= bound, "{}: {got} {exact}", dtype.0);
                }
            }
        }
    }

    #[test]
    fn rows_come_out_of_the_tiles_as_they_went_in(rows in 1usize..40, seed in any::<u32>()) {
        for dtype in DTYPES {
            let columns = (dtype.0.block_len as usize).max(32);
            let (matrix, weights) = matrix(dtype, rows, columns, seed);
            let mut row = vec![0.0; columns];
            for (index, weights) in weights.chunks(columns).enumerate() {
                matrix.restore_row(index, &mut row);
                for (got, expected) in row.iter().zip(weights) {
                    let difference = (got - expected).abs();
                    prop_assert!(difference <= 1e-6 * expected.abs().max(1.0), "{}", dtype.0);
                }
            }
        }
    }
}

#[test]
fn a_value_that_is_not_finite_is_found_in_weights_and_in_activations() {
    let (q8_0, _) = matrix(DTYPES[7], 16, 32, 1);
    let mut stored = vec![0u8; 16 * 34];
    stored[0..2].copy_from_slice(&half::f16::INFINITY.to_bits().to_le_bytes());
    // SAFETY: there is one thread.
    assert_eq!(unsafe { q8_0.fill_tile(0, &stored) }, Err(NotFinite));
    for dtype in DTYPES {
        let columns = (dtype.0.block_len as usize).max(32);
        let (matrix, _) = matrix(dtype, 16, columns, 1);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(columns, 2);
            x[5] = bad;
            for &isa in isas() {
                let bits = product(isa, 1, &matrix, &x, 0..1);
                let mut sound = bits
                    .iter()
                    .filter(|bits| f32::from_bits(**bits).is_finite());
                assert_eq!(sound.next(), None, "{} on {isa}", dtype.0);
            }
        }
    }
}
