//! The forward pass of one layer over all rows of a batch.

use super::experts::Experts;
use super::{FeedForward, Layer, Mixing};
use crate::cpu::activations::{Activations, Forms};
use crate::cpu::isa::{Isa, Kernel, TILE_ROWS, dispatch};
use crate::cpu::kernels::Rows;
use crate::cpu::kv::LayerKv;
use crate::cpu::matrix::{Output, Store, multiply, multiply_gated};
use crate::cpu::norm::Norm;
use crate::cpu::pool::Pool;
use crate::cpu::rope::RopeTable;
use crate::hardware::IsaName;
use std::ops::Range;

/// Rows that are prepared by one task.
const TASK_ROWS: usize = 8;
/// Rows that go through the parts of a layer at a time: as many as the products take over a tile, so
/// that the buffers are small, and what is in them stays in the caches.
const PANEL: usize = 128;

/// The rows of one sequence in a batch.
pub(crate) struct Item<'a> {
    /// Which rows of the batch.
    pub rows: Range<usize>,
    /// Position in the sequence of the first of them.
    pub position: usize,
    /// The cache of the layer.
    pub kv: &'a LayerKv,
    /// The rotary embeddings of the sequence.
    pub ropes: &'a [RopeTable],
}

impl Item<'_> {
    /// What of the item lies within a panel, with the numbers that its rows have there.
    fn within(&self, panel: &Range<usize>) -> Option<Self> {
        let start = self.rows.start.max(panel.start);
        let end = self.rows.end.min(panel.end);
        (start < end).then(|| Self {
            rows: start - panel.start..end - panel.start,
            position: self.position + (start - self.rows.start),
            ..*self
        })
    }
}

/// What runs a batch.
pub(crate) struct Step<'a> {
    pub pool: &'a mut Pool,
    pub isa: IsaName,
    pub rows: usize,
}

impl Step<'_> {
    /// The same for some rows alone.
    fn of(&mut self, rows: usize) -> Step<'_> {
        Step {
            pool: self.pool,
            isa: self.isa,
            rows,
        }
    }
}

/// Buffers that are kept from step to step.
#[derive(Default)]
pub(crate) struct Workspace {
    /// Normed rows: what goes into queries, keys, values, gate and up.
    pub(super) input: Activations,
    /// (rows, queries ‖ keys ‖ values)
    pub(super) projected: Vec<f32>,
    /// Results of the attention.
    pub(super) attended: Activations,
    /// What a part of the layer gives, where a norm comes before it is added.
    pub(super) result: Vec<f32>,
    /// (rows, feed-forward width)
    pub(super) gated: Activations,
    /// Buffers of the mixture of experts.
    pub(super) mixture: super::experts::Buffers,
}

impl Workspace {
    /// The buffer of normed rows.
    pub(crate) fn input_mut(&mut self) -> &mut Activations {
        &mut self.input
    }
}

/// A pointer that threads share; each uses its own part of what it points to.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub *mut f32);

// SAFETY: see the uses; every task has rows of its own.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}

/// Runs a kernel for ranges of rows on all threads.
pub(super) fn for_rows<K: Kernel>(
    step: &mut Step<'_>,
    rows: usize,
    kernel: impl Fn(Range<usize>) -> K + Sync,
) {
    let isa = step.isa;
    let threads = step.pool.threads();
    let per_task = rows.div_ceil(threads * 4).clamp(1, TASK_ROWS);
    // A few rows are done sooner than another thread could help.
    let per_task = if rows <= 2 { rows.max(1) } else { per_task };
    step.pool.run(rows.div_ceil(per_task), &|task| {
        let start = task * per_task;
        dispatch(isa, kernel(start..(start + per_task).min(rows)));
    });
}

/// Norms rows into activations and brings them into the forms of the next product.
pub(crate) struct Prepare<'a> {
    pub norm: &'a Norm,
    pub from: *const f32,
    pub to: &'a Activations,
    pub forms: Forms,
    pub rows: Range<usize>,
}

impl Kernel for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let width = self.norm.width();
        for row in self.rows {
            let to = self.to.floats(row);
            // SAFETY: the caller made room for the rows; each is one task's.
            unsafe {
                self.norm
                    .apply::<I>(self.from.add(row * width), to.cast_mut());
                self.to.quantise::<I>(row, self.forms);
            }
        }
    }
}

/// Brings rows that are there already into the forms of the next product.
pub(super) struct Quantise<'a> {
    pub to: &'a Activations,
    pub forms: Forms,
    pub rows: Range<usize>,
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        for row in self.rows {
            // SAFETY: the caller made room for the rows; each is one task's.
            unsafe { self.to.quantise::<I>(row, self.forms) };
        }
    }
}

/// Adds rows to the residual stream, normed first where there is a norm.
struct AddNormed<'a> {
    norm: &'a Norm,
    from: Shared,
    to: Shared,
    rows: Range<usize>,
}

impl Kernel for AddNormed<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let width = self.norm.width();
        for row in self.rows {
            let (from, to) = (self.from.at(row * width), self.to.at(row * width));
            // SAFETY: rows of the two buffers, each one task's.
            unsafe {
                self.norm.apply::<I>(from, from);
                for index in 0..width {
                    *to.add(index) += *from.add(index);
                }
            }
        }
    }
}

impl Layer {
    /// Replaces the rows `x` (rows, hidden) by the layer's output, and appends keys and values to
    /// the caches, which must have been reached.
    pub(crate) fn forward(
        &self,
        step: &mut Step<'_>,
        items: &[Item<'_>],
        x: &mut [f32],
        work: &mut Workspace,
    ) {
        let hidden = self.feed_forward_norm.width();
        for panel in panels(step.rows) {
            let x = &mut x[panel.start * hidden..panel.end * hidden];
            let items: Vec<_> = items
                .iter()
                .filter_map(|item| item.within(&panel))
                .collect();
            let mut step = step.of(panel.len());
            self.attention_part(&mut step, &items, x, work);
            if let Mixing::Dense(dense) = &self.mixing {
                self.feed_forward(&mut step, dense, x, work);
            }
        }
        // All rows at once, since each expert gets but a few of them.
        if let Mixing::Experts(experts) = &self.mixing {
            self.mix(step, experts, x, work);
        }
    }

    fn feed_forward(
        &self,
        step: &mut Step<'_>,
        dense: &FeedForward,
        x: &mut [f32],
        work: &mut Workspace,
    ) {
        let norm = &self.feed_forward_norm;
        prepare(step, norm, x, &mut work.input, dense.input_forms());
        self.gated(step, dense, work);
        let (hidden, behind) = (norm.width(), self.post_feed_forward_norm.as_ref());
        let (output, store) = target(x, &mut work.result, hidden, behind);
        let (parts, gated) = ([Layer::down(dense)], all(&work.gated, step));
        multiply(step.pool, step.isa, &parts, gated, output, store);
        add_normed(step, behind, x, &mut work.result);
    }

    fn down(dense: &FeedForward) -> crate::cpu::matrix::Part<'_> {
        crate::cpu::matrix::Part {
            matrix: &dense.down,
            bias: None,
            column: 0,
        }
    }

    fn gated(&self, step: &mut Step<'_>, dense: &FeedForward, work: &mut Workspace) {
        let width = dense.gate.rows();
        let forms = Forms::of([dense.down.form()]);
        work.gated.resize(step.isa, step.rows, width, forms);
        let output = Output::new(work.gated.floats_mut(), width);
        let input = all(&work.input, step);
        let matrices = (&dense.gate, &dense.up);
        multiply_gated(step.pool, step.isa, matrices, input, output, self.spec.gate);
        let gated = &work.gated;
        for_rows(step, step.rows, |rows| Quantise {
            to: gated,
            forms,
            rows,
        });
    }

    fn mix(&self, step: &mut Step<'_>, experts: &Experts, x: &mut [f32], work: &mut Workspace) {
        let norm = &self.feed_forward_norm;
        prepare(step, norm, x, &mut work.input, experts.input_forms());
        work.result.resize(x.len(), 0.0);
        experts.forward(step, self.spec.gate, work);
        let Some(behind) = &self.post_feed_forward_norm else {
            for (x, result) in x.iter_mut().zip(&work.result) {
                *x += result;
            }
            return;
        };
        add_normed(step, Some(behind), x, &mut work.result);
    }
}

/// The rows of a step in panels of about the same size, in whole tiles: a last one of a few rows
/// would read all weights for these alone.
fn panels(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let tiles = rows.div_ceil(TILE_ROWS);
    let count = tiles.div_ceil(PANEL / TILE_ROWS);
    let start = move |panel: usize| (panel * tiles / count * TILE_ROWS).min(rows);
    (0..count).map(move |panel| start(panel)..start(panel + 1))
}

/// Norms all rows of `x` into `to`.
pub(crate) fn prepare(
    step: &mut Step<'_>,
    norm: &Norm,
    x: &[f32],
    to: &mut Activations,
    forms: Forms,
) {
    to.resize(step.isa, step.rows, norm.width(), forms);
    let (from, to) = (Shared(x.as_ptr().cast_mut()), &*to);
    for_rows(step, step.rows, |rows| Prepare {
        norm,
        from: from.at(0),
        to,
        forms,
        rows,
    });
}

/// All rows of a step.
pub(super) fn all<'a>(activations: &'a Activations, step: &Step<'_>) -> Rows<'a> {
    Rows {
        activations,
        first: 0,
        count: step.rows,
    }
}

/// Where a part of the layer writes: right onto the residual stream, or into a buffer when a norm
/// comes in between.
pub(super) fn target(
    x: &mut [f32],
    result: &mut Vec<f32>,
    hidden: usize,
    behind: Option<&Norm>,
) -> (Output, Store) {
    if behind.is_none() {
        return (Output::new(x, hidden), Store::Add);
    }
    result.resize(x.len(), 0.0);
    (Output::new(result, hidden), Store::Replace)
}

pub(super) fn add_normed(
    step: &mut Step<'_>,
    norm: Option<&Norm>,
    x: &mut [f32],
    result: &mut [f32],
) {
    let Some(norm) = norm else {
        return;
    };
    let (from, to) = (Shared(result.as_mut_ptr()), Shared(x.as_mut_ptr()));
    for_rows(step, step.rows, |rows| AddNormed {
        norm,
        from,
        to,
        rows,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_cover_the_rows_and_none_is_much_smaller_than_the_others() {
        for rows in 0..2000 {
            let panels: Vec<_> = panels(rows).collect();
            let covered = panels.iter().cloned().flatten();
            assert!(covered.eq(0..rows), "{rows}: {panels:?}");
            let longest = panels.iter().map(Range::len).max().unwrap_or(0);
            let shortest = panels.iter().map(Range::len).min().unwrap_or(0);
            let is_even = longest - shortest < 2 * TILE_ROWS;
            assert!(longest <= PANEL && is_even, "{rows}: {panels:?}");
        }
    }
}
