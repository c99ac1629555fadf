//! Who belongs to a swarm.
//!
//! A **public** swarm has a name and nothing else. A **private** one has a pre-shared key, which
//! guards every TCP connection and cannot be taken back from anybody, and therefore also an
//! *authority*: an ed25519 key that certifies peer ids, each for a limited time. Without a valid
//! certificate a peer gets nothing, whatever connection it managed to open.
//!
//! - [`SwarmKey`] (`key_file.rs`): the file of `accel swarm init`; who holds it may let others in.
//! - [`Invite`] (`invite.rs`): a text that lets one more node in, until it expires.
//! - [`Certificate`] (`certificate.rs`): what every member shows.
//! - [`SwarmMembership`] (`state.rs`): what a node keeps of all this.
//!
//! Nothing here reads the clock: `now_unix_ms` is an argument.

mod authority;
mod certificate;
mod invite;
mod key_file;
mod state;

pub use authority::{AuthorityId, SwarmId};
pub use certificate::{CERTIFICATE_LIFETIME, Certificate, CertificateError};
pub use invite::{INVITE_PREFIX, Invite, InviteError};
pub use key_file::{KeyFileError, KeyFileProblem, SwarmKey};
pub use state::{PrivateMembership, SwarmMembership};

#[cfg(test)]
mod tests;
