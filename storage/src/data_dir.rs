//! The data directory: one node at a time, its identity, and its small files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Result, StorageError, io_error};

/// Small files (keys, certificates) may not be larger than this.
pub const SMALL_FILE_LIMIT: u64 = 1 << 20;

const IDENTITY: &str = "identity";

/// An exclusively held data directory. The hold ends with the last clone.
#[derive(Debug, Clone)]
pub struct DataDir {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    // Held for the lifetime: the lock is released when the file is closed.
    _lock: File,
}

impl DataDir {
    /// Takes the directory, creating it if need be.
    ///
    /// A second opener gets [`StorageError::InUse`] with the process id of the holder.
    pub fn open(path: &Path) -> Result<Self> {
        create_private_dir(path)?;
        let path = fs::canonicalize(path).map_err(io_error("resolve", path))?;
        let lock = lock(&path)?;
        for folder in ["keys", "models", "tmp"] {
            create_private_dir(&path.join(folder))?;
        }
        clear(&path.join("tmp"))?;
        Ok(Self {
            inner: Arc::new(Inner { path, _lock: lock }),
        })
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The seed of the node's Ed25519 key, made on the first call and the same ever after.
    pub fn identity_seed(&self) -> Result<[u8; 32]> {
        if let Some(bytes) = self.read_file(IDENTITY)? {
            return <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| StorageError::Damaged {
                what: "the identity file",
                detail: format!("it has {} bytes instead of 32", bytes.len()),
            });
        }
        let seed: [u8; 32] = rand::random();
        self.write_file(IDENTITY, &seed)?;
        Ok(seed)
    }

    /// Reads a small file written by [`DataDir::write_file`]; `None` when there is none.
    pub fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.small_file(name)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(SMALL_FILE_LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", &path))?;
        if bytes.len() as u64 > SMALL_FILE_LIMIT {
            return Err(StorageError::Damaged {
                what: "a small file",
                detail: format!("{} is over {SMALL_FILE_LIMIT} bytes", path.display()),
            });
        }
        Ok(Some(bytes))
    }

    /// Writes a small file whole or not at all, readable by this user only.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.small_file(name)?;
        if bytes.len() as u64 > SMALL_FILE_LIMIT {
            return Err(StorageError::BadName {
                name: name.to_owned(),
                why: "its content is over the limit of a small file",
            });
        }
        // tempfile creates with mode 0600 on Unix.
        let mut temporary = tempfile::NamedTempFile::new_in(self.temporary_dir())
            .map_err(io_error("create a file in", self.temporary_dir()))?;
        temporary
            .write_all(bytes)
            .and_then(|()| temporary.as_file().sync_all())
            .map_err(io_error("write", &path))?;
        temporary
            .persist(&path)
            .map_err(|error| io_error("write", &path)(error.error))?;
        sync_dir(&self.path().join("keys"))
    }

    /// Where content is kept, one file per model.
    pub(crate) fn models_dir(&self) -> PathBuf {
        self.path().join("models")
    }

    /// Where files are made before they are renamed into place; emptied when the directory is opened.
    pub(crate) fn temporary_dir(&self) -> PathBuf {
        self.path().join("tmp")
    }

    fn small_file(&self, name: &str) -> Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let why = if name.is_empty() || name.len() > 128 {
            "it must have 1 to 128 characters"
        } else if name.starts_with('.') {
            "it must not begin with a dot"
        } else if !name.chars().all(plain) {
            "only letters, digits, '.', '-' and '_' are allowed"
        } else {
            return Ok(self.path().join("keys").join(name));
        };
        Err(StorageError::BadName {
            name: name.to_owned(),
            why,
        })
    }
}

/// Makes directory entries (creations, renames) durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    // Directories cannot be opened as files on Windows, where renames are durable by themselves.
    if cfg!(windows) {
        return Ok(());
    }
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", path))
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StorageError::InUse {
                path: dir.to_owned(),
                pid: read_pid(&mut file),
            });
        }
        Err(TryLockError::Error(error)) => return Err(io_error("lock", path)(error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .and_then(|()| file.sync_data())
        .map_err(io_error("write", &path))?;
    Ok(file)
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn create_private_dir(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(io_error("create", path))
}

/// Removes what an interrupted run left behind.
fn clear(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = entry.map_err(io_error("list", dir))?.path();
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        match DataDir::open(dir.path()) {
            Err(StorageError::InUse { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("expected InUse, got {other:?}"),
        }
        drop(held);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn the_identity_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap().identity_seed().unwrap();
        let again = DataDir::open(dir.path()).unwrap().identity_seed().unwrap();
        assert_eq!(first, again);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(dir.path().join("keys/identity")).unwrap();
            assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn small_files_are_replaced_whole_and_cannot_leave_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.read_file("swarm.key").unwrap(), None);
        data.write_file("swarm.key", b"one").unwrap();
        data.write_file("swarm.key", b"two").unwrap();
        assert_eq!(data.read_file("swarm.key").unwrap().unwrap(), b"two");
        for name in ["", "../x", ".hidden", "a/b", "a\\b", "a\0"] {
            let refused = data.write_file(name, b"");
            assert!(matches!(refused, Err(StorageError::BadName { .. })));
        }
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_not_a_new_identity() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.write_file("identity", b"short").unwrap();
        let refused = data.identity_seed();
        assert!(matches!(refused, Err(StorageError::Damaged { .. })));
    }
}
