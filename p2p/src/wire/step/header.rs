//! The part of a frame that bincode lays out, and what payload goes with it.

use bytes::Bytes;

use super::super::{
    CopyOrder, KvRows, Message, SessionId, SignedClaim, WireError, decode, limit, tag, wire_enum,
};
use super::{StepInput, TensorFrame, words};

/// The part of a frame that bincode lays out.
pub(super) enum Header {
    Tokens {
        session: SessionId,
        epoch: u64,
        step: u64,
        position: u64,
        sample: bool,
        until: u32,
    },
    Hidden {
        session: SessionId,
        epoch: u64,
        step: u64,
        position: u64,
        sample: bool,
        until: u32,
        rows: u32,
    },
    Replay {
        session: SessionId,
        epoch: u64,
        step: u64,
        position: u64,
        rows: u32,
        until: u32,
    },
    Token {
        session: SessionId,
        epoch: u64,
        step: u64,
        position: u64,
        token: u32,
        logprob: f32,
        top: Vec<(u32, f32)>,
    },
    Failed {
        session: SessionId,
        epoch: u64,
        step: u64,
        code: String,
        message: String,
    },
    Applied {
        session: SessionId,
        epoch: u64,
        step: u64,
        length: u64,
    },
    Copy {
        order: CopyOrder,
    },
    Rows {
        rows: KvRows,
    },
    ClaimedHidden {
        session: SessionId,
        epoch: u64,
        step: u64,
        position: u64,
        sample: bool,
        until: u32,
        rows: u32,
        claims: Vec<SignedClaim>,
    },
    ClaimedToken {
        session: SessionId,
        epoch: u64,
        step: u64,
        position: u64,
        token: u32,
        logprob: f32,
        top: Vec<(u32, f32)>,
        claims: Vec<SignedClaim>,
    },
}

// 1 and 2 are retired: rows that went through the whole route, always.
wire_enum!(Header {
    11 => Tokens { session, epoch, step, position, sample, until },
    12 => Hidden { session, epoch, step, position, sample, until, rows },
    13 => Replay { session, epoch, step, position, rows, until },
    3 => Token { session, epoch, step, position, token, logprob, top[limit::TOP_LOGPROBS] },
    4 => Failed { session, epoch, step, code[limit::LABEL], message[limit::MESSAGE] },
    5 => Applied { session, epoch, step, length },
    14 => Copy { order },
    15 => Rows { rows },
    16 => ClaimedHidden {
        session, epoch, step, position, sample, until, rows, claims[limit::CLAIMS]
    },
    17 => ClaimedToken {
        session, epoch, step, position, token, logprob, top[limit::TOP_LOGPROBS],
        claims[limit::CLAIMS]
    },
});

impl Message for Header {
    const NAME: &'static str = "tensor frame";
    const TAG: u8 = tag::TENSOR_FRAME;
    const LIMIT: usize = limit::TENSOR_HEADER;
}

impl TensorFrame {
    /// What is laid out, and what goes behind it as it is.
    pub(super) fn split(self) -> Result<(Header, Bytes), WireError> {
        Ok(match self {
            Self::Claimed { frame, claims } => {
                let (header, payload) = frame.split()?;
                (header.claimed(claims)?, payload)
            }
            Self::Step {
                session,
                epoch,
                step,
                position,
                sample,
                until,
                input,
            } => match input {
                StepInput::Tokens(tokens) => {
                    let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
                    (
                        Header::Tokens {
                            session,
                            epoch,
                            step,
                            position,
                            sample,
                            until,
                        },
                        bytes.into(),
                    )
                }
                StepInput::Hidden { rows, data } => (
                    Header::Hidden {
                        session,
                        epoch,
                        step,
                        position,
                        sample,
                        until,
                        rows,
                    },
                    data,
                ),
            },
            Self::Copy(order) => (Header::Copy { order }, Bytes::new()),
            Self::Rows { rows, data } => (Header::Rows { rows }, data),
            Self::Replay {
                session,
                epoch,
                step,
                position,
                rows,
                until,
            } => {
                let header = Header::Replay {
                    session,
                    epoch,
                    step,
                    position,
                    rows,
                    until,
                };
                (header, Bytes::new())
            }
            Self::Token {
                session,
                epoch,
                step,
                position,
                token,
                logprob,
                top,
            } => {
                let header = Header::Token {
                    session,
                    epoch,
                    step,
                    position,
                    token,
                    logprob,
                    top,
                };
                (header, Bytes::new())
            }
            Self::Applied {
                session,
                epoch,
                step,
                length,
            } => (
                Header::Applied {
                    session,
                    epoch,
                    step,
                    length,
                },
                Bytes::new(),
            ),
            Self::Failed {
                session,
                epoch,
                step,
                code,
                message,
            } => (
                Header::Failed {
                    session,
                    epoch,
                    step,
                    code,
                    message,
                },
                Bytes::new(),
            ),
        })
    }

    /// Puts a frame together again; the payload is kept as it is.
    pub(crate) fn from_parts(header: &[u8], payload: Bytes) -> Result<Self, WireError> {
        let header: Header = decode(header)?;
        check_payload(&header, &payload)?;
        Ok(Self::plain(header, payload))
    }

    fn plain(header: Header, payload: Bytes) -> Self {
        match header {
            claimed @ (Header::ClaimedHidden { .. } | Header::ClaimedToken { .. }) => {
                let (header, claims) = claimed.unclaimed();
                let frame = Box::new(Self::plain(header, payload));
                Self::Claimed { frame, claims }
            }
            Header::Tokens {
                session,
                epoch,
                step,
                position,
                sample,
                until,
            } => {
                let input = StepInput::Tokens(words(&payload).map(u32::from_le_bytes).collect());
                Self::Step {
                    session,
                    epoch,
                    step,
                    position,
                    sample,
                    until,
                    input,
                }
            }
            Header::Hidden {
                session,
                epoch,
                step,
                position,
                sample,
                until,
                rows,
            } => {
                let input = StepInput::Hidden {
                    rows,
                    data: payload,
                };
                Self::Step {
                    session,
                    epoch,
                    step,
                    position,
                    sample,
                    until,
                    input,
                }
            }
            Header::Copy { order } => Self::Copy(order),
            Header::Rows { rows } => Self::Rows {
                rows,
                data: payload,
            },
            Header::Replay {
                session,
                epoch,
                step,
                position,
                rows,
                until,
            } => Self::Replay {
                session,
                epoch,
                step,
                position,
                rows,
                until,
            },
            Header::Token {
                session,
                epoch,
                step,
                position,
                token,
                logprob,
                top,
            } => Self::Token {
                session,
                epoch,
                step,
                position,
                token,
                logprob,
                top,
            },
            Header::Applied {
                session,
                epoch,
                step,
                length,
            } => Self::Applied {
                session,
                epoch,
                step,
                length,
            },
            Header::Failed {
                session,
                epoch,
                step,
                code,
                message,
            } => Self::Failed {
                session,
                epoch,
                step,
                code,
                message,
            },
        }
    }
}

impl Header {
    /// The same with claims; only of steps with hidden rows, and of tokens.
    fn claimed(self, claims: Vec<SignedClaim>) -> Result<Self, WireError> {
        match self {
            Self::Hidden {
                session,
                epoch,
                step,
                position,
                sample,
                until,
                rows,
            } => Ok(Self::ClaimedHidden {
                session,
                epoch,
                step,
                position,
                sample,
                until,
                rows,
                claims,
            }),
            Self::Token {
                session,
                epoch,
                step,
                position,
                token,
                logprob,
                top,
            } => Ok(Self::ClaimedToken {
                session,
                epoch,
                step,
                position,
                token,
                logprob,
                top,
                claims,
            }),
            _ => Err(WireError::Malformed {
                message: Self::NAME,
                reason: "claims go with hidden rows and tokens only".into(),
            }),
        }
    }

    /// The same without claims, and they.
    fn unclaimed(self) -> (Self, Vec<SignedClaim>) {
        match self {
            Self::ClaimedHidden {
                session,
                epoch,
                step,
                position,
                sample,
                until,
                rows,
                claims,
            } => {
                let header = Self::Hidden {
                    session,
                    epoch,
                    step,
                    position,
                    sample,
                    until,
                    rows,
                };
                (header, claims)
            }
            Self::ClaimedToken {
                session,
                epoch,
                step,
                position,
                token,
                logprob,
                top,
                claims,
            } => {
                let header = Self::Token {
                    session,
                    epoch,
                    step,
                    position,
                    token,
                    logprob,
                    top,
                };
                (header, claims)
            }
            plain => (plain, Vec::new()),
        }
    }
}

/// The payload fits what the header says about it.
pub(super) fn check_payload(header: &Header, payload: &Bytes) -> Result<(), WireError> {
    let size = payload.len();
    let fits = match header {
        Header::Tokens { .. } => {
            size > 0 && size.is_multiple_of(4) && size / 4 <= limit::STEP_TOKENS
        }
        Header::Hidden { rows, .. } | Header::ClaimedHidden { rows, .. } => {
            let row_words = (*rows as usize).saturating_mul(4);
            row_words > 0 && size > 0 && size.is_multiple_of(row_words)
        }
        Header::Replay { rows, .. } => size == 0 && *rows > 0,
        Header::Copy { order } => size == 0 && order.rows > 0,
        Header::Rows { rows } => size > 0 && rows.rows > 0,
        Header::Token { .. }
        | Header::ClaimedToken { .. }
        | Header::Applied { .. }
        | Header::Failed { .. } => size == 0,
    };
    if fits {
        return Ok(());
    }
    let reason = format!("a payload of {size} bytes does not fit its header");
    Err(WireError::Malformed {
        message: Header::NAME,
        reason,
    })
}
