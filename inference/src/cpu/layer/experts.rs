//! A mixture of experts (Shazeer et al., 2017): a router picks a few feed-forward parts for each
//! token. The rows of an expert are gathered, multiplied together and added up again; a row gets
//! its experts in the order of their numbers, so its sum does not depend on the batch.

use super::run::{Quantise, Step, Workspace, for_rows};
use super::{ExpertsSpec, FeedForward};
use crate::cpu::activations::{Activations, Forms};
use crate::cpu::isa::{Isa, Kernel, LANES, dispatch};
use crate::cpu::kernels::Rows;
use crate::cpu::math::{Gate, exp};
use crate::cpu::matrix::{Matrix, Output, Part, Store, multiply, multiply_gated};
use crate::cpu::weights::LayerWeights;
use crate::stage::LoadError;

/// Smallest sum of weights that is divided by, as in llama.cpp.
const SMALLEST_SUM: f32 = 6.103_515_6e-5;

/// The experts of one layer.
pub(super) struct Experts {
    spec: ExpertsSpec,
    router: Matrix,
    experts: Vec<FeedForward>,
    shared: Option<Shared>,
}

/// The expert that every token goes through, weighted by a gate of its own.
struct Shared {
    gate: Matrix,
    part: FeedForward,
}

/// Buffers that are kept from step to step.
#[derive(Default)]
pub(crate) struct Buffers {
    /// (rows, experts): what the router says, then each expert's weight, or zero.
    weights: Vec<f32>,
    /// (rows, 1): the shared expert's gate.
    shared_weights: Vec<f32>,
    /// The rows of one expert.
    gathered: Activations,
    /// What it gives.
    given: Vec<f32>,
}

impl Experts {
    pub(super) fn load(
        weights: &LayerWeights<'_, '_>,
        spec: ExpertsSpec,
    ) -> Result<Self, LoadError> {
        let width = spec.width as usize;
        let router = weights.matrix("ffn_gate_inp.weight")?;
        let hidden = router.columns();
        let mut experts = Vec::with_capacity(spec.count);
        for expert in 0..spec.count {
            let rows = |height: usize| expert * height..(expert + 1) * height;
            experts.push(FeedForward {
                gate: weights.rows("ffn_gate_exps.weight", rows(width))?,
                up: weights.rows("ffn_up_exps.weight", rows(width))?,
                down: weights.rows("ffn_down_exps.weight", rows(hidden))?,
            });
        }
        let shared = match spec.shared {
            None => None,
            Some(_) => Some(Shared {
                gate: weights.row_vector("ffn_gate_inp_shexp.weight")?,
                part: FeedForward {
                    gate: weights.matrix("ffn_gate_shexp.weight")?,
                    up: weights.matrix("ffn_up_shexp.weight")?,
                    down: weights.matrix("ffn_down_shexp.weight")?,
                },
            }),
        };
        Ok(Self {
            spec,
            router,
            experts,
            shared,
        })
    }

    pub(super) fn input_forms(&self) -> Forms {
        let experts = self
            .experts
            .iter()
            .chain(self.shared.iter().map(|shared| &shared.part));
        let matrices = experts.flat_map(|expert| [&expert.gate, &expert.up]);
        let own = [&self.router].into_iter();
        let gate = self.shared.iter().map(|shared| &shared.gate);
        Forms::of(own.chain(gate).chain(matrices).map(Matrix::form))
    }

    /// Reads `work.input` and writes `work.result`.
    pub(super) fn forward(&self, step: &mut Step<'_>, function: Gate, work: &mut Workspace) {
        work.result.fill(0.0);
        self.route(step, work);
        for (index, expert) in self.experts.iter().enumerate() {
            let chosen: Vec<usize> = (0..step.rows)
                .filter(|row| work.mixture.weights[row * self.spec.count + index] > 0.0)
                .collect();
            let weights: Vec<f32> = chosen
                .iter()
                .map(|row| work.mixture.weights[row * self.spec.count + index])
                .collect();
            run_expert(step, expert, function, &chosen, &weights, work);
        }
        if let Some(shared) = &self.shared {
            let all: Vec<usize> = (0..step.rows).collect();
            let weights = std::mem::take(&mut work.mixture.shared_weights);
            run_expert(step, &shared.part, function, &all, &weights, work);
            work.mixture.shared_weights = weights;
        }
    }

    /// Fills `work.mixture.weights`.
    fn route(&self, step: &mut Step<'_>, work: &mut Workspace) {
        let count = self.spec.count;
        let mixture = &mut work.mixture;
        mixture.weights.resize(step.rows * count, 0.0);
        product(
            step,
            &self.router,
            &work.input,
            step.rows,
            &mut mixture.weights,
        );
        for row in mixture.weights.chunks_exact_mut(count) {
            dispatch(
                step.isa,
                Choose {
                    spec: self.spec,
                    row,
                },
            );
        }
        if let Some(shared) = &self.shared {
            mixture.shared_weights.resize(step.rows, 0.0);
            product(
                step,
                &shared.gate,
                &work.input,
                step.rows,
                &mut mixture.shared_weights,
            );
            for weight in &mut mixture.shared_weights {
                dispatch(step.isa, Sigmoid(weight));
            }
        }
    }
}

/// `output = activations · matrix`
fn product(
    step: &mut Step<'_>,
    matrix: &Matrix,
    activations: &Activations,
    rows: usize,
    output: &mut [f32],
) {
    let parts = [Part {
        matrix,
        bias: None,
        column: 0,
    }];
    let input = Rows {
        activations,
        first: 0,
        count: rows,
    };
    let output = Output::new(output, matrix.rows());
    multiply(step.pool, step.isa, &parts, input, output, Store::Replace);
}

/// Adds an expert's part of the chosen rows, weighted, to `work.result`.
fn run_expert(
    step: &mut Step<'_>,
    expert: &FeedForward,
    function: Gate,
    chosen: &[usize],
    weights: &[f32],
    work: &mut Workspace,
) {
    if chosen.is_empty() {
        return;
    }
    let rows = chosen.len();
    let hidden = expert.down.rows();
    let forms = expert.input_forms();
    let gathered = &mut work.mixture.gathered;
    gathered.resize(step.isa, rows, hidden, forms);
    for (to, row) in chosen.iter().enumerate() {
        let from = work.input.floats(*row);
        // SAFETY: the row was written when the input was prepared.
        let from = unsafe { std::slice::from_raw_parts(from, hidden) };
        gathered.floats_mut()[to * hidden..(to + 1) * hidden].copy_from_slice(from);
    }
    let gathered = &work.mixture.gathered;
    for_rows(step, rows, |rows| Quantise {
        to: gathered,
        forms,
        rows,
    });
    let width = expert.gate.rows();
    let forms = Forms::of([expert.down.form()]);
    work.gated.resize(step.isa, rows, width, forms);
    let output = Output::new(work.gated.floats_mut(), width);
    let input = Rows {
        activations: gathered,
        first: 0,
        count: rows,
    };
    multiply_gated(
        step.pool,
        step.isa,
        (&expert.gate, &expert.up),
        input,
        output,
        function,
    );
    let gated = &work.gated;
    for_rows(step, rows, |rows| Quantise {
        to: gated,
        forms,
        rows,
    });
    let mut given = std::mem::take(&mut work.mixture.given);
    given.resize(rows * hidden, 0.0);
    product(step, &expert.down, &work.gated, rows, &mut given);
    for ((row, weight), given) in chosen.iter().zip(weights).zip(given.chunks_exact(hidden)) {
        let result = &mut work.result[row * hidden..(row + 1) * hidden];
        for (result, given) in result.iter_mut().zip(given) {
            *result += weight * given;
        }
    }
    work.mixture.given = given;
}

/// Turns the router's numbers of one row into weights: the softmax over all experts, of which the
/// largest are kept; of equals the first.
struct Choose<'a> {
    spec: ExpertsSpec,
    row: &'a mut [f32],
}

impl Kernel for Choose<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let highest = self.row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in self.row.iter_mut() {
            // SAFETY: the processor has the instruction set.
            *value = unsafe { exp_one::<I>(*value - highest) };
            sum += *value;
        }
        let mut order: Vec<usize> = (0..self.row.len()).collect();
        order.sort_by(|a, b| self.row[*b].total_cmp(&self.row[*a]).then(a.cmp(b)));
        for dropped in order.split_off(self.spec.used.min(order.len())) {
            self.row[dropped] = 0.0;
        }
        let kept: f32 = self.row.iter().map(|value| value / sum).sum();
        let scale = if self.spec.renormalise {
            kept.max(SMALLEST_SUM)
        } else {
            1.0
        };
        for value in self.row.iter_mut() {
            *value = *value / sum / scale;
        }
    }
}

struct Sigmoid<'a>(&'a mut f32);

impl Kernel for Sigmoid<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: the processor has the instruction set.
        *self.0 = 1.0 / (1.0 + unsafe { exp_one::<I>(-*self.0) });
    }
}

#[inline(always)]
unsafe fn exp_one<I: Isa>(x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: the processor has the instruction set, and there is room for a vector.
    unsafe { I::store(lanes.as_mut_ptr(), exp::<I>(I::splat(x))) };
    lanes[0]
}
