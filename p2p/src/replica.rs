//! Replica streams: a coordinator keeps one open to each replica of a session, for as long as the
//! session lasts; whoever looks for a session opens one for a moment.
//!
//! ```text
//! caller                                responder
//!   ── one byte ──────────────────────────▶   queued as NetworkEvent::Replica
//!   ◀──────────── one byte: taken, or refused
//!   ── request ───────────────────────────▶
//!   ◀─────────────────────────────── reply    and again, until the caller closes the stream
//! ```
//!
//! There is one request under way at a time, and one task at each end, because yamux may lose a
//! wake-up when two tasks share a stream. Whoever has much to say puts it into one request.

mod ask;
mod serve;

pub use ask::ReplicaStream;
pub use serve::{IncomingReplica, ReplicaCall};

pub(crate) use ask::open;
pub(crate) use serve::serve;

use std::time::Duration;

/// First byte from the caller.
const HELLO: u8 = 1;
/// First byte from the responder: the stream was taken.
const TAKEN: u8 = 1;
/// First byte from the responder: the caller is no member of the swarm.
const NOT_A_MEMBER: u8 = 2;
/// How long a responder has to take a stream; longer than it may wait for a certificate.
const TAKE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a request or a reply may take on its way, and a responder to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller may say nothing; one that has nothing to say sends an empty request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
