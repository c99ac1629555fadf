//! The models of a store: their entries, presence and files.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use cid::Cid;

use super::index::{ModelEntry, ModelId};
use crate::data_dir::sync_dir;
use crate::error::{Result, StorageError, io_error};
use crate::ranges::RangeSet;
use crate::types::ModelRecord;

/// Names kept per model; the oldest is forgotten.
const NAMES_PER_MODEL: usize = 16;

/// One model. Two locks: `writing` orders changes and may be held over disk writes, `state` only
/// over memory.
pub(super) struct Model {
    pub id: ModelId,
    pub cid: Cid,
    pub path: PathBuf,
    writing: Mutex<()>,
    state: Mutex<ModelState>,
}

/// What changes about a model.
pub(super) struct ModelState {
    pub entry: ModelEntry,
    pub present: RangeSet,
    pub removed: bool,
    file: Option<Arc<File>>,
}

/// The right to change a model, on disk and in memory.
pub(super) struct Writing<'a> {
    model: &'a Model,
    _guard: MutexGuard<'a, ()>,
}

impl Model {
    pub(super) fn new(
        id: ModelId,
        cid: Cid,
        path: PathBuf,
        entry: ModelEntry,
        present: RangeSet,
    ) -> Self {
        let state = ModelState {
            entry,
            present,
            removed: false,
            file: None,
        };
        Self {
            id,
            cid,
            path,
            writing: Mutex::new(()),
            state: Mutex::new(state),
        }
    }

    /// A look at the present state; never held over IO.
    pub(super) fn state(&self) -> MutexGuard<'_, ModelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the right to change the model; refused once it was removed.
    pub(super) fn write(&self) -> Result<Writing<'_>> {
        let guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state().removed {
            return Err(StorageError::Removed { cid: self.cid });
        }
        Ok(Writing {
            model: self,
            _guard: guard,
        })
    }

    /// The model's file, opened once.
    pub(super) fn file(&self) -> Result<Arc<File>> {
        if let Some(file) = &self.state().file {
            return Ok(file.clone());
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
            .map_err(io_error("open", &self.path))?;
        let file = Arc::new(file);
        Ok(self.state().file.get_or_insert(file).clone())
    }

    pub(super) fn contains(&self, range: &Range<u64>) -> bool {
        self.state().present.contains(range)
    }

    pub(super) fn record(&self) -> ModelRecord {
        let state = self.state();
        let newest = state.entry.names.last().map(|(name, _)| name.clone());
        ModelRecord {
            cid: self.cid,
            name: newest.unwrap_or_else(|| self.cid.to_string()),
            bytes: state.entry.bytes,
            present_bytes: state.present.total(),
            pinned: state.entry.pinned,
            added_unix: state.entry.added_unix,
        }
    }

    /// When the name was given to this model, in this store's order.
    pub(super) fn named_at(&self, name: &str) -> Option<u64> {
        let state = self.state();
        let given = state.entry.names.iter().rev();
        given.clone().find(|(n, _)| n == name).map(|(_, at)| *at)
    }

    /// When any name was given last.
    pub(super) fn touched_at(&self) -> u64 {
        self.state().entry.names.last().map_or(0, |(_, at)| *at)
    }
}

impl Writing<'_> {
    /// Creates or extends the sparse file to the length of the model.
    pub(super) fn ensure_file(&self, len: u64) -> Result<Arc<File>> {
        let path = &self.model.path;
        if let Some(file) = &self.model.state().file {
            return Ok(file.clone());
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io_error("create", path))?;
        file.set_len(len).map_err(io_error("size", path))?;
        if let Some(dir) = path.parent() {
            sync_dir(dir)?;
        }
        let file = Arc::new(file);
        self.model.state().file = Some(file.clone());
        Ok(file)
    }

    /// Puts a finished file in the place of whatever part of the model was there.
    pub(super) fn replace_file(&self, finished: tempfile::NamedTempFile) -> Result<()> {
        let path = &self.model.path;
        let file = finished
            .persist(path)
            .map_err(|error| io_error("move a finished file to", path)(error.error))?;
        self.model.state().file = Some(Arc::new(file));
        Ok(())
    }
}

/// Every model, by number and by CID.
#[derive(Default)]
pub(super) struct Catalogue {
    maps: RwLock<Maps>,
}

#[derive(Default)]
pub(super) struct Maps {
    by_id: BTreeMap<ModelId, Arc<Model>>,
    by_cid: HashMap<Cid, ModelId>,
    pub next_id: ModelId,
    next_touch: u64,
}

impl Catalogue {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maps {
    pub(super) fn insert(&mut self, model: Model) -> Arc<Model> {
        let model = Arc::new(model);
        self.next_touch = self.next_touch.max(model.touched_at() + 1);
        self.next_id = self.next_id.max(model.id + 1);
        self.by_cid.insert(model.cid, model.id);
        self.by_id.insert(model.id, model.clone());
        model
    }

    pub(super) fn remove(&mut self, model: &Model) {
        self.by_id.remove(&model.id);
        self.by_cid.remove(&model.cid);
    }

    pub(super) fn by_id(&self, id: ModelId) -> Option<Arc<Model>> {
        self.by_id.get(&id).cloned()
    }

    pub(super) fn by_cid(&self, cid: &Cid) -> Option<Arc<Model>> {
        self.by_id(*self.by_cid.get(&canonical(cid))?)
    }

    /// The model that was given the name last.
    pub(super) fn by_name(&self, name: &str) -> Option<Arc<Model>> {
        let named = self.by_id.values().filter_map(|model| {
            let at = model.named_at(name)?;
            Some((at, model))
        });
        named
            .max_by_key(|(at, _)| *at)
            .map(|(_, model)| model.clone())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.by_id.values()
    }

    /// The next place in the order in which names are given.
    pub(super) fn touch(&mut self) -> u64 {
        let now = self.next_touch;
        self.next_touch += 1;
        now
    }
}

/// Adds a name as the newest.
pub(super) fn give_name(entry: &mut ModelEntry, name: &str, at: u64) {
    entry.names.retain(|(known, _)| known != name);
    if entry.names.len() >= NAMES_PER_MODEL {
        entry.names.remove(0);
    }
    entry.names.push((name.to_owned(), at));
}

/// Refuses names that could not be shown or typed.
pub(super) fn check_name(name: &str) -> Result<()> {
    let why = if name.is_empty() || name.len() > 256 {
        "it must have 1 to 256 bytes"
    } else if name.chars().any(char::is_control) {
        "it must not contain control characters"
    } else if name.trim() != name {
        "it must not begin or end with a space"
    } else {
        return Ok(());
    };
    Err(StorageError::BadName {
        name: name.to_owned(),
        why,
    })
}

/// The form in which this crate names content: CID version 1. Version 0 is the same content.
pub fn canonical(cid: &Cid) -> Cid {
    cid.into_v1().unwrap_or(*cid)
}

pub(super) fn path_of(models_dir: &Path, cid: &Cid) -> PathBuf {
    models_dir.join(canonical(cid).to_string())
}

pub(super) fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |elapsed| elapsed.as_secs())
}
