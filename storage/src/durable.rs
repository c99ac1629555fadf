//! Making what sled has flushed survive a power cut.
//!
//! sled 0.34 flushes with `sync_file_range` on Linux, which neither records where a grown file's new
//! parts are nor empties the drive's cache; and it never syncs the files of large values (its
//! `blobs` folder). So what it has flushed survives the death of the process, but not that of the
//! machine. A sync of the same files from outside closes the gap.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sled::Tree;

use crate::data_dir::sync_dir;
use crate::error::{Result, StorageError, io_error};

/// What must be free on the disk before a change is made. sled does not get over a write that failed: its
/// database is of no use then until it is opened again, however much room there is by that time.
pub(crate) const RESERVE: u64 = 8 << 20;

/// Flushes the trees of one database for good. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Durable {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: File,
    log_path: PathBuf,
    blobs: PathBuf,
    // Blobs are written once: each needs one sync.
    synced_blobs: Mutex<HashSet<OsString>>,
}

impl Durable {
    /// For an open database in the folder.
    pub(crate) fn new(db: PathBuf) -> Result<Self> {
        let log_path = db.join("db");
        let log = File::open(&log_path).map_err(io_error("open", &log_path))?;
        let inner = Inner {
            log,
            log_path,
            blobs: db.join("blobs"),
            synced_blobs: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Refuses to go on when less than this is free on the disk.
    pub(crate) fn check_room(&self, reserve: u64) -> Result<()> {
        let path = &self.inner.log_path;
        let available = fs4::available_space(path);
        let available = available.map_err(io_error("ask for the free space of", path))?;
        if available < reserve {
            return Err(StorageError::NotEnoughSpace {
                path: path.clone(),
                needed: reserve,
                available,
            });
        }
        Ok(())
    }

    /// Returns when every change made to the tree before is on the disk.
    pub(crate) fn flush(&self, tree: &Tree) -> Result<()> {
        tree.flush()?;
        self.inner.sync_blobs()?;
        // Elsewhere sled syncs its log itself.
        if cfg!(target_os = "linux") {
            let log = &self.inner.log;
            log.sync_data()
                .map_err(io_error("sync", &self.inner.log_path))?;
        }
        Ok(())
    }
}

impl Inner {
    fn sync_blobs(&self) -> Result<()> {
        let mut synced = self
            .synced_blobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut present = HashSet::new();
        let mut is_any_new = false;
        for entry in fs::read_dir(&self.blobs).map_err(io_error("list", &self.blobs))? {
            let name = entry.map_err(io_error("list", &self.blobs))?.file_name();
            if !synced.contains(&name) {
                self.sync_blob(&name)?;
                is_any_new = true;
            }
            present.insert(name);
        }
        if is_any_new {
            sync_dir(&self.blobs)?;
        }
        *synced = present;
        Ok(())
    }

    fn sync_blob(&self, name: &OsString) -> Result<()> {
        let path = self.blobs.join(name);
        // Windows syncs only what is open for writing.
        let blob = OpenOptions::new().write(true).open(&path);
        match blob.and_then(|blob| blob.sync_all()) {
            // sled has removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced.map_err(io_error("sync", path)),
        }
    }
}
