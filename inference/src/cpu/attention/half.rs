//! Products with a cache in half precision.

use super::{Products, Query};
use crate::cpu::isa::{Isa, LANES};
use crate::cpu::kv::Half;
use std::ops::Range;

impl Products for Half<'_> {
    #[inline(always)]
    unsafe fn dot_keys<I: Isa, const N: usize, const G: usize>(
        self,
        head: usize,
        tokens: [usize; G],
        queries: [Query; N],
    ) -> [[I::F; N]; G] {
        let keys = tokens.map(|token| self.key_at(head, token).cast_const());
        let mut sums = [[I::splat(0.0); N]; G];
        for index in 0..self.head_dim() {
            for g in 0..G {
                let keys = I::load_f16(keys[g].add(index * LANES));
                for n in 0..N {
                    sums[g][n] = I::fma(I::splat(*queries[n].from.add(index)), keys, sums[g][n]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn weigh_values<I: Isa, const N: usize, const G: usize>(
        self,
        head: usize,
        at: usize,
        tokens: Range<usize>,
        rows: [*mut f32; N],
    ) -> [[I::F; N]; G] {
        let mut sums = [[I::splat(0.0); N]; G];
        let (start, head_dim) = (tokens.start, self.head_dim());
        for group in tokens.clone().step_by(LANES) {
            let values = self.value_at(head, group).wrapping_add(at);
            for lane in 0..LANES.min(tokens.end - group) {
                for g in 0..G {
                    let values = I::load_f16(values.add(lane * head_dim + g * LANES));
                    for n in 0..N {
                        let weight = I::splat(*rows[n].add(group - start + lane));
                        sums[g][n] = I::fma(weight, values, sums[g][n]);
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn number(self, head: usize, token: usize, at: usize) -> (f32, f32) {
        let bits = *self.value_at(head, token).add(at);
        (half::f16::from_bits(bits).to_f32(), 1.0)
    }
}
