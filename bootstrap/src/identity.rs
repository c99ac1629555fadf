//! The key that gives the meeting point the same PeerId on every start.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

const FILE: &str = "identity.seed";
const LOCK: &str = "lock";

/// The seed of the key, and the lock that keeps a second process away from it.
pub struct Identity {
    /// Seed of an ed25519 key.
    pub seed: [u8; 32],
    _lock: File,
}

impl Identity {
    /// Opens the directory, and makes the directory and the seed on the first start.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let lock = File::create(dir.join(LOCK))
            .with_context(|| format!("cannot write to {}", dir.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "{} is in use by another meeting point; stop it, or choose another --data",
                dir.display()
            );
        }
        let path = dir.join(FILE);
        let seed = match File::open(&path) {
            Ok(file) => read_seed(file, &path)?,
            Err(error) if error.kind() == ErrorKind::NotFound => make_seed(dir, &path)?,
            Err(error) => bail!("cannot read {}: {error}", path.display()),
        };
        Ok(Self { seed, _lock: lock })
    }
}

fn read_seed(mut file: File, path: &Path) -> Result<[u8; 32]> {
    let mut seed = [0; 32];
    let length = file.metadata()?.len();
    if length != 32 || file.read_exact(&mut seed).is_err() {
        bail!(
            "{} holds {length} bytes instead of 32; restore it, or remove it for a new identity",
            path.display()
        );
    }
    Ok(seed)
}

/// Written beside its place, flushed and renamed: a crash leaves a whole seed or none.
fn make_seed(dir: &Path, path: &Path) -> Result<[u8; 32]> {
    let seed: [u8; 32] = rand::random();
    let unfinished = dir.join(format!("{FILE}.unfinished"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .with_context(|| format!("cannot write {}", unfinished.display()))?;
    file.write_all(&seed)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_the_same_on_every_start() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let first = Identity::open(dir.path())?.seed;
        assert_eq!(Identity::open(dir.path())?.seed, first);
        Ok(())
    }

    #[test]
    fn two_directories_are_two_identities() -> Result<()> {
        let (one, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
        assert_ne!(
            Identity::open(one.path())?.seed,
            Identity::open(other.path())?.seed
        );
        Ok(())
    }

    #[test]
    fn a_directory_in_use_is_refused() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let _held = Identity::open(dir.path())?;
        let error = Identity::open(dir.path())
            .err()
            .context("it was opened twice")?;
        assert!(error.to_string().contains("in use"), "{error}");
        Ok(())
    }

    #[test]
    fn a_damaged_seed_is_not_replaced_in_silence() -> Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join(FILE), b"short")?;
        assert!(Identity::open(dir.path()).is_err());
        assert_eq!(fs::read(dir.path().join(FILE))?, b"short");
        Ok(())
    }
}
