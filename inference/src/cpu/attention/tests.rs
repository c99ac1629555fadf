//! Attention with heads of all widths against plain sums, on every instruction set.

use super::*;
use crate::cpu::isa::dispatch;
use crate::cpu::kv::{Budget, KvShape, Sequence};
use crate::hardware::{IsaName, isas};
use crate::kv_format::KvFormat;

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const TOKENS: usize = 150;
/// Less than a group, whole ones, shorter last ones, and what fills no vector.
const HEAD_DIMS: [usize; 10] = [2, 16, 18, 32, 34, 48, 64, 80, 96, 128];

/// The same numbers every time, of no pattern, between -1 and 1.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Keys, values and queries of all tokens.
struct Case {
    spec: AttentionSpec,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

impl Case {
    fn new(head_dim: usize, window: Option<usize>) -> Self {
        Self {
            spec: AttentionSpec {
                heads: HEADS,
                kv_heads: KV_HEADS,
                head_dim,
                scale: 2.0 / (head_dim as f32).sqrt(),
                cap: None,
                window,
            },
            keys: noise(TOKENS * KV_HEADS * head_dim, 1),
            values: noise(TOKENS * KV_HEADS * head_dim, 2),
            queries: noise(TOKENS * HEADS * head_dim, 3),
        }
    }

    /// An empty cache with room for all tokens.
    fn cache(&self, format: KvFormat) -> Sequence {
        let shape = KvShape {
            kv_heads: KV_HEADS,
            head_dim: self.spec.head_dim,
            format,
        };
        let windows = std::iter::once(self.spec.window);
        let mut cache = Sequence::new(TOKENS, shape, windows, &Budget::new(None));
        cache.reach(TOKENS).unwrap();
        cache
    }

    /// The result in plain double precision: (tokens, heads, head_dim)
    fn expected(&self) -> Vec<f64> {
        let (head_dim, width) = (self.spec.head_dim, KV_HEADS * self.spec.head_dim);
        let mut results = Vec::new();
        for (row, query) in self.queries.chunks(head_dim).enumerate() {
            let (position, kv_head) = (row / HEADS, row % HEADS / (HEADS / KV_HEADS));
            let start = position + 1 - self.spec.window.unwrap_or(TOKENS).min(position + 1);
            let weights = (start..=position).map(|token| {
                let key = &self.keys[token * width + kv_head * head_dim..];
                let pairs = query.iter().zip(key);
                let score: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                (score * f64::from(self.spec.scale)).exp()
            });
            let weights: Vec<f64> = weights.collect();
            let sum: f64 = weights.iter().sum();
            for index in 0..head_dim {
                let value = |token| self.values[token * width + kv_head * head_dim + index];
                let weighted = (start..).zip(&weights);
                let weighted = weighted.map(|(token, weight)| weight * f64::from(value(token)));
                results.push(weighted.sum::<f64>() / sum);
            }
        }
        results
    }

    /// The result of the kernels, for so many rows at a time.
    fn run(&self, format: KvFormat, isa: IsaName, rows: usize) -> Vec<f32> {
        let cache = self.cache(format);
        let mut results = vec![f32::NAN; self.queries.len()];
        let kernel = Whole {
            case: self,
            kv: &cache.layers[0],
            rows,
            results: &mut results,
        };
        dispatch(isa, kernel);
        results
    }
}

/// Appends all tokens, and attends with all queries.
struct Whole<'a> {
    case: &'a Case,
    kv: &'a LayerKv,
    rows: usize,
    results: &'a mut [f32],
}

impl Kernel for Whole<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Case { spec, .. } = self.case;
        let width = KV_HEADS * spec.head_dim;
        let rows = self.case.keys.chunks(width);
        let mut buffer = Vec::new();
        for (token, (keys, values)) in rows.zip(self.case.values.chunks(width)).enumerate() {
            let mut keys = keys.to_vec();
            self.kv.append::<I>(token, &mut keys, values, &mut buffer);
        }
        let mut turned = self.case.queries.clone();
        self.kv.turn_queries(&mut turned);
        let group = HEADS / KV_HEADS;
        let mut scores = Vec::new();
        for start in (0..TOKENS).step_by(self.rows) {
            for kv_head in 0..KV_HEADS {
                let mut queries = Vec::new();
                for position in start..TOKENS.min(start + self.rows) {
                    for head in kv_head * group..(kv_head + 1) * group {
                        let at = (position * HEADS + head) * spec.head_dim;
                        queries.push(Query {
                            from: turned[at..].as_ptr(),
                            to: self.results[at..].as_mut_ptr(),
                            position,
                        });
                    }
                }
                attend::<I>(spec, self.kv, kv_head, &queries, &mut scores);
            }
        }
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let widths = HEAD_DIMS.into_iter();
    widths.flat_map(|head_dim| [None, Some(40)].map(|window| Case::new(head_dim, window)))
}

#[test]
fn heads_of_all_widths_give_nearly_what_plain_sums_give() {
    for case in cases() {
        let expected = case.expected();
        for (format, tolerance) in [(KvFormat::F16, 2e-3), (KvFormat::Q8, 2e-2)] {
            let got = case.run(format, IsaName::Scalar, 7);
            for (got, expected) in got.iter().zip(&expected) {
                let error = (f64::from(*got) - expected).abs();
                assert!(error < tolerance, "{format} {:?}: {error}", case.spec);
            }
        }
    }
}

#[test]
fn neither_the_instruction_set_nor_the_rows_change_a_bit() {
    let bits = |floats: Vec<f32>| floats.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    for case in cases() {
        for format in KvFormat::ALL {
            let expected = bits(case.run(format, IsaName::Scalar, TOKENS));
            for (isa, rows) in isas().iter().flat_map(|isa| [(*isa, 1), (*isa, 64)]) {
                let got = bits(case.run(format, isa, rows));
                assert!(got == expected, "{format} on {isa}: {:?}", case.spec);
            }
        }
    }
}

#[test]
fn rows_that_were_exported_come_back_whatever_the_width() {
    for case in cases() {
        for format in KvFormat::ALL {
            let mut first = case.cache(format);
            let mut results = vec![0.0; case.queries.len()];
            let kernel = Whole {
                case: &case,
                kv: &first.layers[0],
                rows: 8,
                results: &mut results,
            };
            dispatch(IsaName::Scalar, kernel);
            first.len = TOKENS;
            let rows = first.export(0..TOKENS).unwrap();
            let mut other = case.cache(format);
            other.import(0, &rows).unwrap();
            assert_eq!(other.export(0..TOKENS).unwrap(), rows, "{:?}", case.spec);
        }
    }
}
