//! How well a model predicts a text, scored as llama.cpp's `llama-perplexity` does.
//!
//! * A final newline is dropped; the text is tokenized once, as a whole, without reading special
//!   tokens out of it. What does not fill a chunk is left out.
//! * Each chunk goes through the model alone. Where the model's texts begin with BOS, BOS takes
//!   the place of the chunk's first token.
//! * Only the second half of a chunk is scored, so that every prediction has some context: with
//!   chunks of 512 the logits at positions 256 to 510 predict the tokens 257 to 511.

use crate::eval::log_sum_exp;
use crate::gguf::{Gguf, GgufError};
use crate::layers::LayerRange;
use crate::shape::{ModelError, ModelShape};
use crate::stage::{
    LoadError, LoadOptions, Logits, Stage, StageError, StageInput, StageOutput, load_stage,
};
use crate::tokenizer::{Tokenizer, TokenizerError};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Tokens of a chunk unless something else is asked for.
pub const DEFAULT_CHUNK: usize = 512;
/// The shortest chunk whose second half holds a token that can be predicted from it.
pub const MIN_CHUNK: usize = 3;

/// Rows of logits that are held at a time; a row of a large vocabulary takes a megabyte.
const ROWS: usize = 32;
const SEQ: u64 = 0;

/// How well a model predicts a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PerplexityReport {
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Chunks that the text was cut into.
    pub chunks: usize,
    /// Mean negative log-likelihood of the predicted tokens.
    pub nll: f64,
    /// Its exponential: among how many tokens the model is, on average, as good as undecided.
    pub perplexity: f64,
}

/// Why a text could not be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PerplexityError {
    /// The text cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is no text in the file.
    #[error("{} is empty; name a file with text", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else than text.
    #[error("{} is not UTF-8 text: byte {valid} is wrong; convert it to UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Bytes before the first wrong one.
        valid: usize,
    },
    /// The text does not fill one chunk.
    #[error(
        "the text has {tokens} tokens, and one chunk needs {needed}; use a longer text or smaller chunks"
    )]
    TooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a chunk.
        needed: usize,
    },
    /// No chunk has this size with this model.
    #[error(
        "chunks of {chunk} tokens are not within {MIN_CHUNK}..={context}, which the model can score; choose another size"
    )]
    BadChunk {
        /// What was asked for.
        chunk: usize,
        /// The model's longest sequence.
        context: usize,
    },
    /// The model file's header is not usable.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The text cannot be turned into tokens.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A step failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// Scores the text file at `text` with the model file at `model`, in chunks of `chunk` tokens.
/// `progress` is told how many of how many chunks are done.
pub fn perplexity(
    model: &Path,
    text: &Path,
    chunk: usize,
    options: &LoadOptions,
    progress: &dyn Fn(usize, usize),
) -> Result<PerplexityReport, PerplexityError> {
    let text = read_text(text)?;
    let gguf = Gguf::open(model)?;
    let shape = ModelShape::from_gguf(&gguf)?;
    let context = shape.context as usize;
    if !(MIN_CHUNK..=context).contains(&chunk) {
        return Err(PerplexityError::BadChunk { chunk, context });
    }
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let tokens = tokenizer.encode(&text, true, false)?;
    if tokens.len() < chunk {
        let (tokens, needed) = (tokens.len(), chunk);
        return Err(PerplexityError::TooShort { tokens, needed });
    }
    let mut stage = load_stage(model, &gguf, LayerRange::whole(shape.layers), options)?;
    let first = tokenizer.first();
    Ok(score(stage.as_mut(), &tokens, first, chunk, progress)?)
}

/// The text as llama.cpp reads it: without the newline at its end.
fn read_text(path: &Path) -> Result<String, PerplexityError> {
    let bytes = std::fs::read(path).map_err(|source| PerplexityError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let mut text = String::from_utf8(bytes).map_err(|error| PerplexityError::NotUtf8 {
        path: path.to_path_buf(),
        valid: error.utf8_error().valid_up_to(),
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.is_empty() {
        return Err(PerplexityError::Empty {
            path: path.to_path_buf(),
        });
    }
    Ok(text)
}

/// Scores tokens with a loaded model (a stage of all layers). `first`, if any, takes the place
/// of the first token of each chunk.
fn score(
    stage: &mut dyn Stage,
    tokens: &[u32],
    first: Option<u32>,
    chunk: usize,
    progress: &dyn Fn(usize, usize),
) -> Result<PerplexityReport, StageError> {
    let chunks = tokens.len() / chunk;
    let mut nll = 0.0;
    let mut scored = 0;
    for (done, part) in tokens.chunks_exact(chunk).enumerate() {
        progress(done, chunks);
        let mut part = part.to_vec();
        part[0] = first.unwrap_or(part[0]);
        stage.open(SEQ, chunk)?;
        let outcome = score_chunk(stage, &part);
        stage.close(SEQ);
        nll += outcome?;
        scored += part.len() - 1 - part.len() / 2;
    }
    progress(chunks, chunks);
    let nll = nll / scored as f64;
    Ok(PerplexityReport {
        tokens: scored,
        chunks,
        nll,
        perplexity: libm::exp(nll),
    })
}

/// The negative log-likelihood of the second half of a chunk, all its tokens together.
fn score_chunk(stage: &mut dyn Stage, chunk: &[u32]) -> Result<f64, StageError> {
    let (context, half) = chunk.split_at(chunk.len() / 2);
    stage.step(SEQ, 0, StageInput::Tokens(context.to_vec()), Logits::None)?;
    let mut position = context.len();
    let mut nll = 0.0;
    let inputs = &half[..half.len() - 1];
    for (inputs, targets) in inputs.chunks(ROWS).zip(half[1..].chunks(ROWS)) {
        let input = StageInput::Tokens(inputs.to_vec());
        let output = stage.step(SEQ, position, input, Logits::All)?;
        let StageOutput::Logits { rows, data } = output else {
            let reason = "scoring needs a stage that holds every layer".to_owned();
            return Err(StageError::BadInput { reason });
        };
        let width = data.len() / rows.max(1);
        for (logits, target) in data.chunks_exact(width.max(1)).zip(targets) {
            nll += surprise(logits, *target)?;
        }
        position += inputs.len();
    }
    Ok(nll)
}

/// The negative log-likelihood of a token.
fn surprise(logits: &[f32], token: u32) -> Result<f64, StageError> {
    let logit = logits.get(token as usize);
    let logit = logit.ok_or(StageError::TokenOutOfRange {
        token,
        vocab: logits.len() as u32,
    })?;
    Ok(log_sum_exp(logits) - f64::from(*logit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{SyntheticArch, SyntheticSpec, generate};

    /// A text, and a model to score it with.
    struct Case {
        dir: tempfile::TempDir,
        model: PathBuf,
    }

    impl Case {
        fn new(arch: SyntheticArch) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let model = dir.path().join("model.gguf");
            generate(&SyntheticSpec::small(arch), &model).unwrap();
            Self { dir, model }
        }

        fn write(&self, text: &[u8]) -> PathBuf {
            let path = self.dir.path().join("text.txt");
            std::fs::write(&path, text).unwrap();
            path
        }

        fn score(&self, text: &Path, chunk: usize, threads: usize) -> PerplexityReport {
            self.try_score(text, chunk, threads).unwrap()
        }

        fn try_score(
            &self,
            text: &Path,
            chunk: usize,
            threads: usize,
        ) -> Result<PerplexityReport, PerplexityError> {
            let options = LoadOptions {
                threads: Some(threads),
                ..LoadOptions::default()
            };
            perplexity(&self.model, text, chunk, &options, &|_, _| {})
        }

        /// The same, written down plainly: token by token, probabilities by their definition.
        fn score_plainly(&self, text: &str, chunk: usize) -> Vec<f64> {
            let gguf = Gguf::open(&self.model).unwrap();
            let layers = ModelShape::from_gguf(&gguf).unwrap().layers;
            let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
            let range = LayerRange::whole(layers);
            let mut stage = load_stage(&self.model, &gguf, range, &LoadOptions::default()).unwrap();
            let tokens = tokenizer.encode(text, true, false).unwrap();
            let has_bos = tokens[0] == tokenizer.bos().unwrap();
            let mut all = Vec::new();
            for number in 0..tokens.len() / chunk {
                let seq = number as u64;
                stage.open(seq, chunk).unwrap();
                for position in 0..chunk - 1 {
                    let mut token = tokens[number * chunk + position];
                    if position == 0 && has_bos {
                        token = tokens[0];
                    }
                    let input = StageInput::Tokens(vec![token]);
                    let output = stage.step(seq, position, input, Logits::Last).unwrap();
                    let StageOutput::Logits { data, .. } = output else {
                        panic!("logits were asked for");
                    };
                    if position >= chunk / 2 {
                        let next = tokens[number * chunk + position + 1] as usize;
                        let powers = data.iter().map(|logit| f64::from(*logit).exp());
                        all.push(-(f64::from(data[next]).exp() / powers.sum::<f64>()).ln());
                    }
                }
            }
            all
        }
    }

    const TEXT: &str = "A node measures what it can do, and says so. The others plan with it: \
        who holds which layers, and how long a token takes from the first of them to the last. \
        <s> is no token here, nor is <|im_end|>, but text.\n\n  Ünïcödé, too.";

    #[test]
    fn a_text_is_scored_as_a_plain_computation_scores_it() {
        // One tokenizer puts BOS in front, one does not.
        for arch in [SyntheticArch::Gemma3, SyntheticArch::Qwen2] {
            let case = Case::new(arch);
            let text = case.write(TEXT.as_bytes());
            for chunk in [16, 31, 80] {
                let expected = case.score_plainly(TEXT, chunk);
                let report = case.score(&text, chunk, 2);
                let nll = expected.iter().sum::<f64>() / expected.len() as f64;
                assert_eq!(report.tokens, expected.len(), "{arch:?}, {chunk}");
                assert_eq!(report.tokens, report.chunks * (chunk - 1 - chunk / 2));
                assert!((report.nll - nll).abs() < 1e-9, "{arch:?}, {chunk}");
                assert!((report.perplexity / nll.exp() - 1.0).abs() < 1e-9);
                assert_eq!(case.score(&text, chunk, 1), report);
            }
        }
    }

    #[test]
    fn one_final_newline_is_not_part_of_the_text() {
        let case = Case::new(SyntheticArch::Qwen2);
        let tokens = Tokenizer::from_gguf(&Gguf::open(&case.model).unwrap()).unwrap();
        let chunk = tokens.encode(TEXT, true, false).unwrap().len();
        let bare = case.score(&case.write(TEXT.as_bytes()), chunk, 1);
        let ended = case.write(format!("{TEXT}\n").as_bytes());
        assert_eq!(case.score(&ended, chunk, 1), bare);
        let longer = case.try_score(&ended, chunk + 1, 1).unwrap_err();
        assert!(matches!(longer, PerplexityError::TooShort { .. }));
    }

    #[test]
    fn what_cannot_be_scored_is_an_error_that_says_why() {
        let case = Case::new(SyntheticArch::Qwen2);
        let missing = case.dir.path().join("nothing.txt");
        let error = case.try_score(&missing, 16, 1).unwrap_err();
        assert!(matches!(error, PerplexityError::Read { .. }));
        for empty in ["", "\n"] {
            let empty = case.write(empty.as_bytes());
            let error = case.try_score(&empty, 16, 1).unwrap_err();
            assert!(matches!(error, PerplexityError::Empty { .. }));
        }
        let foreign = case.write(b"caf\xe9");
        let error = case.try_score(&foreign, 16, 1).unwrap_err();
        assert!(matches!(error, PerplexityError::NotUtf8 { valid: 3, .. }));
        let short = case.write(b"x");
        let error = case.try_score(&short, 16, 1).unwrap_err();
        assert!(error.to_string().contains("has 1 tokens"), "{error}");
        assert!(error.to_string().contains("needs 16"), "{error}");
        let text = case.write(TEXT.as_bytes());
        for chunk in [0, MIN_CHUNK - 1, 513] {
            let error = case.try_score(&text, chunk, 1).unwrap_err();
            assert!(matches!(error, PerplexityError::BadChunk { .. }), "{chunk}");
        }
        assert_eq!(
            case.score(&text, MIN_CHUNK, 1).tokens,
            case.score(&text, MIN_CHUNK, 1).chunks
        );
    }
}
