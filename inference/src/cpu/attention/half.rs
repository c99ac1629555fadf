//! Products with a cache in half precision.

use super::{LINE, Next, Products, Query};
use crate::cpu::isa::{Isa, LANES};
use crate::cpu::kv::Half;
use std::ops::Range;

/// Bytes of one number of sixteen keys.
const ROW: usize = LANES * size_of::<u16>();

impl Products for Half<'_> {
    #[inline(always)]
    fn keys(self, head: usize, token: usize) -> *const u8 {
        self.key_at(head, token).cast()
    }

    #[inline(always)]
    fn values(self, head: usize, token: usize) -> *const u8 {
        self.value_at(head, token).cast()
    }

    #[inline(always)]
    unsafe fn dot_keys<I: Isa, const N: usize, const G: usize>(
        self,
        head: usize,
        tokens: [usize; G],
        queries: [Query; N],
        next: [Option<Next>; G],
    ) -> [[I::F; N]; G] {
        let keys = tokens.map(|token| self.key_at(head, token).cast_const());
        let mut sums = [[I::splat(0.0); N]; G];
        let head_dim = self.head_dim();
        for start in (0..head_dim).step_by(LINE / ROW) {
            for next in next.into_iter().flatten() {
                next.ask::<I>(start * ROW);
            }
            for index in start..head_dim.min(start + LINE / ROW) {
                for g in 0..G {
                    let keys = I::load_f16(keys[g].add(index * LANES));
                    for n in 0..N {
                        let query = I::splat(*queries[n].from.add(index));
                        sums[g][n] = I::fma(query, keys, sums[g][n]);
                    }
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
