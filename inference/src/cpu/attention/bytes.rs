//! Products with a cache in eight bits.
//!
//! Of keys, each group of numbers is multiplied as bytes, with a fused multiply-add for each, and
//! its sum is added with one more, which multiplies by the scales. Of values, the scale goes into
//! the weight, which is rounded once for all numbers of the group.

use super::{LINE, Next, Products, Query};
use crate::cpu::isa::{Isa, LANES};
use crate::cpu::kv::{Bytes, GROUP};
use std::ops::Range;

impl Products for Bytes<'_> {
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
        let scales = tokens.map(|token| self.key_scales_at(head, token).cast_const());
        let head_dim = self.head_dim();
        let mut sums = [[I::splat(0.0); N]; G];
        for (group, start) in (0..head_dim).step_by(GROUP).enumerate() {
            let mut parts = [[I::splat(0.0); N]; G];
            for index in start..head_dim.min(start + GROUP) {
                if (index * LANES).is_multiple_of(LINE) {
                    for next in next.into_iter().flatten() {
                        next.ask::<I>(index * LANES);
                    }
                }
                for g in 0..G {
                    let keys = I::load_i8(keys[g].add(index * LANES));
                    for n in 0..N {
                        let query = I::splat(*queries[n].from.add(index));
                        parts[g][n] = I::fma(query, keys, parts[g][n]);
                    }
                }
            }
            for g in 0..G {
                let scales = I::load_f16(scales[g].add(group * LANES));
                for n in 0..N {
                    sums[g][n] = I::fma(parts[g][n], scales, sums[g][n]);
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
        let mut weights = [[[0.0; LANES]; N]; G];
        let (start, head_dim) = (tokens.start, self.head_dim());
        for group in tokens.clone().step_by(LANES) {
            let scales = self.value_scales_at(head, group);
            for g in 0..G {
                let scales = I::load_f16(scales.add((at + g * LANES) / GROUP * LANES));
                for n in 0..N {
                    // The rows are padded to whole vectors.
                    let scaled = I::mul(I::load(rows[n].add(group - start)), scales);
                    I::store(weights[g][n].as_mut_ptr(), scaled);
                }
            }
            let values = self.value_at(head, group).wrapping_add(at);
            for lane in 0..LANES.min(tokens.end - group) {
                for g in 0..G {
                    let values = I::load_i8(values.add(lane * head_dim + g * LANES));
                    for n in 0..N {
                        sums[g][n] = I::fma(I::splat(weights[g][n][lane]), values, sums[g][n]);
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn number(self, head: usize, token: usize, at: usize) -> (f32, f32) {
        let scales = self.value_scales_at(head, token / LANES * LANES);
        let bits = *scales.add(at / GROUP * LANES + token % LANES);
        let value = *self.value_at(head, token).add(at);
        (f32::from(value), half::f16::from_bits(bits).to_f32())
    }
}
