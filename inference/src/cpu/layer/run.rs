//! The forward pass of one layer over all rows of a batch.

use super::experts::Experts;
use super::{FeedForward, Layer, Mixing};
use crate::cpu::activations::{Activations, Forms};
use crate::cpu::isa::{Isa, Kernel, dispatch};
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

/// What runs a batch.
pub(crate) struct Step<'a> {
    pub pool: &'a mut Pool,
    pub isa: IsaName,
    pub rows: usize,
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
        self.attention_part(step, items, x, work);
        let forms = match &self.mixing {
            Mixing::Dense(dense) => dense.input_forms(),
            Mixing::Experts(experts) => experts.input_forms(),
        };
        prepare(step, &self.feed_forward_norm, x, &mut work.input, forms);
        let hidden = self.feed_forward_norm.width();
        work.result.resize(step.rows * hidden, 0.0);
        let behind = self.post_feed_forward_norm.as_ref();
        match &self.mixing {
            Mixing::Dense(dense) => {
                self.gated(step, dense, work);
                let (output, store) = target(x, &mut work.result, hidden, behind);
                let parts = [Layer::down(dense)];
                multiply(
                    step.pool,
                    step.isa,
                    &parts,
                    all(&work.gated, step),
                    output,
                    store,
                );
            }
            Mixing::Experts(experts) => self.mix(step, experts, x, work),
        }
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
        experts.forward(step, self.spec.gate, work);
        if self.post_feed_forward_norm.is_none() {
            for (x, result) in x.iter_mut().zip(&work.result) {
                *x += result;
            }
        }
    }
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
    result: &mut [f32],
    hidden: usize,
    behind: Option<&Norm>,
) -> (Output, Store) {
    match behind {
        None => (Output::new(x, hidden), Store::Add),
        Some(_) => (Output::new(result, hidden), Store::Replace),
    }
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
