//! The key of an API that is reachable from other machines: made on the first start, kept in the
//! data directory, readable by its owner only.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;

const FILE: &str = "api-key";
const PREFIX: &str = "accel-";
const RANDOM_BYTES: usize = 32;

/// What clients must present.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} holds no API key", path.display())]
    Malformed { path: PathBuf },
    #[error("there is no API key in {} yet", dir.display())]
    Missing { dir: PathBuf },
}

impl KeyError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "check the rights on the data directory",
            Self::Malformed { .. } => "remove the file; the next start makes a new key",
            Self::Missing { .. } => {
                "a key is made by the first `accel up` whose --api is not a loopback address; \
                 --data names the data directory"
            }
        }
    }
}

impl ApiKey {
    /// The key of a data directory; made if there is none.
    pub fn load_or_create(data: &Path) -> Result<Self, KeyError> {
        match Self::load(data) {
            Err(KeyError::Missing { .. }) => Self::create(data),
            other => other,
        }
    }

    /// The key of a data directory.
    pub fn load(data: &Path) -> Result<Self, KeyError> {
        let path = data.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(KeyError::Missing { dir: data.into() });
            }
            Err(source) => return Err(KeyError::Io { path, source }),
        };
        let key = text.trim();
        let random = key
            .strip_prefix(PREFIX)
            .and_then(|hex| hex::decode(hex).ok());
        match random {
            Some(random) if random.len() == RANDOM_BYTES => Ok(Self(key.to_owned())),
            _ => Err(KeyError::Malformed { path }),
        }
    }

    fn create(data: &Path) -> Result<Self, KeyError> {
        let random: [u8; RANDOM_BYTES] = rand::random();
        let key = format!("{PREFIX}{}", hex::encode(random));
        let path = data.join(FILE);
        match write_private(data, &path, &key) {
            Ok(()) => Ok(Self(key)),
            Err(source) => Err(KeyError::Io { path, source }),
        }
    }

    /// The key itself, to be shown to its owner.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether a client presented this key. Takes the same time wherever the two differ.
    pub fn matches(&self, presented: &str) -> bool {
        Sha256::digest(&self.0) == Sha256::digest(presented)
    }
}

/// Temporary files are made for their owner only, and the rename keeps that.
fn write_private(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            ApiKey::load(dir.path()),
            Err(KeyError::Missing { .. })
        ));
        let key = ApiKey::load_or_create(dir.path()).unwrap();
        let again = ApiKey::load_or_create(dir.path()).unwrap();
        assert!(key == again && key.matches(again.reveal()));
        assert!(!key.matches("accel-") && !key.matches(""));
    }

    #[test]
    fn a_file_that_holds_no_key_is_an_error_and_not_a_weak_key() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "accel-", "accel-12", "password"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let result = ApiKey::load_or_create(dir.path());
            assert!(matches!(result, Err(KeyError::Malformed { .. })), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_can_read_the_key() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        ApiKey::load_or_create(dir.path()).unwrap();
        let metadata = fs::metadata(dir.path().join(FILE)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o077, 0);
    }
}
