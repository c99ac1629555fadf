//! A loaded stage: embedding, layers, head, and the caches of its sequences.

mod model;

use super::kv::{Budget, Sequence};
use super::layer::{Item, Layer, Step, Workspace};
use super::pool::Pool;
use super::weights::Weights;
use crate::arch;
use crate::gguf::Gguf;
use crate::hardware::{self, IsaName};
use crate::layers::LayerRange;
use crate::shape::ModelShape;
use crate::stage::{
    LoadError, LoadOptions, LogitRows, Logits, MAX_THREADS, SeqId, Stage, StageError, StageInput,
    StageOutput, StepRequest,
};
use model::{Model, Ropes, bad_input, check_finite};
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
    budget: Budget,
    pool: Pool,
    work: Workspace,
    /// The logits of the last batch, whose memory is used again when nobody looks at them.
    logits: Arc<Vec<f32>>,
    weights_bytes: u64,
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
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let isa = match options.isa {
            // A name says nothing of the machine: kernels that it cannot run would be unsound.
            Some(isa) => hardware::available(isa.name())?,
            None => hardware::chosen_isa()?,
        };
        let shape = ModelShape::from_gguf(gguf)?;
        if range.is_empty() || range.end > shape.layers {
            return Err(LoadError::BadRange {
                range,
                layers: shape.layers,
            });
        }
        let hyper = arch::hyper(gguf, &shape)?;
        let threads = options.threads.unwrap_or_else(hardware::cores);
        let threads = threads.clamp(1, MAX_THREADS);
        let mut pool = Pool::new(threads).map_err(|error| LoadError::Threads {
            threads,
            reason: error.to_string(),
        })?;
        let weights = Weights::open(path, gguf, &mut pool)?;
        let model = Model::load(&weights, gguf, &shape, &hyper, range, options.kv)?;
        let ropes = Ropes::load(&weights, &hyper)?;
        let weights_bytes = weights.finish();
        Ok(Self {
            isa,
            range,
            model,
            ropes,
            sequences: HashMap::new(),
            budget: Budget::new(options.kv_bytes),
            pool,
            work: Workspace::default(),
            logits: Arc::default(),
            weights_bytes,
        })
    }

    /// Checks a step and appends its rows of activations; tells which they are.
    fn admit(&mut self, step: &StepRequest, x: &mut Vec<f32>) -> Result<Range<usize>, StageError> {
        let sequence = self.sequences.get(&step.seq);
        let sequence = sequence.ok_or(StageError::UnknownSequence { seq: step.seq })?;
        let (have, limit) = (sequence.len, sequence.limit);
        if step.position != have {
            return Err(StageError::PositionGap {
                have,
                got: step.position,
            });
        }
        let rows = self.model.check(&step.input, self.range)?;
        let needed = have + rows;
        if needed > limit {
            return Err(StageError::ContextOverflow { needed, limit });
        }
        let sequence = self.sequences.get_mut(&step.seq);
        let sequence = sequence.expect("the sequence was found above");
        // What an earlier step left that panicked half-way is cut off first.
        sequence.truncate(have)?;
        sequence.reach(needed)?;
        self.ropes.reach(needed);
        let start = x.len() / self.model.hidden;
        self.model.append(&step.input, x);
        Ok(start..start + rows)
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
    fn logits(&mut self, sound: &mut [Sound], x: &[f32]) -> HashMap<usize, LogitRows> {
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
        if Arc::get_mut(&mut self.logits).is_none() {
            self.logits = Arc::default();
        }
        let logits = Arc::get_mut(&mut self.logits).expect("nobody else has them");
        head.logits(&mut step, &wanted, &mut self.work, logits);
        let width = head.matrix.rows();
        let mut from = 0;
        let mut all = HashMap::new();
        for (index, rows) in counts {
            let own = from..from + rows * width;
            all.insert(index, LogitRows::new(Arc::clone(&self.logits), own));
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
        logits: Option<LogitRows>,
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
        self.model.kv.format.numerics()
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
        let sequence = Sequence::new(max_tokens, self.model.kv, windows, &self.budget);
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
                self.admit(&step, &mut x)
            };
            outcomes.push(None);
            match admitted {
                Err(error) => outcomes[index] = Some(Err(error)),
                Ok(rows) => sound.push(Sound {
                    index,
                    seq: step.seq,
                    position: step.position,
                    want: step.want_logits,
                    rows,
                    failure: None,
                }),
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
