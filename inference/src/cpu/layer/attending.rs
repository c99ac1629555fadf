//! The attention part of a layer: queries, keys and values, the rotary embedding, the cache, and
//! what the tokens give each other.

use super::Layer;
use super::run::{
    Item, Quantise, Shared, Step, Workspace, add_normed, all, for_rows, prepare, target,
};
use crate::cpu::activations::{Activations, Forms};
use crate::cpu::attention::{QUERIES, Query, attend};
use crate::cpu::isa::{Isa, Kernel, dispatch};
use crate::cpu::matrix::{Output, Store, multiply};
use crate::cpu::norm::Norm;
use std::cell::Cell;
use std::ops::Range;

/// Queries that one task of the attention takes at least, if there are as many.
const TASK_QUERIES: usize = 12;

thread_local! {
    // Taken and put back, not borrowed: a closure would be compiled without the instruction set.
    static SCORES: Cell<Vec<f32>> = Cell::default();
    static ROUNDED: Cell<Vec<u16>> = Cell::default();
}

/// Norms and turns queries and keys of rows, and appends keys and values to the cache.
struct Turn<'a> {
    layer: &'a Layer,
    items: &'a [Item<'a>],
    projected: Shared,
    rows: Range<usize>,
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let spec = &self.layer.attention;
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let width = queries + 2 * keys;
        let mut rounded = ROUNDED.take();
        for item in self.items {
            let start = self.rows.start.max(item.rows.start);
            for row in start..self.rows.end.min(item.rows.end) {
                let position = item.position + (row - item.rows.start);
                // SAFETY: the row lies within the buffer and is this task's.
                let projected = unsafe {
                    std::slice::from_raw_parts_mut(self.projected.at(row * width), width)
                };
                let (own_queries, rest) = projected.split_at_mut(queries);
                let (own_keys, own_values) = rest.split_at_mut(keys);
                // SAFETY: the norms are as wide as a head.
                unsafe {
                    norm_heads::<I>(self.layer.query_norm.as_ref(), own_queries, spec.head_dim);
                    norm_heads::<I>(self.layer.key_norm.as_ref(), own_keys, spec.head_dim);
                }
                let rope = &item.ropes[self.layer.spec.rope];
                rope.turn(position, own_queries, spec.head_dim);
                rope.turn(position, own_keys, spec.head_dim);
                item.kv.turn_queries(own_queries);
                // SAFETY: the token was reached before the step, and its row is this task's.
                unsafe {
                    let kv = item.kv;
                    kv.append::<I>(position, own_keys, own_values, &mut rounded);
                }
            }
        }
        ROUNDED.set(rounded);
    }
}

#[inline(always)]
unsafe fn norm_heads<I: Isa>(norm: Option<&Norm>, heads: &mut [f32], head_dim: usize) {
    let Some(norm) = norm else {
        return;
    };
    for head in heads.chunks_exact_mut(head_dim) {
        // SAFETY: promised by the caller.
        unsafe { norm.apply::<I>(head.as_ptr(), head.as_mut_ptr()) };
    }
}

/// A few rows of one sequence with some of the query heads of one KV head.
struct Attend<'a> {
    layer: &'a Layer,
    item: &'a Item<'a>,
    rows: Range<usize>,
    kv_head: usize,
    heads: Range<usize>,
    projected: Shared,
    attended: &'a Activations,
}

impl Kernel for &Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let spec = &self.layer.attention;
        let width = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
        let mut queries = Vec::with_capacity(self.rows.len() * self.heads.len());
        for row in self.rows.clone() {
            let to = self.attended.floats(row);
            for head in self.heads.clone() {
                queries.push(Query {
                    from: self.projected.at(row * width + head * spec.head_dim),
                    to: to.cast_mut().wrapping_add(head * spec.head_dim),
                    position: self.item.position + (row - self.item.rows.start),
                });
            }
        }
        let mut scores = SCORES.take();
        // SAFETY: all rows of the step were appended before; heads write disjoint parts.
        unsafe { attend::<I>(spec, self.item.kv, self.kv_head, &queries, &mut scores) };
        SCORES.set(scores);
    }
}

impl Layer {
    /// Adds what the tokens give each other to the rows `x`.
    pub(super) fn attention_part(
        &self,
        step: &mut Step<'_>,
        items: &[Item<'_>],
        x: &mut [f32],
        work: &mut Workspace,
    ) {
        let spec = &self.attention;
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let width = queries + 2 * keys;
        let hidden = self.attention_norm.width();
        prepare(
            step,
            &self.attention_norm,
            x,
            &mut work.input,
            self.input_forms(),
        );
        work.projected.resize(step.rows * width, 0.0);
        let parts = [
            self.queries.part(0),
            self.keys.part(queries),
            self.values.part(queries + keys),
        ];
        let output = Output::new(&mut work.projected, width);
        let input = all(&work.input, step);
        multiply(step.pool, step.isa, &parts, input, output, Store::Replace);
        let projected = Shared(work.projected.as_mut_ptr());
        for_rows(step, step.rows, |rows| Turn {
            layer: self,
            items,
            projected,
            rows,
        });
        let forms = Forms::of([self.output.matrix.form()]);
        work.attended.resize(step.isa, step.rows, queries, forms);
        self.attend(step, items, projected, &work.attended);
        let attended = &work.attended;
        for_rows(step, step.rows, |rows| Quantise {
            to: attended,
            forms,
            rows,
        });
        let behind = self.post_attention_norm.as_ref();
        let (output, store) = target(x, &mut work.result, hidden, behind);
        let parts = [self.output.part(0)];
        multiply(
            step.pool,
            step.isa,
            &parts,
            all(&work.attended, step),
            output,
            store,
        );
        add_normed(step, behind, x, &mut work.result);
    }

    /// Every KV head of every few rows is one task, or several where threads would be idle.
    fn attend(
        &self,
        step: &mut Step<'_>,
        items: &[Item<'_>],
        projected: Shared,
        attended: &Activations,
    ) {
        let spec = &self.attention;
        let group = spec.heads / spec.kv_heads;
        let per_task = rows_per_task(group);
        let pieces = items.iter().map(|item| item.rows.len().div_ceil(per_task));
        let pieces = pieces.sum::<usize>() * spec.kv_heads;
        let per_piece = group.div_ceil(splits(pieces, group, step.pool.threads()));
        let mut tasks = Vec::new();
        for item in items {
            for start in item.rows.clone().step_by(per_task) {
                let rows = start..(start + per_task).min(item.rows.end);
                for head in (0..spec.heads).step_by(group) {
                    let heads = (head..head + group).step_by(per_piece);
                    let heads = heads.map(|first| first..(first + per_piece).min(head + group));
                    tasks.extend(heads.map(|heads| Attend {
                        layer: self,
                        item,
                        rows: rows.clone(),
                        kv_head: head / group,
                        heads,
                        projected,
                        attended,
                    }));
                }
            }
        }
        let isa = step.isa;
        step.pool
            .run(tasks.len(), &|task| dispatch(isa, &tasks[task]));
    }
}

/// Rows whose queries, `group` of each, one task of the attention takes: in whole numbers of what
/// shares a load, if that is not too many.
fn rows_per_task(group: usize) -> usize {
    let least = TASK_QUERIES.div_ceil(group);
    let mut several = least..least + QUERIES;
    several
        .find(|rows| (rows * group).is_multiple_of(QUERIES))
        .unwrap_or(least)
}

/// Into how many parts the `group` queries of a KV head are split, so that `pieces` of work become
/// equal shares of the threads. Where there are many pieces they are not.
fn splits(pieces: usize, group: usize, threads: usize) -> usize {
    if pieces >= 2 * threads {
        return 1;
    }
    let is_even = |splits: &usize| (pieces * splits).is_multiple_of(threads);
    (1..=group).find(is_even).unwrap_or(group)
}
