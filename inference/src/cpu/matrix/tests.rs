use super::*;
use crate::cpu::activations::Forms;
use crate::hardware::isas;

pub(super) const DTYPES: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

struct Quantise<'a>(&'a Activations, usize, Forms);

impl Kernel for Quantise<'_> {
    type Output = ();

    unsafe fn run<I: Isa>(self) {
        for row in 0..self.1 {
            unsafe { self.0.quantise::<I>(row, self.2) };
        }
    }
}

#[test]
fn speed() {
    let which = std::env::var("BENCH_T").unwrap_or_default();
    for dtype in DTYPES {
        if !which.is_empty() && dtype.name != which { continue; }
        let (rows, columns) = (8192, 2048);
        let arena = Arc::new(Arena::default());
        let matrix = Matrix::reserve(&arena, dtype, rows, columns).unwrap();
        let row_bytes = dtype.bytes_of(columns as u64).unwrap() as usize;
        let stored = vec![0x11u8; row_bytes * LANES];
        for tile in 0..matrix.tiles() {
            let _ = unsafe { matrix.fill_tile(tile, &stored) };
        }
        let mut pool = Pool::new(2).unwrap();
        for m in [1usize, 8, 256] {
            let forms = Forms::of([matrix.form()]);
            let mut acts = Activations::default();
            acts.resize(m, columns, forms);
            for (i, v) in acts.floats_mut().iter_mut().enumerate() { *v = (i % 17) as f32 - 8.0; }
            for &isa in isas() {
                if isa.name() == "scalar" { continue; }
                dispatch(isa, Quantise(&acts, m, forms));
                let mut out = vec![0f32; m * rows];
                let mut best = f64::MAX;
                for _ in 0..8 {
                    let t = std::time::Instant::now();
                    multiply(&mut pool, isa, &[Part { matrix: &matrix, bias: None, column: 0 }],
                        Rows { activations: &acts, first: 0, count: m }, Output::new(&mut out, rows), Store::Replace);
                    best = best.min(t.elapsed().as_secs_f64());
                }
                println!("{dtype} m={m} {isa}: {:.1} GB/s {:.1} GMAC/s", matrix.bytes() as f64 / best / 1e9, (m * rows * columns) as f64 / best / 1e9);
            }
        }
    }
}
