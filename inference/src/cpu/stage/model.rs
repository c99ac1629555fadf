//! The weights of a stage outside its layers, and what is computed with them.

use super::{StageError, StageInput};
use crate::arch::{self, Hyper};
use crate::cpu::activations::Forms;
use crate::cpu::isa::{Isa, Kernel, LANES, dispatch};
use crate::cpu::kernels::Rows;
use crate::cpu::kv::KvShape;
use crate::cpu::layer::{Layer, Step, Workspace, prepare};
use crate::cpu::math::softcap;
use crate::cpu::matrix::{Matrix, Output, Part, Store, multiply};
use crate::cpu::norm::Norm;
use crate::cpu::rope::{RopeSpec, RopeTable};
use crate::cpu::weights::{LayerWeights, Weights};
use crate::gguf::Gguf;
use crate::kv_format::KvFormat;
use crate::layers::LayerRange;
use crate::shape::{EMBEDDING, ModelShape, OUTPUT, OUTPUT_NORM};
use crate::stage::LoadError;
use std::sync::Arc;

/// The rotary embeddings, for usual contexts and for long ones where these differ.
pub(super) struct Ropes {
    usual: Vec<RopeTable>,
    long: Vec<RopeTable>,
    /// Sequences that may hold more tokens than this take the long ones.
    threshold: Option<usize>,
}

impl Ropes {
    pub(super) fn load(weights: &Weights<'_>, hyper: &Hyper) -> Result<Self, LoadError> {
        let tables = |specs: &[RopeSpec]| {
            let mut tables = Vec::with_capacity(specs.len());
            for spec in specs {
                let divisors = weights.optional_vector(spec.divisors)?.unwrap_or_default();
                tables.push(RopeTable::new(spec, &divisors));
            }
            Ok::<_, LoadError>(tables)
        };
        Ok(Self {
            usual: tables(&hyper.ropes)?,
            long: match &hyper.long {
                None => Vec::new(),
                Some(long) => tables(&long.ropes)?,
            },
            threshold: hyper.long.as_ref().map(|long| long.threshold),
        })
    }

    pub(super) fn of(&self, limit: usize) -> &[RopeTable] {
        match self.threshold {
            Some(threshold) if limit > threshold => &self.long,
            _ => &self.usual,
        }
    }

    pub(super) fn reach(&mut self, positions: usize) {
        for table in self.usual.iter_mut().chain(&mut self.long) {
            table.reach(positions);
        }
    }
}

/// The weights, and the sizes that go with them.
pub(super) struct Model {
    pub hidden: usize,
    pub kv: KvShape,
    pub vocab: u32,
    pub context: usize,
    pub embedding_scale: f32,
    pub embedding: Option<Arc<Matrix>>,
    pub layers: Vec<Layer>,
    pub head: Option<Head>,
}

/// What turns the last activations into logits.
pub(super) struct Head {
    norm: Norm,
    pub matrix: Arc<Matrix>,
    softcap: Option<f32>,
}

impl Model {
    pub(super) fn load(
        weights: &Weights<'_>,
        gguf: &Gguf,
        shape: &ModelShape,
        hyper: &Hyper,
        range: LayerRange,
        kv: KvFormat,
    ) -> Result<Self, LoadError> {
        let architecture = arch::of(gguf)?;
        let is_first = range.is_first();
        let table = is_first.then(|| weights.matrix(EMBEDDING)).transpose()?;
        let embedding = table.map(Arc::new);
        let mut layers = Vec::with_capacity(range.len() as usize);
        for number in range.iter() {
            let spec = architecture.layer(number, shape, hyper);
            let weights = LayerWeights::new(weights, number);
            layers.push(Layer::load(&weights, shape, spec)?);
        }
        let is_last = range.is_last(shape.layers);
        let head = is_last.then(|| Head::load(weights, shape, hyper, embedding.as_ref()));
        Ok(Self {
            hidden: shape.hidden as usize,
            kv: KvShape {
                kv_heads: shape.kv_heads as usize,
                head_dim: shape.head_dim as usize,
                format: kv,
            },
            vocab: shape.vocab,
            context: shape.context as usize,
            embedding_scale: hyper.embedding_scale,
            embedding,
            layers,
            head: head.transpose()?,
        })
    }

    /// Checks the input and tells how many rows of activations it becomes.
    pub(super) fn check(&self, input: &StageInput, range: LayerRange) -> Result<usize, StageError> {
        match (input, &self.embedding) {
            (StageInput::Tokens(tokens), Some(_)) => self.check_tokens(tokens),
            (StageInput::Hidden { rows, data }, None) => {
                if *rows == 0 || rows.checked_mul(self.hidden) != Some(data.len()) {
                    return Err(bad_input(format!(
                        "{} values are not {rows} rows of {}",
                        data.len(),
                        self.hidden
                    )));
                }
                check_finite(data, || "the input".to_owned())?;
                Ok(*rows)
            }
            (StageInput::Tokens(_), None) => Err(bad_input(format!(
                "layers {range} take activations, not tokens"
            ))),
            (StageInput::Hidden { .. }, Some(_)) => Err(bad_input(format!(
                "layers {range} take tokens, not activations"
            ))),
        }
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<usize, StageError> {
        if tokens.is_empty() {
            return Err(bad_input("a step without tokens".to_owned()));
        }
        match tokens.iter().find(|token| **token >= self.vocab) {
            None => Ok(tokens.len()),
            Some(&token) => Err(StageError::TokenOutOfRange {
                token,
                vocab: self.vocab,
            }),
        }
    }

    /// Appends the rows of an input that was checked.
    pub(super) fn append(&self, input: &StageInput, x: &mut Vec<f32>) {
        match (input, &self.embedding) {
            (StageInput::Tokens(tokens), Some(embedding)) => self.embed(embedding, tokens, x),
            (StageInput::Hidden { data, .. }, _) => x.extend_from_slice(data),
            (StageInput::Tokens(_), None) => unreachable!("such an input is refused"),
        }
    }

    /// Looks the tokens up; only their rows are turned into floats.
    fn embed(&self, embedding: &Matrix, tokens: &[u32], x: &mut Vec<f32>) {
        let start = x.len();
        x.resize(start + tokens.len() * self.hidden, 0.0);
        let rows = &mut x[start..];
        for (token, row) in tokens.iter().zip(rows.chunks_exact_mut(self.hidden)) {
            embedding.restore_row(*token as usize, row);
        }
        for value in rows {
            *value *= self.embedding_scale;
        }
    }
}

impl Head {
    fn load(
        weights: &Weights<'_>,
        shape: &ModelShape,
        hyper: &Hyper,
        embedding: Option<&Arc<Matrix>>,
    ) -> Result<Self, LoadError> {
        let matrix = match embedding {
            Some(table) if shape.tied_embeddings => table.clone(),
            _ if shape.tied_embeddings => Arc::new(weights.matrix(EMBEDDING)?),
            _ => Arc::new(weights.matrix(OUTPUT)?),
        };
        Ok(Self {
            norm: Norm::new(weights.vector(OUTPUT_NORM)?, hyper.rms_eps),
            matrix,
            softcap: hyper.logit_softcap,
        })
    }

    /// Fills `logits` with a row for each row of `x`.
    pub(super) fn logits(
        &self,
        step: &mut Step<'_>,
        x: &[f32],
        work: &mut Workspace,
        logits: &mut Vec<f32>,
    ) {
        let forms = Forms::of([self.matrix.form()]);
        let input = work.input_mut();
        prepare(step, &self.norm, x, input, forms);
        let width = self.matrix.rows();
        logits.resize(step.rows * width, 0.0);
        let parts = [Part {
            matrix: &self.matrix,
            bias: None,
            column: 0,
        }];
        let rows = Rows {
            activations: input,
            first: 0,
            count: step.rows,
        };
        let output = Output::new(logits, width);
        multiply(step.pool, step.isa, &parts, rows, output, Store::Replace);
        if let Some(cap) = self.softcap {
            dispatch(step.isa, Softcap(logits, cap));
        }
    }
}

struct Softcap<'a>(&'a mut [f32], f32);

impl Kernel for Softcap<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        for values in self.0.chunks_mut(LANES) {
            let mut lanes = [0.0; LANES];
            lanes[..values.len()].copy_from_slice(values);
            // SAFETY: the processor has the instruction set; the array is one vector.
            unsafe {
                I::store(
                    lanes.as_mut_ptr(),
                    softcap::<I>(I::load(lanes.as_ptr()), self.1),
                )
            };
            values.copy_from_slice(&lanes[..values.len()]);
        }
    }
}

pub(super) fn bad_input(reason: String) -> StageError {
    StageError::BadInput { reason }
}

pub(super) fn check_finite(
    values: &[f32],
    what: impl FnOnce() -> String,
) -> Result<(), StageError> {
    // A sum of products with zero is zero unless a value is not finite; of several sums the
    // compiler makes vectors, which it does not of one, nor of a search.
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * 0.0;
        }
    }
    let rest = rest.iter().map(|value| value * 0.0);
    if sums.into_iter().chain(rest).sum::<f32>() == 0.0 {
        return Ok(());
    }
    Err(StageError::NonFinite { what: what() })
}
