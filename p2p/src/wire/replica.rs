//! Replicas: the journal of a session on other machines than its coordinator's.
//!
//! One long-lived libp2p stream per session and replica. A coordinator opens it with
//! [`ReplicaRequest::Open`], then appends; every request has one reply, which says how much is
//! durable. Whoever looks for a session asks with [`ReplicaRequest::Fetch`], page by page.

use super::{Message, SessionId, clip, limit, tag, wire_enum, wire_struct};

/// What is asked of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaRequest {
    /// Keep this session; first on a stream of a coordinator, and the only session that the
    /// requests behind it are about.
    Open {
        /// The session.
        session: SessionId,
        /// The claim of its coordinator: above every one of earlier coordinators.
        claim: u64,
        /// How long its opening record is.
        bytes: u64,
        /// The beginning of that.
        part: Vec<u8>,
    },
    /// More of the opening record, until it is complete.
    Opening {
        /// What follows.
        part: Vec<u8>,
    },
    /// Keep these records.
    Append {
        /// The index of the first.
        first: u64,
        /// One behind the other.
        records: Vec<Record>,
    },
    /// The session ended like this.
    Close {
        /// As the coordinator journals it.
        outcome: Vec<u8>,
    },
    /// What is kept of a session, from this record on.
    Fetch {
        /// The session.
        session: SessionId,
        /// The first byte of the opening record that is wanted.
        opening_from: u64,
        /// The index of the first record that is wanted.
        from: u64,
    },
}

/// Answer to a [`ReplicaRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaReply {
    /// The opening record is not complete.
    More,
    /// So many records are durable, the first ones; and the outcome, if one was sent.
    Durable {
        /// How many.
        records: u64,
    },
    /// A page of a session.
    Page {
        /// The newest claim that is known.
        claim: u64,
        /// How long the opening record is.
        bytes: u64,
        /// Of it, from the byte that was asked for, as much as fits.
        part: Vec<u8>,
        /// How many records there are.
        total: u64,
        /// Those from the one that was asked for, as many as fit.
        records: Vec<Record>,
        /// How it ended, if it did.
        outcome: Option<Record>,
    },
    /// Nothing is kept of the session.
    Unknown,
    /// The request is refused; the stream ends.
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// What to do about it.
        hint: String,
    },
}

/// A record of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// As it is journaled.
    pub bytes: Vec<u8>,
}

wire_struct!(Record { bytes[limit::REPLICA_RECORD] });
wire_enum!(ReplicaRequest {
    1 => Open { session, claim, bytes, part[limit::REPLICA_PART] },
    2 => Opening { part[limit::REPLICA_PART] },
    3 => Append { first, records[limit::REPLICA_RECORDS] },
    4 => Close { outcome[limit::REPLICA_RECORD] },
    5 => Fetch { session, opening_from, from },
});
wire_enum!(ReplicaReply {
    1 => More {},
    2 => Durable { records },
    3 => Page {
        claim, bytes, part[limit::REPLICA_PART], total, records[limit::REPLICA_RECORDS], outcome
    },
    4 => Unknown {},
    5 => Refused { code[limit::LABEL], message[limit::MESSAGE], hint[limit::MESSAGE] },
});

impl ReplicaReply {
    /// A refusal whose texts are cut to what may travel.
    pub fn refused(code: &str, message: &str, hint: &str) -> Self {
        Self::Refused {
            code: clip(code, limit::LABEL),
            message: clip(message, limit::MESSAGE),
            hint: clip(hint, limit::MESSAGE),
        }
    }
}

impl Message for ReplicaRequest {
    const NAME: &'static str = "replica request";
    const TAG: u8 = tag::REPLICA_REQUEST;
    const LIMIT: usize = limit::REPLICA;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Open { bytes, part, .. } => check_opening(*bytes, part),
            Self::Opening { part } if part.is_empty() => Err("the part is empty".into()),
            Self::Append { first, records } => check_records(*first, records, u64::MAX),
            _ => Ok(()),
        }
    }
}

impl Message for ReplicaReply {
    const NAME: &'static str = "replica reply";
    const TAG: u8 = tag::REPLICA_REPLY;
    const LIMIT: usize = limit::REPLICA;

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Page {
                bytes,
                part,
                total,
                records,
                ..
            } => {
                check_opening(*bytes, part)?;
                check_records(0, records, *total)
            }
            _ => Ok(()),
        }
    }
}

/// An opening record is no longer than allowed, has content, and a part of it is no longer.
fn check_opening(bytes: u64, part: &[u8]) -> Result<(), String> {
    let fits = part.len() as u64 <= bytes && bytes <= limit::REPLICA_OPENING;
    match fits && bytes > 0 {
        true => Ok(()),
        false => Err(format!(
            "{} of {bytes} bytes of an opening record",
            part.len()
        )),
    }
}

/// Records have content, and an index below `total` each.
fn check_records(first: u64, records: &[Record], total: u64) -> Result<(), String> {
    if records.iter().any(|record| record.bytes.is_empty()) {
        return Err("a record is empty".into());
    }
    match first.checked_add(records.len() as u64) {
        Some(end) if end <= total => Ok(()),
        _ => Err(format!("{} records from {first} of {total}", records.len())),
    }
}
