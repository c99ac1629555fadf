//! A loaded stage: embedding, layers, head, and the caches of its sequences.

use super::NUMERICS;
use super::activations::Forms;
use super::isa::{Isa, Kernel, LANES, dispatch};
use super::kernels::Rows;
use super::kv::{KvShape, Sequence};
use super::layer::{Item, Layer, Step, Workspace, prepare};
use super::math::softcap;
use super::matrix::{Matrix, Output, Part, Store, multiply};
use super::norm::Norm;
use super::pool::Pool;
use super::rope::RopeTable;
use super::weights::{LayerWeights, Weights};
use crate::arch::{self, Hyper};
use crate::gguf::Gguf;
use crate::hardware::IsaName;
use crate::layers::LayerRange;
use crate::shape::{EMBEDDING, ModelShape, OUTPUT, OUTPUT_NORM};
use crate::stage::{
    LoadError, Logits, SeqId, Stage, StageError, StageInput, StageOutput, StepRequest,
};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A stage on the engine's own kernels.
pub(crate) struct CpuStage {
    isa: IsaName,
    range: LayerRange,
    model: Model,
    ropes: Ropes,
    sequences: HashMap<SeqId, Sequence>,
    pool: Pool,
    work: Workspace,
    weights_bytes: u64,
}

/// The rotary embeddings, for usual contexts and for long ones where these differ.
struct Ropes {
    usual: Vec<RopeTable>,
    long: Vec<RopeTable>,
    /// Sequences that may hold more tokens than this take the long ones.
    threshold: Option<usize>,
}

impl Ropes {
    fn of(&self, limit: usize) -> &[RopeTable] {
        match self.threshold {
            Some(threshold) if limit > threshold => &self.long,
            _ => &self.usual,
        }
    }

    fn reach(&mut self, positions: usize) {
        for table in self.usual.iter_mut().chain(&mut self.long) {
            table.reach(positions);
        }
    }
}

/// The weights, and the sizes that go with them.
struct Model {
    hidden: usize,
    kv: KvShape,
    vocab: u32,
    context: usize,
    embedding_scale: f32,
    embedding: Option<Arc<Matrix>>,
    layers: Vec<Layer>,
    head: Option<Head>,
}

/// What turns the last activations into logits.
struct Head {
    norm: Norm,
    matrix: Arc<Matrix>,
    softcap: Option<f32>,
}

/// A step of the batch that was found to be sound.
struct Sound {
    /// Its place in the batch.
    index: usize,
    seq: SeqId,
    position: usize,
    want: Logits,
    rows: Range<usize>,
    failure: Option<StageError>,
}

impl CpuStage {
    pub(crate) fn load(
        path: &Path,
        gguf: &Gguf,
        range: LayerRange,
        threads: usize,
        isa: IsaName,
    ) -> Result<Self, LoadError> {
        let shape = ModelShape::from_gguf(gguf)?;
        if range.is_empty() || range.end > shape.layers {
            return Err(LoadError::BadRange {
                range,
                layers: shape.layers,
            });
        }
        let hyper = arch::hyper(gguf, &shape)?;
        let mut pool = Pool::new(threads).map_err(|error| LoadError::Threads {
            threads,
            reason: error.to_string(),
        })?;
        let weights = Weights::open(path, gguf, &mut pool)?;
        let model = Model::load(&weights, gguf, &shape, &hyper, range)?;
        let ropes = load_ropes(&weights, &hyper)?;
        let weights_bytes = weights.bytes();
        Ok(Self {
            isa,
            range,
            model,
            ropes,
            sequences: HashMap::new(),
            pool,
            work: Workspace::default(),
            weights_bytes,
        })
    }

    /// Checks a step and gives its rows of activations.
    fn admit(&mut self, step: &StepRequest) -> Result<Vec<f32>, StageError> {
        let sequence = self.sequences.get(&step.seq);
        let sequence = sequence.ok_or(StageError::UnknownSequence { seq: step.seq })?;
        let (have, limit) = (sequence.len, sequence.limit);
        if step.position != have {
            return Err(StageError::PositionGap {
                have,
                got: step.position,
            });
        }
        let rows = self.model.rows_of(&step.input, self.range)?;
        let needed = have + rows.len() / self.model.hidden;
        if needed > limit {
            return Err(StageError::ContextOverflow { needed, limit });
        }
        let sequence = self.sequences.get_mut(&step.seq);
        let sequence = sequence.expect("the sequence was found above");
        // What an earlier step left that panicked half-way is cut off first.
        sequence.truncate(have)?;
        sequence.reach(needed)?;
        self.ropes.reach(needed);
        Ok(rows)
    }

    /// Runs the sound steps through the layers, noting those whose numbers are not finite.
    fn run_layers(&mut self, sound: &mut [Sound], x: &mut [f32]) {
        let hidden = self.model.hidden;
        let mut step = Step {
            pool: &mut self.pool,
            isa: self.isa,
            rows: x.len() / hidden,
        };
        for (index, layer) in self.model.layers.iter().enumerate() {
            let mut items = Vec::with_capacity(sound.len());
            for one in sound.iter() {
                let sequence = &self.sequences[&one.seq];
                items.push(Item {
                    rows: one.rows.clone(),
                    position: one.position,
                    kv: &sequence.layers[index],
                    ropes: self.ropes.of(sequence.limit),
                });
            }
            layer.forward(&mut step, &items, x, &mut self.work);
            for one in sound.iter_mut().filter(|one| one.failure.is_none()) {
                let rows = &x[one.rows.start * hidden..one.rows.end * hidden];
                let number = self.range.first + index as u32;
                one.failure = check_finite(rows, || format!("the output of layer {number}")).err();
            }
        }
    }

    /// The logits that the steps want, all in one product.
    fn logits(&mut self, sound: &mut [Sound], x: &[f32]) -> HashMap<usize, Vec<f32>> {
        let (Some(head), hidden) = (&self.model.head, self.model.hidden) else {
            return HashMap::new();
        };
        let mut wanted = Vec::new();
        let mut counts = Vec::new();
        for one in sound.iter().filter(|one| one.failure.is_none()) {
            let rows = match one.want {
                Logits::None => continue,
                Logits::Last => one.rows.end - 1..one.rows.end,
                Logits::All => one.rows.clone(),
            };
            counts.push((one.index, rows.len()));
            wanted.extend_from_slice(&x[rows.start * hidden..rows.end * hidden]);
        }
        if wanted.is_empty() {
            return HashMap::new();
        }
        let mut step = Step {
            pool: &mut self.pool,
            isa: self.isa,
            rows: wanted.len() / hidden,
        };
        let logits = head.logits(&mut step, &wanted, &mut self.work);
        let width = head.matrix.rows();
        let mut from = 0;
        let mut all = HashMap::new();
        for (index, rows) in counts {
            all.insert(index, logits[from..from + rows * width].to_vec());
            from += rows * width;
        }
        for one in sound.iter_mut() {
            if let Some(logits) = all.get(&one.index) {
                one.failure = check_finite(logits, || "the logits".to_owned()).err();
            }
        }
        all
    }

    /// Ends a step: its tokens stay, or are taken back.
    fn finish(
        &mut self,
        one: &mut Sound,
        x: &[f32],
        logits: Option<Vec<f32>>,
    ) -> Result<StageOutput, StageError> {
        let sequence = self.sequences.get_mut(&one.seq);
        let sequence = sequence.expect("sequences are not closed during a step");
        if let Some(failure) = one.failure.take() {
            sequence.truncate(one.position)?;
            return Err(failure);
        }
        sequence.commit(one.position + one.rows.len());
        if self.model.head.is_none() {
            let hidden = self.model.hidden;
            let data = x[one.rows.start * hidden..one.rows.end * hidden].to_vec();
            let rows = one.rows.len();
            return Ok(StageOutput::Hidden { rows, data });
        }
        Ok(match logits {
            None => StageOutput::Nothing,
            Some(data) => StageOutput::Logits {
                rows: data.len() / self.model.vocab as usize,
                data,
            },
        })
    }
}

impl Stage for CpuStage {
    fn range(&self) -> LayerRange {
        self.range
    }

    fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    fn numerics(&self) -> &str {
        NUMERICS
    }

    fn open(&mut self, seq: SeqId, max_tokens: usize) -> Result<(), StageError> {
        if self.sequences.contains_key(&seq) {
            return Err(StageError::SequenceExists { seq });
        }
        if max_tokens > self.model.context {
            return Err(StageError::ContextOverflow {
                needed: max_tokens,
                limit: self.model.context,
            });
        }
        let windows = self.model.layers.iter().map(Layer::window);
        let sequence = Sequence::new(max_tokens, self.model.kv, windows);
        self.sequences.insert(seq, sequence);
        Ok(())
    }

    fn run(&mut self, batch: Vec<StepRequest>) -> Vec<Result<StageOutput, StageError>> {
        let mut outcomes: Vec<Option<Result<StageOutput, StageError>>> = Vec::new();
        let mut sound: Vec<Sound> = Vec::new();
        let mut x = Vec::new();
        for (index, step) in batch.into_iter().enumerate() {
            let admitted = if sound.iter().any(|one| one.seq == step.seq) {
                Err(bad_input(format!(
                    "the sequence {:016x} occurs twice in a batch",
                    step.seq
                )))
            } else {
                self.admit(&step)
            };
            outcomes.push(None);
            match admitted {
                Err(error) => outcomes[index] = Some(Err(error)),
                Ok(rows) => {
                    let start = x.len() / self.model.hidden;
                    x.extend_from_slice(&rows);
                    sound.push(Sound {
                        index,
                        seq: step.seq,
                        position: step.position,
                        want: step.want_logits,
                        rows: start..x.len() / self.model.hidden,
                        failure: None,
                    });
                }
            }
        }
        if !sound.is_empty() {
            let _pinned = self.pool.pin_caller();
            self.run_layers(&mut sound, &mut x);
            let mut logits = self.logits(&mut sound, &x);
            for one in &mut sound {
                let own = logits.remove(&one.index);
                outcomes[one.index] = Some(self.finish(one, &x, own));
            }
        }
        let outcomes = outcomes.into_iter();
        outcomes
            .map(|outcome| outcome.expect("every step was refused or run"))
            .collect()
    }

    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<(), StageError> {
        let sequence = self.sequences.get_mut(&seq);
        let sequence = sequence.ok_or(StageError::UnknownSequence { seq })?;
        if len > sequence.len {
            return Err(StageError::PositionGap {
                have: sequence.len,
                got: len,
            });
        }
        sequence.truncate(len)
    }

    fn export(&self, seq: SeqId, tokens: Range<usize>) -> Result<Vec<u8>, StageError> {
        let sequence = self.sequences.get(&seq);
        let sequence = sequence.ok_or(StageError::UnknownSequence { seq })?;
        sequence.export(tokens)
    }

    fn import(&mut self, seq: SeqId, position: usize, data: &[u8]) -> Result<(), StageError> {
        let sequence = self.sequences.get_mut(&seq);
        let sequence = sequence.ok_or(StageError::UnknownSequence { seq })?;
        sequence.import(position, data)
    }

    fn len(&self, seq: SeqId) -> Option<usize> {
        self.sequences.get(&seq).map(|sequence| sequence.len)
    }

    fn close(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }
}

fn load_ropes(weights: &Weights<'_>, hyper: &Hyper) -> Result<Ropes, LoadError> {
    let tables = |specs: &[super::rope::RopeSpec]| {
        let mut tables = Vec::with_capacity(specs.len());
        for spec in specs {
            let divisors = weights.optional_vector(spec.divisors)?.unwrap_or_default();
            tables.push(RopeTable::new(spec, &divisors));
        }
        Ok::<_, LoadError>(tables)
    };
    Ok(Ropes {
        usual: tables(&hyper.ropes)?,
        long: match &hyper.long {
            None => Vec::new(),
            Some(long) => tables(&long.ropes)?,
        },
        threshold: hyper.long.as_ref().map(|long| long.threshold),
    })
}

impl Model {
    fn load(
        weights: &Weights<'_>,
        gguf: &Gguf,
        shape: &ModelShape,
        hyper: &Hyper,
        range: LayerRange,
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
            },
            vocab: shape.vocab,
            context: shape.context as usize,
            embedding_scale: hyper.embedding_scale,
            embedding,
            layers,
            head: head.transpose()?,
        })
    }

    /// Brings the input into rows of activations.
    fn rows_of(&self, input: &StageInput, range: LayerRange) -> Result<Vec<f32>, StageError> {
        match (input, &self.embedding) {
            (StageInput::Tokens(tokens), Some(embedding)) => self.embed(embedding, tokens),
            (StageInput::Hidden { rows, data }, None) => {
                if *rows == 0 || rows.checked_mul(self.hidden) != Some(data.len()) {
                    return Err(bad_input(format!(
                        "{} values are not {rows} rows of {}",
                        data.len(),
                        self.hidden
                    )));
                }
                check_finite(data, || "the input".to_owned())?;
                Ok(data.clone())
            }
            (StageInput::Tokens(_), None) => Err(bad_input(format!(
                "layers {range} take activations, not tokens"
            ))),
            (StageInput::Hidden { .. }, Some(_)) => Err(bad_input(format!(
                "layers {range} take tokens, not activations"
            ))),
        }
    }

    /// Looks the tokens up; only their rows are turned into floats.
    fn embed(&self, embedding: &Matrix, tokens: &[u32]) -> Result<Vec<f32>, StageError> {
        if tokens.is_empty() {
            return Err(bad_input("a step without tokens".to_owned()));
        }
        if let Some(&token) = tokens.iter().find(|token| **token >= self.vocab) {
            return Err(StageError::TokenOutOfRange {
                token,
                vocab: self.vocab,
            });
        }
        let mut rows = vec![0.0; tokens.len() * self.hidden];
        for (token, row) in tokens.iter().zip(rows.chunks_exact_mut(self.hidden)) {
            embedding.restore_row(*token as usize, row);
        }
        for value in &mut rows {
            *value *= self.embedding_scale;
        }
        Ok(rows)
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

    fn logits(&self, step: &mut Step<'_>, x: &[f32], work: &mut Workspace) -> Vec<f32> {
        let forms = Forms::of([self.matrix.form()]);
        let input = work.input_mut();
        prepare(step, &self.norm, x, input, forms);
        let width = self.matrix.rows();
        let mut logits = vec![0.0; step.rows * width];
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
        let output = Output::new(&mut logits, width);
        multiply(step.pool, step.isa, &parts, rows, output, Store::Replace);
        if let Some(cap) = self.softcap {
            dispatch(step.isa, Softcap(&mut logits, cap));
        }
        logits
    }
}

struct Softcap<'a>(&'a mut [f32], f32);

impl Kernel for Softcap<'_> {
    type Output = ();

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

fn bad_input(reason: String) -> StageError {
    StageError::BadInput { reason }
}

fn check_finite(values: &[f32], what: impl FnOnce() -> String) -> Result<(), StageError> {
    // A sum of products with zero is zero unless a value is not finite; the compiler makes vectors
    // of it, which it does not of a search.
    let mut probe = 0.0;
    for value in values {
        probe += value * 0.0;
    }
    if probe == 0.0 {
        return Ok(());
    }
    Err(StageError::NonFinite { what: what() })
}
