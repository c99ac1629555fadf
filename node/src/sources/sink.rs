//! Where a source writes: a temporary file beside the final one, which counts and hashes what it
//! is given, and which gets its name only when the hash is right. Dropped early, it disappears.

use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::SourceError;
use crate::terminal;

/// A file in the making.
pub struct Sink {
    file: NamedTempFile,
    dir: PathBuf,
    hash: Sha256,
    written: u64,
    limit: u64,
    bar: ProgressBar,
}

impl Sink {
    /// Starts a file in `dir` that will have at most `limit` bytes.
    pub fn create(dir: &Path, limit: u64, what: &str) -> Result<Self, SourceError> {
        let file = tempfile::Builder::new()
            .prefix(".accel-")
            .suffix(".partial")
            .tempfile_in(dir)
            .map_err(|error| SourceError::io(dir, error))?;
        Ok(Self {
            file,
            dir: dir.to_owned(),
            hash: Sha256::new(),
            written: 0,
            limit,
            bar: terminal::bytes_bar(limit, what),
        })
    }

    /// Adds bytes at the end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.written += bytes.len() as u64;
        if self.written > self.limit {
            return Err(SourceError::TooLong { limit: self.limit });
        }
        self.hash.update(bytes);
        self.bar.set_position(self.written);
        self.file
            .write_all(bytes)
            .map_err(|error| SourceError::io(&self.dir, error))
    }

    /// Checks the hash, if one is known, and gives the file its name.
    pub fn keep(mut self, sha256: Option<&str>, path: &Path) -> Result<(), SourceError> {
        let bar = std::mem::replace(&mut self.bar, ProgressBar::hidden());
        bar.finish_and_clear();
        let found = hex::encode(self.hash.finalize());
        if let Some(expected) = sha256.filter(|expected| *expected != found) {
            return Err(SourceError::Hash {
                found,
                expected: expected.into(),
            });
        }
        let synced = self.file.as_file().sync_all();
        synced.map_err(|error| SourceError::io(path, error))?;
        let kept = self.file.persist(path);
        kept.map_err(|error| SourceError::io(path, error.error))?;
        Ok(())
    }
}
