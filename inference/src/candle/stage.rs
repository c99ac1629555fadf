//! A loaded stage.

use super::kv::Sequence;
use super::rope::RopeTable;
use super::weights::{LayerWeights, Weights};
use super::{Layer, Matrix, NUMERICS, Norm, Pass};
use crate::arch::{self, Hyper};
use crate::gguf::Gguf;
use crate::layers::LayerRange;
use crate::shape::{EMBEDDING, ModelShape, OUTPUT, OUTPUT_NORM, ROPE_FREQS};
use crate::stage::{
    LoadError, Logits, SeqId, Stage, StageError, StageInput, StageOutput, StepRequest,
};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// A stage of the candle backend.
pub(crate) struct CandleStage {
    range: LayerRange,
    model: Model,
    ropes: Vec<RopeTable>,
    sequences: HashMap<SeqId, Sequence>,
    threads: ThreadPool,
    weights_bytes: u64,
}

/// The weights, and the sizes that go with them.
struct Model {
    hidden: usize,
    kv_width: usize,
    vocab: u32,
    context: usize,
    embedding_scale: f32,
    embedding: Option<Arc<Matrix>>,
    layers: Vec<Box<dyn Layer>>,
    head: Option<Head>,
}

/// What turns the last activations into logits.
struct Head {
    norm: Norm,
    matrix: Arc<Matrix>,
    softcap: Option<f32>,
}

impl CandleStage {
    pub(crate) fn load(
        path: &Path,
        gguf: &Gguf,
        range: LayerRange,
        threads: usize,
    ) -> Result<Self, LoadError> {
        let shape = ModelShape::from_gguf(gguf)?;
        if range.is_empty() || range.end > shape.layers {
            return Err(LoadError::BadRange {
                range,
                layers: shape.layers,
            });
        }
        let hyper = arch::hyper(gguf, &shape)?;
        let weights = Weights::open(path, gguf)?;
        let model = Model::load(&weights, gguf, &shape, &hyper, range)?;
        let divisors = weights.optional_vector(ROPE_FREQS)?.unwrap_or_default();
        let ropes = hyper.ropes.iter();
        Ok(Self {
            range,
            model,
            ropes: ropes.map(|spec| RopeTable::new(spec, &divisors)).collect(),
            sequences: HashMap::new(),
            threads: start_threads(threads)?,
            weights_bytes: weights.bytes(),
        })
    }

    fn sequence(&mut self, seq: SeqId) -> Result<&mut Sequence, StageError> {
        let found = self.sequences.get_mut(&seq);
        found.ok_or(StageError::UnknownSequence { seq })
    }

    /// Brings the input into rows of activations.
    fn rows_of(&self, input: StageInput) -> Result<Vec<f32>, StageError> {
        match (input, &self.model.embedding) {
            (StageInput::Tokens(tokens), Some(embedding)) => self.model.embed(embedding, &tokens),
            (StageInput::Hidden { rows, data }, None) => {
                if rows == 0 || rows.checked_mul(self.model.hidden) != Some(data.len()) {
                    return Err(bad_input(format!(
                        "{} values are not {rows} rows of {}",
                        data.len(),
                        self.model.hidden
                    )));
                }
                check_finite(&data, || "the input".to_owned())?;
                Ok(data)
            }
            (StageInput::Tokens(_), None) => Err(bad_input(format!(
                "layers {} take activations, not tokens",
                self.range
            ))),
            (StageInput::Hidden { .. }, Some(_)) => Err(bad_input(format!(
                "layers {} take tokens, not activations",
                self.range
            ))),
        }
    }
}

impl Stage for CandleStage {
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
        let layers = self.model.layers.len();
        let sequence = Sequence::new(layers, self.model.kv_width, max_tokens)?;
        for rope in &mut self.ropes {
            rope.reach(max_tokens);
        }
        self.sequences.insert(seq, sequence);
        Ok(())
    }

    fn run(&mut self, batch: Vec<StepRequest>) -> Vec<Result<StageOutput, StageError>> {
        batch.into_iter().map(|step| self.run_one(step)).collect()
    }

    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<(), StageError> {
        let sequence = self.sequence(seq)?;
        if len > sequence.len {
            return Err(StageError::PositionGap {
                have: sequence.len,
                got: len,
            });
        }
        sequence.truncate(len);
        Ok(())
    }

    fn len(&self, seq: SeqId) -> Option<usize> {
        self.sequences.get(&seq).map(|sequence| sequence.len)
    }

    fn close(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }
}

impl CandleStage {
    fn run_one(&mut self, step: StepRequest) -> Result<StageOutput, StageError> {
        let StepRequest {
            seq,
            position,
            input,
            want_logits,
        } = step;
        let sequence = self.sequence(seq)?;
        let (have, limit) = (sequence.len, sequence.limit);
        if position != have {
            return Err(StageError::PositionGap {
                have,
                got: position,
            });
        }
        let mut x = self.rows_of(input)?;
        let needed = have + x.len() / self.model.hidden;
        if needed > limit {
            return Err(StageError::ContextOverflow { needed, limit });
        }
        let pass = Pass {
            position,
            ropes: &self.ropes,
        };
        let (model, range) = (&self.model, self.range);
        let sequence = self.sequences.get_mut(&seq);
        let sequence = sequence.expect("the sequence was found above");
        // Nothing is left to cut unless an earlier step panicked half-way.
        sequence.truncate(have);
        let outcome = self.threads.install(|| {
            model.run_layers(&pass, &mut x, sequence);
            model.output(x, want_logits, range)
        });
        match outcome {
            Ok(output) => {
                sequence.len = needed;
                Ok(output)
            }
            Err(error) => {
                sequence.truncate(have);
                Err(error)
            }
        }
    }
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
        for layer in range.iter() {
            let weights = LayerWeights::new(weights, layer);
            layers.push(architecture.load_layer(&weights, shape, hyper)?);
        }
        let is_last = range.is_last(shape.layers);
        let head = is_last.then(|| Head::load(weights, shape, hyper, embedding.as_ref()));
        Ok(Self {
            hidden: shape.hidden as usize,
            kv_width: shape.kv_width() as usize,
            vocab: shape.vocab,
            context: shape.context as usize,
            embedding_scale: hyper.embedding_scale,
            embedding,
            layers,
            head: head.transpose()?,
        })
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
        let mut rows = embedding.gather(tokens);
        for value in &mut rows {
            *value *= self.embedding_scale;
        }
        Ok(rows)
    }

    fn run_layers(&self, pass: &Pass<'_>, x: &mut [f32], sequence: &mut Sequence) {
        for (layer, kv) in self.layers.iter().zip(&mut sequence.layers) {
            layer.forward(pass, x, kv);
        }
    }

    fn output(
        &self,
        x: Vec<f32>,
        want: Logits,
        range: LayerRange,
    ) -> Result<StageOutput, StageError> {
        check_finite(&x, || format!("the output of layers {range}"))?;
        let rows = x.len() / self.hidden;
        let Some(head) = &self.head else {
            return Ok(StageOutput::Hidden { rows, data: x });
        };
        let (rows, wanted) = match want {
            Logits::None => return Ok(StageOutput::Nothing),
            Logits::Last => (1, &x[x.len() - self.hidden..]),
            Logits::All => (rows, x.as_slice()),
        };
        let data = head.logits(wanted);
        check_finite(&data, || "the logits".to_owned())?;
        Ok(StageOutput::Logits { rows, data })
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

    fn logits(&self, x: &[f32]) -> Vec<f32> {
        let mut logits = self.matrix.multiply(&self.norm.apply(x));
        if let Some(cap) = self.softcap {
            for logit in &mut logits {
                *logit = cap * libm::tanhf(*logit / cap);
            }
        }
        logits
    }
}

fn bad_input(reason: String) -> StageError {
    StageError::BadInput { reason }
}

fn check_finite(values: &[f32], what: impl FnOnce() -> String) -> Result<(), StageError> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(StageError::NonFinite { what: what() })
}

fn start_threads(threads: usize) -> Result<ThreadPool, LoadError> {
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("accel-compute-{index}"))
        .build();
    pool.map_err(|error| LoadError::Threads {
        threads,
        reason: error.to_string(),
    })
}
