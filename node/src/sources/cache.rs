//! The directory of model files: `ACCEL_MODELS`, or `accel/models` in the user's cache directory.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use directories::BaseDirs;
use sha2::{Digest, Sha256};

use super::SourceError;
use super::known::KnownModel;
use crate::terminal;

/// What lies under a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// The file that the name promises, to the byte.
    Right,
    Missing,
    /// Something else, and in what it differs.
    Wrong(String),
}

/// The directory of model files.
pub fn dir() -> Result<PathBuf, SourceError> {
    if let Some(dir) = std::env::var_os("ACCEL_MODELS").filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    let dirs = BaseDirs::new().ok_or(SourceError::NoCacheDir)?;
    Ok(dirs.cache_dir().join("accel").join("models"))
}

/// Makes sure that a directory exists.
pub fn create(dir: &Path) -> Result<(), SourceError> {
    std::fs::create_dir_all(dir).map_err(|error| SourceError::io(dir, error))
}

/// Hashes the file at `path`, if there is one of the right length.
pub async fn look(path: &Path, model: &KnownModel) -> Result<Look, SourceError> {
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Look::Missing),
        Err(error) => return Err(SourceError::io(path, error)),
    };
    if bytes != model.bytes {
        let reason = format!(
            "{} has {bytes} bytes, expected {}",
            path.display(),
            model.bytes
        );
        return Ok(Look::Wrong(reason));
    }
    let owned = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || sha256(&owned)).await;
    let found = match hashed {
        Ok(result) => result.map_err(|error| SourceError::io(path, error))?,
        Err(join) => return Err(SourceError::io(path, std::io::Error::other(join))),
    };
    if found == model.sha256 {
        return Ok(Look::Right);
    }
    let reason = format!(
        "{} has the SHA-256 {found}, expected {}",
        path.display(),
        model.sha256
    );
    Ok(Look::Wrong(reason))
}

/// The SHA-256 of a file, in hexadecimal digits.
fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let bar = terminal::bytes_bar(file.metadata()?.len(), "checking");
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else {
            break;
        };
        hash.update(part);
        bar.inc(read as u64);
    }
    bar.finish_and_clear();
    Ok(hex::encode(hash.finalize()))
}
