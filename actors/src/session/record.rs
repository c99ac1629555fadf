//! What the journal holds of a session: an opening record, a record per token, an outcome. With
//! the model's blocks that is all it takes to go on anywhere. Versioning, checksums and order are
//! the journal's; here is only the content. What is read back is checked as if a stranger had
//! written it.

use accel_inference::{SamplingParams, StopMatcher};
use accel_p2p::wire::limit;
use serde::{Deserialize, Serialize};

use super::event::{Drawn, Outcome};
use crate::error::Failure;
use crate::request::FinishReason;
use crate::tolerance::FaultTolerance;

/// The form of the opening record. Version 1 lacked what a stream needs to go on.
const VERSION: u32 = 2;
/// The longest description of a stream's form.
pub(crate) const FORM_LIMIT: usize = 4096;
/// The largest answer that a session may ask for: no context is longer.
const LONGEST: u64 = 1 << 32;

/// Describes the request completely: the answer is a function of this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OpeningRecord {
    /// Form of this record.
    pub(crate) version: u32,
    /// The model's CID.
    pub(crate) model: String,
    /// What the model is called in the answer.
    pub(crate) name: String,
    /// The prompt.
    pub(crate) prompt: Vec<u32>,
    /// How tokens are drawn.
    pub(crate) sampling: SamplingParams,
    /// The longest answer.
    pub(crate) max_new: u64,
    /// The answer ends before any of these texts.
    pub(crate) stop: Vec<String>,
    /// The numerics class in which it is computed, from the first token to the last.
    pub(crate) numerics: String,
    /// How much it survives.
    pub(crate) fault_tolerance: FaultTolerance,
    /// How the client wants its stream written; the session only keeps it. Absent where nobody
    /// can come back for the answer.
    pub(crate) form: Option<String>,
}

/// Why a session cannot be gone on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// Another version of this program wrote it.
    #[error("another version of accel journaled the session")]
    Version,
    /// It is not what this program writes.
    #[error("its journal cannot be read: {0}")]
    Malformed(&'static str),
}

impl OpeningRecord {
    /// The version that is written.
    pub(crate) const fn version() -> u32 {
        VERSION
    }

    /// As it is journaled.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and texts always serialise")
    }

    /// Reads a record back, and checks everything that can be checked without the model.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let no_json = |_| RecordError::Malformed("the opening record is not of its form");
        let Versioned { version } = serde_json::from_slice(bytes).map_err(no_json)?;
        if version != VERSION {
            return Err(RecordError::Version);
        }
        let record: Self = serde_json::from_slice(bytes).map_err(no_json)?;
        record.check().map_err(RecordError::Malformed)?;
        Ok(record)
    }

    fn check(&self) -> Result<(), &'static str> {
        let rules = [
            (!self.prompt.is_empty(), "the prompt is empty"),
            (
                (1..=LONGEST).contains(&self.max_new),
                "the answer has no length",
            ),
            (self.sampling.check().is_ok(), "the sampling is impossible"),
            (
                self.sampling.top_logprobs as usize <= limit::TOP_LOGPROBS,
                "too many alternatives",
            ),
            (
                StopMatcher::new(&self.stop).is_ok(),
                "the stop texts are impossible",
            ),
            (self.name.len() <= limit::NAME, "the name is too long"),
            (
                self.numerics.len() <= limit::LABEL,
                "the numerics class is too long",
            ),
            (
                self.form
                    .as_ref()
                    .is_none_or(|form| form.len() <= FORM_LIMIT),
                "the form of the stream is too long",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(broken),
            None => Ok(()),
        }
    }

    /// Whether a client may come back for the answer.
    pub(crate) fn is_resumable(&self) -> bool {
        self.form.is_some() && self.fault_tolerance >= FaultTolerance::Medium
    }

    /// Whether other nodes keep its journal as well.
    pub(crate) fn is_replicated(&self) -> bool {
        self.is_resumable() && self.fault_tolerance >= FaultTolerance::High
    }
}

/// A token as it is journaled, with all that its client was told of it: the id, its
/// log-probability, and the alternatives; little endian, 4 bytes each.
pub(crate) fn token_record(drawn: &Drawn) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + 8 * drawn.top.len());
    let mut put = |token: u32, logprob: f32| {
        bytes.extend_from_slice(&token.to_le_bytes());
        bytes.extend_from_slice(&logprob.to_le_bytes());
    };
    put(drawn.token, drawn.logprob);
    for (token, logprob) in &drawn.top {
        put(*token, *logprob);
    }
    bytes
}

/// A token as it was journaled; every id is below `vocab`.
pub(crate) fn read_token(bytes: &[u8], vocab: u32) -> Result<Drawn, RecordError> {
    let malformed = RecordError::Malformed("a token is not of its form");
    let (entries, rest) = bytes.as_chunks::<8>();
    let Some((first, others)) = entries.split_first() else {
        return Err(malformed);
    };
    if !rest.is_empty() || others.len() > limit::TOP_LOGPROBS {
        return Err(malformed);
    }
    let pair = |entry: &[u8; 8]| {
        let [a, b, c, d, e, f, g, h] = *entry;
        (
            u32::from_le_bytes([a, b, c, d]),
            f32::from_le_bytes([e, f, g, h]),
        )
    };
    let (token, logprob) = pair(first);
    let top: Vec<(u32, f32)> = others.iter().map(pair).collect();
    if token >= vocab || top.iter().any(|(other, _)| *other >= vocab) {
        return Err(RecordError::Malformed("a token is outside the vocabulary"));
    }
    Ok(Drawn {
        token,
        logprob,
        top,
    })
}

/// How a session ended, as the journal tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    Done(FinishReason),
    /// In an error: its code, and what was said.
    Failed(String, String),
    Cancelled,
}

/// An outcome as it is journaled; none for sessions that may be gone on with.
pub(crate) fn outcome_record(outcome: &Outcome) -> Option<Vec<u8>> {
    let text = match outcome {
        Outcome::Done {
            finish: FinishReason::Stop,
            ..
        } => "done: stop".to_owned(),
        Outcome::Done {
            finish: FinishReason::Length,
            ..
        } => "done: length".to_owned(),
        Outcome::Failed(failure) => failed_record(failure),
        Outcome::Cancelled => "cancelled".to_owned(),
        Outcome::Suspended(_) | Outcome::HandedOver(_) | Outcome::Moved(_) => return None,
    };
    Some(text.into_bytes())
}

/// The outcome of a session that failed.
pub(crate) fn failed_record(failure: &Failure) -> String {
    format!("failed: {}: {}", failure.code, failure.message)
}

/// Reads an outcome back.
pub(crate) fn read_outcome(bytes: &[u8]) -> Result<Ended, RecordError> {
    let malformed = RecordError::Malformed("the outcome is not of its form");
    let text = std::str::from_utf8(bytes).map_err(|_| malformed.clone())?;
    match text {
        "done: stop" => return Ok(Ended::Done(FinishReason::Stop)),
        "done: length" => return Ok(Ended::Done(FinishReason::Length)),
        "cancelled" => return Ok(Ended::Cancelled),
        _ => {}
    }
    let failed = text.strip_prefix("failed: ");
    let (code, message) = failed
        .and_then(|rest| rest.split_once(": "))
        .ok_or(malformed)?;
    let clip = accel_p2p::wire::clip;
    Ok(Ended::Failed(
        clip(code, limit::LABEL),
        clip(message, limit::MESSAGE),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> OpeningRecord {
        OpeningRecord {
            version: VERSION,
            model: "cid".into(),
            name: "small".into(),
            prompt: vec![1, 2],
            sampling: SamplingParams {
                seed: u64::MAX,
                temperature: 0.7,
                ..SamplingParams::default()
            },
            max_new: 7,
            stop: vec!["\n".into()],
            numerics: "cpu-1".into(),
            fault_tolerance: FaultTolerance::Medium,
            form: Some("{}".into()),
        }
    }

    #[test]
    fn an_opening_record_survives_the_journal() {
        let record = record();
        assert_eq!(OpeningRecord::read(&record.to_bytes()), Ok(record));
    }

    #[test]
    fn a_record_of_another_version_and_one_that_cannot_be_are_refused() {
        type Change = fn(&mut OpeningRecord);
        let changed = |change: Change| {
            let mut record = record();
            change(&mut record);
            OpeningRecord::read(&record.to_bytes())
        };
        for version in [0, 1, VERSION + 1] {
            let bytes = format!("{{\"version\":{version}}}");
            let read = OpeningRecord::read(bytes.as_bytes());
            assert_eq!(read, Err(RecordError::Version));
        }
        let impossible: [Change; 7] = [
            |r| r.prompt.clear(),
            |r| r.max_new = 0,
            |r| r.sampling.temperature = -1.0,
            |r| r.sampling.top_logprobs = 1000,
            |r| r.stop = vec![String::new()],
            |r| r.name = "n".repeat(limit::NAME + 1),
            |r| r.form = Some("f".repeat(FORM_LIMIT + 1)),
        ];
        for change in impossible {
            let read = changed(change);
            assert!(matches!(read, Err(RecordError::Malformed(_))), "{read:?}");
        }
        for bytes in [&b""[..], b"[]", b"\xff", b"{\"version\":2}"] {
            let read = OpeningRecord::read(bytes);
            assert!(matches!(read, Err(RecordError::Malformed(_))), "{read:?}");
        }
    }

    #[test]
    fn a_token_survives_with_its_alternatives_and_nonsense_is_refused() {
        let drawn = Drawn {
            token: 7,
            logprob: -0.25,
            top: vec![(7, -0.25), (9, f32::NEG_INFINITY)],
        };
        let bytes = token_record(&drawn);
        assert_eq!(read_token(&bytes, 10), Ok(drawn));
        assert!(read_token(&bytes, 9).is_err(), "an alternative is too high");
        assert!(read_token(&bytes, 7).is_err(), "the token is too high");
        assert!(read_token(&bytes[..bytes.len() - 1], 10).is_err());
        assert!(read_token(&[], 10).is_err());
        assert!(read_token(&[0; 4], 10).is_err(), "a token of version 1");
        let many = vec![0; 8 * (limit::TOP_LOGPROBS + 2)];
        assert!(read_token(&many, 10).is_err());
    }

    #[test]
    fn outcomes_survive() {
        let failure = Failure::unavailable("no_stand_in", "nobody: at all", "wait");
        let (code, message) = (failure.code.clone(), failure.message.clone());
        let done = |finish| Outcome::Done {
            finish,
            completion_tokens: 3,
            text_tail: String::new(),
        };
        let cases = [
            (done(FinishReason::Stop), Ended::Done(FinishReason::Stop)),
            (
                done(FinishReason::Length),
                Ended::Done(FinishReason::Length),
            ),
            (Outcome::Failed(failure), Ended::Failed(code, message)),
            (Outcome::Cancelled, Ended::Cancelled),
        ];
        for (outcome, ended) in cases {
            let bytes = outcome_record(&outcome).expect("it is journaled");
            assert_eq!(read_outcome(&bytes), Ok(ended));
        }
        for nonsense in [&b"done"[..], b"failed: ", b"\xff"] {
            assert!(read_outcome(nonsense).is_err());
        }
    }
}
