//! Content and catalogue: this file holds the store and its catalogue; its parts add, fetch and
//! serve content.

mod blocks;
mod catalogue;
mod claims;
mod fetch;
mod import;
mod index;
mod open;
mod walk;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use cid::Cid;
use sled::Batch;

pub use catalogue::canonical;

use self::catalogue::{Catalogue, Model, check_name, give_name, path_of, unix_now};
use self::claims::Claims;
use self::index::ModelEntry;
use crate::data_dir::{DataDir, sync_dir};
use crate::durable::{Durable, RESERVE};
use crate::error::{Result, StorageError, io_error};
use crate::journal::Journal;
use crate::ranges::RangeSet;
use crate::records::Records;
use crate::types::ModelRecord;

/// Content by CID and the catalogue of models. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

// Dropped in this order: the journal's thread ends before the database, and that before the lock
// on the directory is given back.
struct Inner {
    journal: Journal,
    records: Records,
    content: sled::Tree,
    durable: Durable,
    catalogue: Catalogue,
    claims: Claims,
    _db: sled::Db,
    data: DataDir,
}

impl Store {
    /// Opens the store of a data directory, which stays held as long as the store lives. Blocking.
    pub fn open(data: &DataDir) -> Result<Self> {
        Ok(Self {
            inner: Arc::new(Inner::open(data)?),
        })
    }

    /// The journal of sessions.
    pub fn journal(&self) -> Journal {
        self.inner.journal.clone()
    }

    /// Small records.
    pub fn records(&self) -> Records {
        self.inner.records.clone()
    }

    /// The file that holds a model's bytes; sparse where they are not present.
    pub fn model_path(&self, root: &Cid) -> Result<PathBuf> {
        Ok(self.inner.known(root)?.path.clone())
    }

    /// Whether every byte of a range is here; false for a model that is not known.
    pub fn is_present(&self, root: &Cid, range: Range<u64>) -> Result<bool> {
        let model = self.inner.model(root);
        Ok(model.is_some_and(|model| model.contains(&range)))
    }

    /// How many bytes of a model are here; 0 for a model that is not known.
    pub fn present_bytes(&self, root: &Cid) -> Result<u64> {
        let model = self.inner.model(root);
        Ok(model.map_or(0, |model| model.state().present.total()))
    }

    /// Every model in the catalogue, the most recently named first.
    pub fn models(&self) -> Result<Vec<ModelRecord>> {
        let maps = self.inner.catalogue.read();
        let mut models: Vec<_> = maps.all().collect();
        models.sort_by_key(|model| std::cmp::Reverse(model.touched_at()));
        Ok(models.iter().map(|model| model.record()).collect())
    }

    /// Finds a model by the text of its CID (any version), or by name: of several that had the
    /// name, the one that got it last.
    pub fn resolve(&self, name_or_cid: &str) -> Result<Option<ModelRecord>> {
        let maps = self.inner.catalogue.read();
        let by_cid = name_or_cid.parse::<Cid>().ok();
        let found = by_cid.and_then(|cid| maps.by_cid(&cid));
        let found = found.or_else(|| maps.by_name(name_or_cid));
        Ok(found.map(|model| model.record()))
    }

    /// Enters a model learnt from elsewhere, or names and pins one that is here. Which bytes are
    /// present is not taken from the record, nor its length once the model's root was seen.
    /// Blocking, briefly.
    pub fn record(&self, record: ModelRecord) -> Result<()> {
        check_name(&record.name)?;
        let model = self.inner.ensure_model(&record.cid, record.bytes, false)?;
        self.inner.name(&model, &record.name, |entry| {
            entry.pinned = record.pinned;
            entry.added_unix = record.added_unix;
        })
    }

    /// Keeps a model when room is needed, or no longer. Blocking, briefly.
    pub fn pin(&self, root: &Cid, pinned: bool) -> Result<()> {
        let model = self.inner.known(root)?;
        self.inner.change(&model, |entry| entry.pinned = pinned)
    }

    /// Removes a model: its entry, its file and its blocks. Processes that have the file mapped
    /// keep their mapping; fetches of it end with an error. Blocking, briefly.
    pub fn remove(&self, root: &Cid) -> Result<()> {
        let model = self.inner.known(root)?;
        self.inner.remove(&model)
    }
}

impl Inner {
    fn model(&self, root: &Cid) -> Option<Arc<Model>> {
        self.catalogue.read().by_cid(root)
    }

    fn known(&self, root: &Cid) -> Result<Arc<Model>> {
        let unknown = || StorageError::UnknownModel {
            cid: canonical(root),
        };
        self.model(root).ok_or_else(unknown)
    }

    /// The model under a root, entered if need be. A verified length replaces hearsay.
    fn ensure_model(&self, root: &Cid, bytes: u64, verified: bool) -> Result<Arc<Model>> {
        if let Some(model) = self.model(root) {
            if verified && !model.state().entry.verified {
                self.change(&model, |entry| {
                    entry.bytes = bytes;
                    entry.verified = true;
                })?;
            }
            return Ok(model);
        }
        self.enter(root, bytes, verified)
    }

    fn enter(&self, root: &Cid, bytes: u64, verified: bool) -> Result<Arc<Model>> {
        let cid = canonical(root);
        let mut maps = self.catalogue.write();
        if let Some(model) = maps.by_cid(&cid) {
            return Ok(model);
        }
        let id = maps.next_id;
        let entry = ModelEntry {
            cid: cid.to_bytes(),
            bytes,
            verified,
            pinned: false,
            added_unix: unix_now(),
            names: Vec::new(),
        };
        let mut batch = Batch::default();
        index::put_entry(&mut batch, id, &entry)?;
        // In the same batch: a number must never name two models.
        let next: &[u8] = &(id + 1).to_be_bytes();
        batch.insert(index::NEXT_MODEL_KEY, next);
        self.apply(batch)?;
        let path = path_of(&self.data.models_dir(), &cid);
        Ok(maps.insert(Model::new(id, cid, path, entry, RangeSet::new())))
    }

    /// Gives a model a name, with further changes to its entry.
    fn name(&self, model: &Model, name: &str, change: impl FnOnce(&mut ModelEntry)) -> Result<()> {
        let at = self.catalogue.write().touch();
        self.change(model, |entry| {
            give_name(entry, name, at);
            change(entry);
        })
    }

    fn change(&self, model: &Model, change: impl FnOnce(&mut ModelEntry)) -> Result<()> {
        let _writing = model.write()?;
        let mut entry = model.state().entry.clone();
        change(&mut entry);
        let mut batch = Batch::default();
        index::put_entry(&mut batch, model.id, &entry)?;
        self.apply(batch)?;
        model.state().entry = entry;
        Ok(())
    }

    fn remove(&self, model: &Model) -> Result<()> {
        let _writing = model.write()?;
        let mut batch = Batch::default();
        batch.remove(index::entry_key(model.id));
        for present in self.content.scan_prefix(index::present_prefix(model.id)) {
            batch.remove(present?.0);
        }
        self.apply(batch)?;
        model.state().removed = true;
        match std::fs::remove_file(&model.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("remove", &model.path)(error));
            }
            _ => sync_dir(&self.data.models_dir())?,
        }
        // Only now may the CID be entered again: its file has the same path.
        self.catalogue.write().remove(model);
        self.forget_blocks_of(model)
    }

    /// Changes the content tree atomically and durably.
    fn apply(&self, batch: Batch) -> Result<()> {
        self.durable.check_room(RESERVE)?;
        self.content.apply_batch(batch)?;
        self.durable.flush(&self.content)
    }
}
