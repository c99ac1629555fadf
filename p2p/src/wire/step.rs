//! Steps: what goes from stage to stage for every token, and back to the coordinator.
//!
//! A frame is a small bincode header and, behind it, a raw payload that is never copied: token ids
//! (u32) or hidden rows (f32), both little endian. The header does not say how long the payload
//! is; the frame's length prefix does (see the tensor plane).

mod header;

use bytes::Bytes;

use super::{CopyOrder, KvRows, SessionId, SignedClaim, WireError, clip, encode, limit};
use header::check_payload;

/// One message of the tensor plane.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorFrame {
    /// Run these rows through your layers and pass on the result.
    Step {
        /// Whose step this is.
        session: SessionId,
        /// The plan it belongs to; older ones are refused.
        epoch: u64,
        /// Counts the steps of the session, over all epochs; a repeat is answered again.
        step: u64,
        /// Position of the first row; must be the length of the stage's KV cache.
        position: u64,
        /// Whether the last stage draws a token after the last row.
        sample: bool,
        /// Number of the last stage of the route that applies the step: it tells the coordinator.
        until: u32,
        /// The rows.
        input: StepInput,
    },
    /// The coordinator has a stage send outputs again that it kept, as a step for the stages
    /// behind it.
    Replay {
        /// Whose outputs.
        session: SessionId,
        /// The plan that is live.
        epoch: u64,
        /// The step that they become.
        step: u64,
        /// Position of the first row.
        position: u64,
        /// How many positions.
        rows: u32,
        /// Number of the last stage of the route that applies the step.
        until: u32,
    },
    /// The coordinator has a peer send keys and values that it holds to a stage.
    Copy(CopyOrder),
    /// Keys and values for a stage that is built anew.
    Rows {
        /// What they are.
        rows: KvRows,
        /// The rows, in the form that the engine gives and takes.
        data: Bytes,
    },
    /// The last stage tells the coordinator what it drew.
    Token {
        /// Whose token this is.
        session: SessionId,
        /// The plan under which it was drawn.
        epoch: u64,
        /// The step that drew it.
        step: u64,
        /// Position that the token takes.
        position: u64,
        /// The token.
        token: u32,
        /// Its log probability.
        logprob: f32,
        /// The likeliest alternatives.
        top: Vec<(u32, f32)>,
    },
    /// The last stage of a step that draws no token tells the coordinator that it has applied it:
    /// the next chunk may follow.
    Applied {
        /// Whose step this is.
        session: SessionId,
        /// The plan that it belongs to.
        epoch: u64,
        /// The step.
        step: u64,
        /// Length of the stage's KV cache after the step.
        length: u64,
    },
    /// A step with hidden rows, or a token, with what the stages say about it: of all that the step
    /// went through, in their order.
    Claimed {
        /// The step, or the token.
        frame: Box<TensorFrame>,
        /// One of each stage before.
        claims: Vec<SignedClaim>,
    },
    /// A stage could not carry out a step.
    Failed {
        /// Whose step failed.
        session: SessionId,
        /// The plan it belonged to.
        epoch: u64,
        /// The step.
        step: u64,
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
}

/// Rows of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepInput {
    /// For the first stage.
    Tokens(Vec<u32>),
    /// For every other: the boundary activation.
    Hidden {
        /// How many positions.
        rows: u32,
        /// (rows, hidden) in f32, little endian.
        data: Bytes,
    },
}

impl StepInput {
    /// Hidden rows from the engine's floats, shape (rows, hidden).
    pub fn hidden(rows: u32, data: &[f32]) -> Self {
        let bytes: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::Hidden {
            rows,
            data: Bytes::from(bytes),
        }
    }

    /// How many positions the step spans.
    pub fn rows(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Hidden { rows, .. } => *rows as usize,
        }
    }
}

/// Floats of a payload, in order.
pub fn floats(data: &[u8]) -> Vec<f32> {
    words(data).map(f32::from_le_bytes).collect()
}

fn words(data: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    data.chunks_exact(4)
        .map(|word| word.try_into().expect("chunks are of four bytes"))
}

impl TensorFrame {
    /// A failure whose texts are cut to what may travel.
    pub fn failed(session: SessionId, epoch: u64, step: u64, code: &str, message: &str) -> Self {
        Self::Failed {
            session,
            epoch,
            step,
            code: clip(code, limit::LABEL),
            message: clip(message, limit::MESSAGE),
        }
    }

    /// The session it belongs to.
    pub fn session(&self) -> SessionId {
        match self {
            Self::Copy(order) => order.session,
            Self::Rows { rows, .. } => rows.session,
            Self::Claimed { frame, .. } => frame.session(),
            Self::Step { session, .. }
            | Self::Replay { session, .. }
            | Self::Token { session, .. }
            | Self::Applied { session, .. }
            | Self::Failed { session, .. } => *session,
        }
    }

    /// The epoch it belongs to.
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Copy(order) => order.epoch,
            Self::Rows { rows, .. } => rows.epoch,
            Self::Claimed { frame, .. } => frame.epoch(),
            Self::Step { epoch, .. }
            | Self::Replay { epoch, .. }
            | Self::Token { epoch, .. }
            | Self::Applied { epoch, .. }
            | Self::Failed { epoch, .. } => *epoch,
        }
    }

    /// Header and payload, ready to be written one after the other.
    pub(crate) fn into_parts(self) -> Result<(Vec<u8>, Bytes), WireError> {
        let (header, payload) = self.split()?;
        check_payload(&header, &payload)?;
        Ok((encode(&header)?, payload))
    }
}
