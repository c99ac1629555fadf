//! Content and catalogue.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cid::Cid;

use crate::data_dir::DataDir;
use crate::error::Result;
use crate::journal::Journal;
use crate::types::{BlockSource, FetchProgress, FetchReport, ModelRecord, Want};

/// Content by CID and the catalogue of models. Cheap to clone.
#[derive(Clone)]
pub struct Store {}

/// The form in which this crate names content: CID version 1. Version 0 is the same content.
pub fn canonical(cid: &Cid) -> Cid {
    cid.into_v1().unwrap_or(*cid)
}

impl Store {
    /// Opens the store of a data directory. Blocking.
    pub fn open(_dir: &DataDir) -> Result<Self> {
        unimplemented!()
    }

    /// The journal of sessions.
    pub fn journal(&self) -> Journal {
        unimplemented!()
    }

    /// Adds a file.
    pub async fn add_file(
        &self,
        _src: &Path,
        _name: &str,
        _progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<ModelRecord> {
        unimplemented!()
    }

    /// One block, verified as it leaves the disk; `None` when it is not here. Blocking, briefly.
    pub fn get_block(&self, _cid: &Cid) -> Result<Option<Bytes>> {
        unimplemented!()
    }

    /// Whether a block is here. Blocking, briefly.
    pub fn has_block(&self, _cid: &Cid) -> Result<bool> {
        unimplemented!()
    }

    /// Fetches parts of a file.
    pub async fn fetch(
        &self,
        _root: &Cid,
        _want: Want,
        _source: &dyn BlockSource,
        _progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<FetchReport> {
        unimplemented!()
    }

    /// Length of the file under a root; fetches the root block only if need be.
    pub async fn file_len(&self, _root: &Cid, _source: &dyn BlockSource) -> Result<u64> {
        unimplemented!()
    }

    /// The file that holds a model's bytes; sparse where they are not present.
    pub fn model_path(&self, _root: &Cid) -> Result<PathBuf> {
        unimplemented!()
    }

    /// Whether every byte of a range is here.
    pub fn is_present(&self, _root: &Cid, _range: Range<u64>) -> Result<bool> {
        unimplemented!()
    }

    /// How many bytes of a model are here.
    pub fn present_bytes(&self, _root: &Cid) -> Result<u64> {
        unimplemented!()
    }

    /// Every model in the catalogue, newest first.
    pub fn models(&self) -> Result<Vec<ModelRecord>> {
        unimplemented!()
    }

    /// Finds a model by name (the most recently added of that name) or CID text (any version).
    pub fn resolve(&self, _name_or_cid: &str) -> Result<Option<ModelRecord>> {
        unimplemented!()
    }

    /// Enters a model learnt from elsewhere, or names one that is here. Blocking, briefly.
    pub fn record(&self, _record: ModelRecord) -> Result<()> {
        unimplemented!()
    }

    /// Removes a model and its bytes. Blocking, briefly.
    pub fn remove(&self, _root: &Cid) -> Result<()> {
        unimplemented!()
    }

    /// Keeps a model when room is needed, or no longer. Blocking, briefly.
    pub fn pin(&self, _root: &Cid, _pinned: bool) -> Result<()> {
        unimplemented!()
    }
}
