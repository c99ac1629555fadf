//! Blocks on this disk: cutting them out of the files, and entering new ones.

use std::fs::File;
use std::io;

use bytes::{Bytes, BytesMut};
use cid::Cid;
use sled::Batch;
use tracing::warn;

use super::catalogue::Model;
use super::claims::Claim;
use super::index::{self, Location};
use super::{Inner, Store};
use crate::dag;
use crate::error::{Result, StorageError, io_error};
use crate::positioned;

/// Keys removed in one batch.
const BATCH: usize = 4096;

/// A block whose bytes are in the file but not yet durable.
pub(super) struct Landed {
    pub cid: Cid,
    pub location: Location,
    /// Whether the index must learn of the block; not for content within its own CID.
    pub indexed: bool,
    /// Released once the block is durable.
    pub _claim: Option<Claim>,
}

impl Store {
    /// One block, verified as it leaves the disk; `None` when it is not here. A block that the
    /// disk has corrupted is forgotten, so that it is fetched again. Blocking, briefly.
    pub fn get_block(&self, cid: &Cid) -> Result<Option<Bytes>> {
        self.inner.get_block(cid)
    }

    /// Whether a block is here, as far as the index knows. Blocking, briefly.
    pub fn has_block(&self, cid: &Cid) -> Result<bool> {
        if dag::inline(cid).is_some() {
            return Ok(true);
        }
        for item in self.inner.content.scan_prefix(index::block_prefix(cid)) {
            let (key, _) = item?;
            let id = index::model_of_block(&key);
            if id.is_some_and(|id| self.inner.catalogue.read().by_id(id).is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Inner {
    pub(super) fn get_block(&self, cid: &Cid) -> Result<Option<Bytes>> {
        if let Some(content) = dag::inline(cid) {
            return Ok(Some(content));
        }
        if dag::check_cid(cid).is_err() {
            return Ok(None);
        }
        for item in self.content.scan_prefix(index::block_prefix(cid)) {
            let (key, value) = item?;
            let id = index::model_of_block(&key);
            let model = id.and_then(|id| self.catalogue.read().by_id(id));
            let Some(model) = model else {
                // Left by a removal that was cut short.
                self.content.remove(&key)?;
                continue;
            };
            let location = index::decode_location(&value)?;
            if let Some(block) = read_verified(&model, cid, &location)? {
                return Ok(Some(block));
            }
            self.forget_damaged(&model, cid, &location)?;
        }
        Ok(None)
    }

    /// Enters blocks whose bytes were written to the file: first the bytes are made durable, then
    /// the index and the presence change in one step.
    pub(super) fn commit(&self, model: &Model, file: &File, landed: &[Landed]) -> Result<()> {
        file.sync_data().map_err(io_error("sync", &model.path))?;
        let _writing = model.write()?;
        let mut present = model.state().present.clone();
        let mut batch = Batch::default();
        for block in landed {
            if block.indexed {
                let key = index::block_key(&block.cid, model.id);
                batch.insert(key, index::encode(&block.location)?);
            }
            let change = present.insert(block.location.range());
            index::put_presence(&mut batch, model.id, change);
        }
        self.apply(batch)?;
        model.state().present = present;
        Ok(())
    }

    pub(super) fn has_block_of(&self, model: &Model, cid: &Cid) -> Result<bool> {
        Ok(self.content.contains_key(index::block_key(cid, model.id))?)
    }

    /// Takes the blocks of a removed model out of the index.
    pub(super) fn forget_blocks_of(&self, model: &Model) -> Result<()> {
        let mut batch = Batch::default();
        let mut size = 0;
        for key in self.content.scan_prefix(index::BLOCKS).keys() {
            let key = key?;
            if index::model_of_block(&key) != Some(model.id) {
                continue;
            }
            batch.remove(key);
            size += 1;
            if size == BATCH {
                self.content.apply_batch(std::mem::take(&mut batch))?;
                size = 0;
            }
        }
        self.apply(batch)
    }

    fn forget_damaged(&self, model: &Model, cid: &Cid, location: &Location) -> Result<()> {
        let Ok(_writing) = model.write() else {
            return Ok(());
        };
        warn!(%cid, path = %model.path.display(), offset = location.offset,
            "a block on disk is corrupted; it is not served and will be fetched again");
        let mut present = model.state().present.clone();
        let mut batch = Batch::default();
        batch.remove(index::block_key(cid, model.id));
        let change = present.remove(&location.range());
        index::put_presence(&mut batch, model.id, change);
        self.apply(batch)?;
        model.state().present = present;
        Ok(())
    }
}

/// Reads a block and checks it against its CID; `None` when it is not what it was. A disk that
/// cannot be read at the moment is an error and says nothing about the block.
fn read_verified(model: &Model, cid: &Cid, location: &Location) -> Result<Option<Bytes>> {
    match read(model, location) {
        Ok(block) => {
            let intact = dag::matches(cid, &block).unwrap_or(false);
            Ok(intact.then_some(block))
        }
        Err(StorageError::Io { source, .. }) if is_cut(&source) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_cut(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound
    )
}

fn read(model: &Model, location: &Location) -> Result<Bytes> {
    let mut block = BytesMut::with_capacity(location.block_len());
    block.extend_from_slice(&location.head);
    if location.len > 0 {
        let start = block.len();
        block.resize(start + location.len as usize, 0);
        let (_, buffer) = block.split_at_mut(start);
        positioned::read_exact_at(&*model.file()?, buffer, location.offset)
            .map_err(io_error("read", &model.path))?;
    }
    block.extend_from_slice(&location.tail);
    Ok(block.freeze())
}
