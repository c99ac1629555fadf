//! Control calls: one libp2p stream per call, a request one way and replies the other.
//!
//! ```text
//! caller                                responder
//!   ── request ───────────────────────────▶   checked, queued as NetworkEvent::Control
//!   ◀──────────── one byte: taken, or refused
//!   ◀──────────────── progress … final reply
//! ```
//!
//! The byte says that the stream reached the responder's program: a stream that ends before it
//! was dropped on the way and is opened again, a few times. Each end of a stream belongs to one
//! task; dropping the [`ControlCall`] closes the stream, and the [`ControlResponder`] sees that.

mod call;
mod serve;

pub use call::{ControlCall, ControlError};
pub use serve::{ControlClosed, ControlResponder, IncomingControl};

pub(crate) use call::call;
pub(crate) use serve::serve;

use std::time::Duration;

/// First byte from the responder: the request was taken.
const TAKEN: u8 = 1;
/// First byte from the responder: the caller is no member of the swarm.
const NOT_A_MEMBER: u8 = 2;
/// How long a responder has to take a request; longer than it may wait for a certificate.
const TAKE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a call may go without a reply before it counts as dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// Replies that may wait for their reader.
const REPLY_QUEUE: usize = 16;
