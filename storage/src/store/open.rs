//! Opening a store: what the database says is checked against the files.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cid::Cid;
use sled::Batch;
use tracing::warn;

use super::Inner;
use super::catalogue::{Catalogue, Maps, Model, path_of};
use super::claims::Claims;
use super::index::{self, ModelId};
use crate::data_dir::DataDir;
use crate::durable::Durable;
use crate::error::{Result, StorageError, io_error};
use crate::journal::Journal;
use crate::ranges::{RangeChange, RangeSet};
use crate::records::Records;

/// Memory for sled's page cache. The index of a 5 GB model takes about 3 MB.
const DATABASE_CACHE: u64 = 64 << 20;
/// How long an earlier store of this process may take to let go of the database.
const LETTING_GO: Duration = Duration::from_secs(5);

impl Inner {
    pub(super) fn open(data: &DataDir) -> Result<Self> {
        let db = database(data)?;
        let durable = Durable::new(data.path().join("db"))?;
        let content = db.open_tree("content")?;
        check_format(&content)?;
        let catalogue = Catalogue::default();
        load(&content, data, &mut catalogue.write())?;
        remove_strays(data, &catalogue.read())?;
        let journal = db.open_tree("journal")?;
        durable.flush(&content)?;
        Ok(Self {
            journal: Journal::start(journal, durable.clone(), data.clone())?,
            records: Records::new(db.open_tree("records")?, durable.clone()),
            content,
            durable,
            catalogue,
            claims: Claims::default(),
            _db: db,
            data: data.clone(),
        })
    }
}

/// Opens the database. The directory is held, so whoever still holds the database is an earlier
/// store of this process, whose threads are about to end.
fn database(data: &DataDir) -> Result<sled::Db> {
    let config = sled::Config::new()
        .path(data.path().join("db"))
        .cache_capacity(DATABASE_CACHE)
        // Whoever needs durability flushes; a timer would only add writes.
        .flush_every_ms(None);
    let deadline = Instant::now() + LETTING_GO;
    loop {
        match config.open() {
            Err(error) if is_held(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return Ok(opened?),
        }
    }
}

/// Sled tells it in words only.
fn is_held(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn check_format(content: &sled::Tree) -> Result<()> {
    let Some(value) = content.get(index::FORMAT_KEY)? else {
        let format: &[u8] = &index::FORMAT.to_be_bytes();
        content.insert(index::FORMAT_KEY, format)?;
        return Ok(());
    };
    let found = index::decode_number(&value)?;
    if found != index::FORMAT {
        return Err(StorageError::Format {
            found,
            known: index::FORMAT,
        });
    }
    Ok(())
}

fn load(content: &sled::Tree, data: &DataDir, maps: &mut Maps) -> Result<()> {
    if let Some(value) = content.get(index::NEXT_MODEL_KEY)? {
        maps.next_id = index::decode_number(&value)?;
    }
    for item in content.scan_prefix(index::ENTRIES) {
        let (key, value) = item?;
        let id = index::model_of_entry(&key).ok_or_else(|| StorageError::Damaged {
            what: "a catalogue key",
            detail: format!("{key:?}"),
        })?;
        maps.insert(load_model(content, data, id, &value)?);
    }
    Ok(())
}

fn load_model(
    content: &sled::Tree,
    data: &DataDir,
    id: ModelId,
    value: &sled::IVec,
) -> Result<Model> {
    let entry = index::decode_entry(value)?;
    let cid = Cid::try_from(entry.cid.as_slice()).map_err(|error| StorageError::Damaged {
        what: "a catalogue entry",
        detail: error.to_string(),
    })?;
    let path = path_of(&data.models_dir(), &cid);
    let mut present = RangeSet::new();
    for item in content.scan_prefix(index::present_prefix(id)) {
        let (key, value) = item?;
        present.insert(index::present_range(&key, &value)?);
    }
    let file_len = fs::metadata(&path).map_or(0, |file| file.len());
    if !present.is_empty() && file_len != entry.bytes {
        warn!(%cid, path = %path.display(), "the model's file is missing or cut; it will be fetched again");
        forget_presence(content, id, &present)?;
        present = RangeSet::new();
    }
    Ok(Model::new(id, cid, path, entry, present))
}

fn forget_presence(content: &sled::Tree, id: ModelId, present: &RangeSet) -> Result<()> {
    let mut batch = Batch::default();
    let gone = RangeChange {
        removed: present.iter().map(|range| range.start).collect(),
        added: Vec::new(),
    };
    index::put_presence(&mut batch, id, gone);
    content.apply_batch(batch)?;
    Ok(())
}

/// Removes files that no entry knows: an import or removal that a crash cut short.
fn remove_strays(data: &DataDir, maps: &Maps) -> Result<()> {
    let known: HashSet<PathBuf> = maps.all().map(|model| model.path.clone()).collect();
    let dir = data.models_dir();
    for item in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
        let path = item.map_err(io_error("list", &dir))?.path();
        if !known.contains(&path) && path.is_file() {
            warn!(path = %path.display(), "removing the rest of an interrupted operation");
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}
