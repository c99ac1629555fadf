//! What the journal holds of a session: an opening record, a record per token, an outcome. With
//! the model's blocks that is all it takes to go on anywhere. Versioning, checksums and order are
//! the journal's; here is only the content.

use accel_inference::SamplingParams;
use serde::{Deserialize, Serialize};

use super::event::Outcome;
use crate::request::FinishReason;

/// The form of the opening record.
const VERSION: u32 = 1;

/// Describes the request completely: the answer is a function of this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OpeningRecord {
    /// Form of this record.
    pub(crate) version: u32,
    /// The model's CID.
    pub(crate) model: String,
    /// The prompt.
    pub(crate) prompt: Vec<u32>,
    /// How tokens are drawn.
    pub(crate) sampling: SamplingParams,
    /// The longest answer.
    pub(crate) max_new: u64,
    /// The answer ends before any of these texts.
    pub(crate) stop: Vec<String>,
}

impl OpeningRecord {
    /// The record of a request.
    pub(crate) fn new(
        model: String,
        prompt: Vec<u32>,
        sampling: SamplingParams,
        max_new: u64,
        stop: Vec<String>,
    ) -> Self {
        Self {
            version: VERSION,
            model,
            prompt,
            sampling,
            max_new,
            stop,
        }
    }

    /// As it is journaled.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and texts always serialise")
    }
}

/// A token as it is journaled.
pub(crate) fn token_record(token: u32) -> [u8; 4] {
    token.to_le_bytes()
}

/// An outcome as it is journaled.
pub(crate) fn outcome_record(outcome: &Outcome) -> Vec<u8> {
    let text = match outcome {
        Outcome::Done {
            finish: FinishReason::Stop,
            ..
        } => "done: stop".to_owned(),
        Outcome::Done {
            finish: FinishReason::Length,
            ..
        } => "done: length".to_owned(),
        Outcome::Failed(failure) => format!("failed: {}: {}", failure.code, failure.message),
        Outcome::Cancelled => "cancelled".to_owned(),
    };
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_record_survives_the_journal() {
        let sampling = SamplingParams {
            seed: u64::MAX,
            ..SamplingParams::default()
        };
        let record = OpeningRecord::new("cid".into(), vec![1, 2], sampling, 7, vec!["\n".into()]);
        let read: OpeningRecord = serde_json::from_slice(&record.to_bytes()).unwrap();
        assert_eq!(read, record);
    }
}
