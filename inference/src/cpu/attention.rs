//! Grouped-query attention over the KV cache (Ainslie et al., 2023).
//!
//! For one KV head and a few rows: the scores of sixteen tokens at a time (a lane is a token),
//! then the softmax over all of them, then the weighted sum of the values (a lane is a number of
//! the head). Tokens are always walked from the first to the last, in groups of sixteen that
//! begin at multiples of sixteen, so neither the chunk nor the batch changes a bit.
//!
//! The products depend on the form of the cache: [`half`], [`bytes`].

#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of queries at once"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "see the safety section of `Isa`")]

mod bytes;
mod half;
#[cfg(test)]
mod tests;

use super::isa::{Isa, Kernel, LANES};
use super::kv::{Form, LayerKv};
use super::math::{exp, softcap};
use std::ops::Range;

/// Queries that share a load of keys or values.
pub(super) const QUERIES: usize = 6;
/// How many tokens ahead of the products keys are asked for.
const AHEAD: usize = 4 * LANES;
/// Bytes of a line of the caches.
const LINE: usize = 64;

/// What the attention of a layer needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionSpec {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Scores are squeezed into ± this.
    pub cap: Option<f32>,
    /// How many tokens back a token sees, itself included.
    pub window: Option<usize>,
}

/// One query head of one row.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    /// Its `head_dim` numbers.
    pub from: *const f32,
    /// Where the result goes.
    pub to: *mut f32,
    /// Position of the row in its sequence.
    pub position: usize,
}

/// What is used after the keys of sixteen tokens. Processors do not foresee a walk over blocks here
/// and there.
#[derive(Clone, Copy)]
struct Next {
    /// Keys further on.
    keys: *const u8,
    /// The values of the same tokens, which come after all keys.
    values: *const u8,
}

impl Next {
    /// Asks for a line of each, `at` bytes from where they begin.
    #[inline(always)]
    unsafe fn ask<I: Isa>(self, at: usize) {
        I::prefetch(self.keys.wrapping_add(at));
        I::prefetch_far(self.values.wrapping_add(at));
    }
}

/// The products with a cache of one form.
///
/// # Safety
/// See [`Isa`]. The tokens must have been written, and nobody may write them.
trait Products: Copy {
    /// Where the keys of sixteen tokens begin.
    fn keys(self, head: usize, token: usize) -> *const u8;

    /// Where the values of sixteen tokens begin, which take as many bytes.
    fn values(self, head: usize, token: usize) -> *const u8;

    /// Products of the keys of `G` times sixteen tokens, from each of `tokens` on, with each query.
    /// Meanwhile asks for as many bytes of what is used next.
    unsafe fn dot_keys<I: Isa, const N: usize, const G: usize>(
        self,
        head: usize,
        tokens: [usize; G],
        queries: [Query; N],
        next: [Option<Next>; G],
    ) -> [[I::F; N]; G];

    /// Sums of `G` times sixteen numbers of the values, from number `at` on, weighted by each row,
    /// whose first weight is that of the first token.
    unsafe fn weigh_values<I: Isa, const N: usize, const G: usize>(
        self,
        head: usize,
        at: usize,
        tokens: Range<usize>,
        rows: [*mut f32; N],
    ) -> [[I::F; N]; G];

    /// Number `at` of a value, and the scale that goes into its weight.
    unsafe fn number(self, head: usize, token: usize, at: usize) -> (f32, f32);
}

/// Attends to one KV head with queries of the same sequence.
///
/// # Safety
/// See [`Isa`]. The tokens up to each query's position must have been written, nobody may write
/// them, and the results may not overlap.
#[inline(always)]
pub(crate) unsafe fn attend<I: Isa>(
    spec: &AttentionSpec,
    kv: &LayerKv,
    kv_head: usize,
    queries: &[Query],
    scores: &mut Vec<f32>,
) {
    match kv.form() {
        Form::Half(half) => attend_in::<I, _>(spec, half, kv_head, queries, scores),
        Form::Bytes(bytes) => attend_in::<I, _>(spec, bytes, kv_head, queries, scores),
    }
}

#[inline(always)]
unsafe fn attend_in<I: Isa, P: Products>(
    spec: &AttentionSpec,
    kv: P,
    kv_head: usize,
    queries: &[Query],
    scores: &mut Vec<f32>,
) {
    let is_one_row = queries
        .windows(2)
        .all(|two| two[0].position == two[1].position);
    for (chunk, queries) in queries.chunks(QUERIES).enumerate() {
        let head = Head {
            spec,
            kv,
            number: kv_head,
            // What several chunks pass over is near after the first of them, and of many rows.
            is_far: is_one_row && chunk == 0,
        };
        let mut all = [queries[0]; QUERIES];
        all[..queries.len()].copy_from_slice(queries);
        let [a, b, c, d, e, f] = all;
        // Few queries take several vectors at once, or each sum would wait for its last addition.
        match queries.len() {
            1 => I::call(Few::<P, 1, 4>(head, [a], scores)),
            2 => I::call(Few::<P, 2, 2>(head, [a, b], scores)),
            3 => I::call(Few::<P, 3, 2>(head, [a, b, c], scores)),
            4 => I::call(Few::<P, 4, 1>(head, [a, b, c, d], scores)),
            5 => I::call(Few::<P, 5, 1>(head, [a, b, c, d, e], scores)),
            _ => I::call(Few::<P, 6, 1>(head, [a, b, c, d, e, f], scores)),
        }
    }
}

/// A KV head.
#[derive(Clone, Copy)]
struct Head<'a, P> {
    spec: &'a AttentionSpec,
    kv: P,
    number: usize,
    /// Whether its keys and values are probably in no near cache.
    is_far: bool,
}

impl<P: Products> Head<'_, P> {
    /// What comes after the keys of sixteen tokens, where there are `end`.
    #[inline(always)]
    fn next(self, token: usize, end: usize) -> Next {
        let later = (token + AHEAD).min(end - 1) / LANES * LANES;
        Next {
            keys: self.kv.keys(self.number, later),
            values: self.kv.values(self.number, token),
        }
    }
}

/// [`attend_few`] as a kernel, for `N` queries and `G` vectors at once.
struct Few<'a, P, const N: usize, const G: usize>(Head<'a, P>, [Query; N], &'a mut Vec<f32>);

impl<P: Products, const N: usize, const G: usize> Kernel for Few<'_, P, N, G> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        attend_few::<I, P, N, G>(self.0, self.1, self.2);
    }
}

/// The tokens that a query sees.
fn seen(spec: &AttentionSpec, query: Query) -> Range<usize> {
    let end = query.position + 1;
    let start = spec.window.map_or(0, |window| end.saturating_sub(window));
    start..end
}

#[inline(always)]
unsafe fn attend_few<I: Isa, P: Products, const N: usize, const G: usize>(
    head: Head<'_, P>,
    queries: [Query; N],
    scores: &mut Vec<f32>,
) {
    let Head { spec, kv, .. } = head;
    let ranges = queries.map(|query| seen(spec, query));
    let start = ranges.iter().map(|range| range.start).min().unwrap_or(0) / LANES * LANES;
    let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
    let padded = (end - start).next_multiple_of(LANES);
    if scores.len() < N * padded {
        scores.resize(N * padded, 0.0);
    }
    let rows: [*mut f32; N] = std::array::from_fn(|n| scores.as_mut_ptr().add(n * padded));
    for groups in (start..end).step_by(G * LANES) {
        // Beyond the end the last group is taken again.
        let mut group = [0; G];
        for g in 0..G {
            group[g] = (groups + g * LANES).min(end - 1) / LANES * LANES;
        }
        let next = group.map(|token| head.is_far.then(|| head.next(token, end)));
        let products = kv.dot_keys::<I, N, G>(head.number, group, queries, next);
        for g in 0..G {
            let at = group[g] - start;
            for n in 0..N {
                I::store(rows[n].add(at), products[g][n]);
            }
        }
    }
    let mut factors = [0.0; N];
    for n in 0..N {
        let own = ranges[n].start - start..ranges[n].end - start;
        factors[n] = 1.0 / softmax::<I>(spec, rows[n], padded, own);
    }
    let vectors = spec.head_dim / LANES;
    let mut vector = 0;
    while vector < vectors {
        let at = vector * LANES;
        let to = queries.map(|query| query.to.add(at));
        if vector + G <= vectors {
            weigh::<I, P, N, G>(kv, head.number, at, start..end, rows, factors, to);
            vector += G;
        } else {
            weigh::<I, P, N, 1>(kv, head.number, at, start..end, rows, factors, to);
            vector += 1;
        }
    }
    for at in vectors * LANES..spec.head_dim {
        for n in 0..N {
            *queries[n].to.add(at) = 0.0;
        }
        for token in start..end {
            let (value, scale) = kv.number(head.number, token, at);
            for n in 0..N {
                let weight = *rows[n].add(token - start) * scale;
                let to = queries[n].to.add(at);
                *to = weight.mul_add(value, *to);
            }
        }
        for n in 0..N {
            *queries[n].to.add(at) *= factors[n];
        }
    }
}

/// Writes `G` times sixteen numbers of the results: sums of the values, multiplied with each row's
/// factor.
#[inline(always)]
unsafe fn weigh<I: Isa, P: Products, const N: usize, const G: usize>(
    kv: P,
    kv_head: usize,
    at: usize,
    tokens: Range<usize>,
    rows: [*mut f32; N],
    factors: [f32; N],
    to: [*mut f32; N],
) {
    let sums = kv.weigh_values::<I, N, G>(kv_head, at, tokens, rows);
    for g in 0..G {
        for n in 0..N {
            let result = I::mul(sums[g][n], I::splat(factors[n]));
            I::store(to[n].add(g * LANES), result);
        }
    }
}

/// Turns the scores in `own` of a row into weights and all others into zeros; gives the sum of
/// the weights.
#[inline(always)]
unsafe fn softmax<I: Isa>(
    spec: &AttentionSpec,
    row: *mut f32,
    len: usize,
    own: Range<usize>,
) -> f32 {
    let mut highest = I::splat(f32::MIN);
    for at in (0..len).step_by(LANES) {
        let mut scores = I::mul(I::load(row.add(at)), I::splat(spec.scale));
        if let Some(cap) = spec.cap {
            scores = softcap::<I>(scores, cap);
        }
        I::store(row.add(at), scores);
        if at < own.start || at + LANES > own.end {
            blank(row.add(at), at, &own, f32::MIN);
            scores = I::load(row.add(at));
        }
        highest = I::max(scores, highest);
    }
    let highest = I::splat(I::highest(highest));
    let mut sums = I::splat(0.0);
    for at in (0..len).step_by(LANES) {
        let mut weights = exp::<I>(I::sub(I::load(row.add(at)), highest));
        I::store(row.add(at), weights);
        if at < own.start || at + LANES > own.end {
            blank(row.add(at), at, &own, 0.0);
            weights = I::load(row.add(at));
        }
        sums = I::add(sums, weights);
    }
    I::sum(sums)
}

/// Writes `value` to the lanes of a vector that do not lie in `own`.
unsafe fn blank(vector: *mut f32, at: usize, own: &Range<usize>, value: f32) {
    for lane in 0..LANES {
        if !own.contains(&(at + lane)) {
            *vector.add(lane) = value;
        }
    }
}
