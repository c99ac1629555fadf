//! The swarm key and its file.
//!
//! ```text
//! accel-swarm-key 1
//! # Whoever holds this file can let machines into the swarm. Keep it secret.
//! name: home
//! psk: <64 hexadecimal digits>
//! authority: <64 hexadecimal digits>
//! checksum: <16 hexadecimal digits>
//! ```
//!
//! The first line names the format and its version. Empty lines and lines that begin with `#` mean
//! nothing. The checksum is the beginning of the SHA-256 of name, psk and authority: it finds
//! typing errors and lost lines, it protects from nobody.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use libp2p::pnet::PreSharedKey;
use libp2p::{Multiaddr, PeerId};

use super::authority::{Authority, AuthorityId, Secret, SwarmId, sha256};
use super::certificate::Certificate;
use super::invite::{Invite, InviteError};
use crate::wire::limit;

const FORMAT: &str = "accel-swarm-key";
const VERSION: &str = "1";
const MAX_FILE_BYTES: usize = 16 * 1024;
const CHECKSUM_BYTES: usize = 8;

/// A private swarm's secrets: the pre-shared key and the authority key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmKey {
    pub(super) name: String,
    pub(super) psk: Secret,
    pub(super) authority: Authority,
}

/// Why a swarm key file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the swarm key: {problem}; {hint}", hint = problem.hint())]
pub struct KeyFileError {
    /// Where, counted from 1.
    pub line: usize,
    /// What.
    pub problem: KeyFileProblem,
}

/// What is wrong with a swarm key file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileProblem {
    /// It is something else.
    #[error("expected `accel-swarm-key 1`")]
    NotAKeyFile,
    /// A later `accel` wrote it.
    #[error("version {0} is unknown")]
    UnknownVersion(String),
    /// Not `field: value`.
    #[error("expected `field: value`")]
    NotAField,
    /// A field that this version does not have.
    #[error("unknown field `{0}`")]
    UnknownField(String),
    /// A field that was there already.
    #[error("`{0}` is there twice")]
    Repeated(&'static str),
    /// A field that never came.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// Not the hexadecimal digits that it should be.
    #[error("`{field}` must be {digits} hexadecimal digits")]
    BadHex {
        /// The field.
        field: &'static str,
        /// How many it must have.
        digits: usize,
    },
    /// The name cannot be used.
    #[error("a swarm name has 1 to {max} printable characters", max = limit::NAME)]
    BadName,
    /// Something was changed.
    #[error("the checksum does not match name, psk and authority")]
    BadChecksum,
    /// No key file is that long.
    #[error("the file is over {MAX_FILE_BYTES} bytes")]
    TooLong,
}

impl KeyFileProblem {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotAKeyFile | Self::TooLong => {
                "give the file that `accel swarm init --out FILE` wrote"
            }
            Self::UnknownVersion(_) => "update accel, or make a new swarm with `accel swarm init`",
            _ => "copy the file again from the machine it was made on",
        }
    }
}

impl SwarmKey {
    /// Fresh secrets for a new swarm.
    pub fn generate(name: &str) -> Result<Self, KeyFileProblem> {
        check_name(name)?;
        let authority = Authority {
            seed: Secret::random(),
        };
        Ok(Self {
            name: name.to_owned(),
            psk: Secret::random(),
            authority,
        })
    }

    /// Name of the swarm.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names the swarm; made from its public parts.
    pub fn swarm_id(&self) -> SwarmId {
        SwarmId::private(&self.name, &self.authority_id())
    }

    /// Public half of the authority key.
    pub fn authority_id(&self) -> AuthorityId {
        self.authority.id()
    }

    /// Guards the swarm's TCP connections.
    pub fn psk(&self) -> PreSharedKey {
        self.psk.pre_shared_key()
    }

    /// Makes `peer` a member for a while.
    pub fn issue_certificate(
        &self,
        peer: PeerId,
        now_unix_ms: u64,
        lifetime: Duration,
    ) -> Certificate {
        Certificate::issue(
            &self.authority,
            self.swarm_id(),
            peer,
            now_unix_ms,
            lifetime,
        )
    }

    /// Makes an invite that leads to `addrs`.
    pub fn issue_invite(
        &self,
        addrs: Vec<Multiaddr>,
        ttl: Duration,
        now_unix_ms: u64,
    ) -> Result<Invite, InviteError> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let expires = now_unix_ms.saturating_add(ttl_ms);
        Invite::issue(&self.authority, &self.name, &self.psk, addrs, expires)
    }

    fn checksum(&self) -> [u8; CHECKSUM_BYTES] {
        let digest = sha256(&[
            b"accel swarm key 1\0",
            &self.psk.0,
            &self.authority.seed.0,
            self.name.as_bytes(),
        ]);
        *digest
            .first_chunk()
            .expect("a digest is longer than the checksum")
    }
}

pub(super) fn check_name(name: &str) -> Result<(), KeyFileProblem> {
    let fits = !name.is_empty() && name.len() <= limit::NAME;
    let printable = !name.chars().any(char::is_control) && name.trim() == name;
    if fits && printable {
        Ok(())
    } else {
        Err(KeyFileProblem::BadName)
    }
}

/// The text of the key file.
impl fmt::Display for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FORMAT} {VERSION}")?;
        writeln!(
            f,
            "# Whoever holds this file can let machines into the swarm. Keep it secret."
        )?;
        writeln!(f, "name: {}", self.name)?;
        writeln!(f, "psk: {}", self.psk.to_hex())?;
        writeln!(f, "authority: {}", self.authority.seed.to_hex())?;
        writeln!(f, "checksum: {}", hex::encode(self.checksum()))
    }
}

/// Fields of the file as they are found.
#[derive(Default)]
struct Fields {
    name: Option<String>,
    psk: Option<Secret>,
    authority: Option<Secret>,
    checksum: Option<(usize, [u8; CHECKSUM_BYTES])>,
}

impl FromStr for SwarmKey {
    type Err = KeyFileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_FILE_BYTES {
            return Err(KeyFileError {
                line: 1,
                problem: KeyFileProblem::TooLong,
            });
        }
        let mut lines = text.lines().enumerate();
        let first = lines.next().map_or("", |(_, line)| line);
        check_format(first).map_err(|problem| KeyFileError { line: 1, problem })?;
        let mut fields = Fields::default();
        let mut last = 1;
        for (index, line) in lines {
            last = index + 1;
            fields
                .read(last, line.trim())
                .map_err(|problem| KeyFileError {
                    line: last,
                    problem,
                })?;
        }
        fields.finish(last)
    }
}

fn check_format(line: &str) -> Result<(), KeyFileProblem> {
    let version = line
        .trim()
        .strip_prefix(FORMAT)
        .ok_or(KeyFileProblem::NotAKeyFile)?;
    match version.trim() {
        VERSION => Ok(()),
        "" => Err(KeyFileProblem::NotAKeyFile),
        other => Err(KeyFileProblem::UnknownVersion(crate::wire::clip(
            other,
            limit::LABEL,
        ))),
    }
}

impl Fields {
    fn read(&mut self, number: usize, line: &str) -> Result<(), KeyFileProblem> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (field, value) = line.split_once(':').ok_or(KeyFileProblem::NotAField)?;
        let value = value.trim();
        match field.trim() {
            "name" => {
                check_name(value)?;
                put(&mut self.name, "name", value.to_owned())
            }
            "psk" => put(&mut self.psk, "psk", secret("psk", value)?),
            "authority" => put(
                &mut self.authority,
                "authority",
                secret("authority", value)?,
            ),
            "checksum" => put(
                &mut self.checksum,
                "checksum",
                (number, checksum_of(value)?),
            ),
            other => Err(KeyFileProblem::UnknownField(crate::wire::clip(
                other,
                limit::LABEL,
            ))),
        }
    }

    fn finish(self, last: usize) -> Result<SwarmKey, KeyFileError> {
        let missing = |field| KeyFileError {
            line: last,
            problem: KeyFileProblem::Missing(field),
        };
        let key = SwarmKey {
            name: self.name.ok_or_else(|| missing("name"))?,
            psk: self.psk.ok_or_else(|| missing("psk"))?,
            authority: Authority {
                seed: self.authority.ok_or_else(|| missing("authority"))?,
            },
        };
        let (line, checksum) = self.checksum.ok_or_else(|| missing("checksum"))?;
        if checksum != key.checksum() {
            return Err(KeyFileError {
                line,
                problem: KeyFileProblem::BadChecksum,
            });
        }
        Ok(key)
    }
}

fn put<T>(slot: &mut Option<T>, field: &'static str, value: T) -> Result<(), KeyFileProblem> {
    if slot.is_some() {
        return Err(KeyFileProblem::Repeated(field));
    }
    *slot = Some(value);
    Ok(())
}

fn secret(field: &'static str, value: &str) -> Result<Secret, KeyFileProblem> {
    value
        .parse()
        .map_err(|_| KeyFileProblem::BadHex { field, digits: 64 })
}

fn checksum_of(value: &str) -> Result<[u8; CHECKSUM_BYTES], KeyFileProblem> {
    let mut checksum = [0; CHECKSUM_BYTES];
    hex::decode_to_slice(value, &mut checksum).map_err(|_| KeyFileProblem::BadHex {
        field: "checksum",
        digits: 2 * CHECKSUM_BYTES,
    })?;
    Ok(checksum)
}
