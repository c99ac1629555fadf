//! Adding a file: it is copied into the store piece by piece, and each piece is hashed by several
//! threads while it is still in the page cache.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use cid::Cid;
use sled::Batch;
use tempfile::NamedTempFile;
use tokio::sync::watch;

use super::catalogue::{Model, check_name, unix_now};
use super::index::{self, Location};
use super::{Inner, Store};
use crate::dag::{Balanced, CHUNK, Link, MAX_FILE, leaf_link};
use crate::data_dir::sync_dir;
use crate::error::{Result, StorageError, io_error};
use crate::positioned;
use crate::types::ModelRecord;

/// Copied and hashed at a time: large enough to keep the threads busy.
const PIECE: u64 = 128 * CHUNK as u64;
const MAX_THREADS: usize = 8;
/// Index entries per batch.
const BATCH: usize = 4096;

/// A whole tree over a file.
struct Tree {
    root: Cid,
    len: u64,
    leaves: Vec<Cid>,
    nodes: Vec<(Cid, Bytes)>,
}

/// What an import tells and is told while it runs on its own thread.
struct Watch {
    progress: watch::Sender<u64>,
    cancelled: Arc<AtomicBool>,
}

/// Stops the import when the caller no longer waits for it.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Store {
    /// Adds a file under a name and returns its record; its CID is that of
    /// `ipfs add --cid-version=1`. The file is copied (or cloned, where the file system can), unless
    /// its content is here already. `progress` gets (bytes done, bytes in all).
    pub async fn add_file(
        &self,
        src: &Path,
        name: &str,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<ModelRecord> {
        check_name(name)?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(cancelled.clone());
        let (sender, mut done) = watch::channel(0);
        let watch = Watch {
            progress: sender,
            cancelled,
        };
        let (inner, src, name) = (self.inner.clone(), src.to_owned(), name.to_owned());
        let (total, file) = tokio::task::spawn_blocking(move || open_source(src))
            .await
            .map_err(|_| StorageError::Interrupted("the import did not start"))??;
        let import = tokio::task::spawn_blocking(move || inner.import(file, total, &name, &watch));
        progress(0, total);
        // Ends when the import drops its side.
        while done.changed().await.is_ok() {
            let bytes = *done.borrow_and_update();
            progress(bytes, total);
        }
        import
            .await
            .map_err(|_| StorageError::Interrupted("the import stopped; try again"))?
    }
}

/// A file to add.
struct Source {
    path: PathBuf,
    file: File,
}

fn open_source(path: PathBuf) -> Result<(u64, Source)> {
    let file = File::open(&path).map_err(io_error("open", &path))?;
    let metadata = file.metadata().map_err(io_error("read", &path))?;
    let why = if !metadata.is_file() {
        "it is not a regular file"
    } else if metadata.len() > MAX_FILE {
        "it is longer than any model"
    } else {
        return Ok((metadata.len(), Source { path, file }));
    };
    Err(StorageError::NotAddable { path, why })
}

impl Inner {
    fn import(&self, source: Source, len: u64, name: &str, watch: &Watch) -> Result<ModelRecord> {
        // Most likely the same file once more: worth hashing before it is copied.
        if self.has_complete_of_len(len) {
            let tree = hash(&source.file, &source.path, len, watch)?;
            if let Some(model) = self.model(&tree.root)
                && model.contains(&(0..len))
            {
                return self.named(&model, name);
            }
        }
        let (copy, tree) = self.copy(source, len, watch)?;
        let model = self.ensure_model(&tree.root, len, true)?;
        self.put_in_place(&model, copy, &tree)?;
        self.named(&model, name)
    }

    fn has_complete_of_len(&self, len: u64) -> bool {
        let maps = self.catalogue.read();
        maps.all().any(|model| {
            let state = model.state();
            state.entry.bytes == len && state.present.total() == len
        })
    }

    fn named(&self, model: &Model, name: &str) -> Result<ModelRecord> {
        self.name(model, name, |entry| entry.added_unix = unix_now())?;
        Ok(model.record())
    }

    fn copy(&self, source: Source, len: u64, watch: &Watch) -> Result<(NamedTempFile, Tree)> {
        self.check_space(len)?;
        let dir = self.data.temporary_dir();
        let mut copy = NamedTempFile::new_in(&dir).map_err(io_error("create a file in", &dir))?;
        let mut from = source.file;
        let mut builder = TreeBuilder::default();
        let mut done = 0;
        while done < len {
            watch.check()?;
            let piece = PIECE.min(len - done);
            // On Linux this is copy_file_range: a clone where the file system can, never through
            // this process.
            let copied = io::copy(&mut from.by_ref().take(piece), copy.as_file_mut())
                .map_err(io_error("copy", &source.path))?;
            if copied != piece {
                return Err(changed(&source.path));
            }
            builder.piece(copy.as_file(), copy.path(), done, piece)?;
            done += piece;
            watch.progress.send_replace(done);
        }
        copy.as_file()
            .sync_all()
            .map_err(io_error("sync", copy.path()))?;
        Ok((copy, builder.finish(len)))
    }

    fn put_in_place(&self, model: &Model, copy: NamedTempFile, tree: &Tree) -> Result<()> {
        let writing = model.write()?;
        writing.replace_file(copy)?;
        sync_dir(&self.data.models_dir())?;
        let mut batch = Batch::default();
        let mut size = 0;
        for (cid, location) in tree.blocks() {
            batch.insert(index::block_key(&cid, model.id), index::encode(&location)?);
            size += 1;
            if size == BATCH {
                self.content.apply_batch(std::mem::take(&mut batch))?;
                size = 0;
            }
        }
        // What makes the model present comes last.
        let mut present = model.state().present.clone();
        index::put_presence(&mut batch, model.id, present.insert(0..tree.len));
        self.apply(batch)?;
        model.state().present = present;
        Ok(())
    }

    /// Refuses what cannot fit.
    pub(super) fn check_space(&self, needed: u64) -> Result<()> {
        let path = self.data.models_dir();
        let available =
            fs4::available_space(&path).map_err(io_error("ask for the free space of", &path))?;
        if available < needed {
            return Err(StorageError::NotEnoughSpace {
                path,
                needed,
                available,
            });
        }
        Ok(())
    }
}

impl Watch {
    fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(StorageError::Interrupted("the import was cancelled"));
        }
        Ok(())
    }
}

impl Tree {
    /// Every block and where it is. The last one of equal leaves wins; any would do.
    fn blocks(&self) -> impl Iterator<Item = (Cid, Location)> + '_ {
        let leaves = self.leaves.iter().zip((0..).step_by(CHUNK));
        let leaves = leaves.map(|(cid, offset)| {
            let len = (self.len - offset).min(CHUNK as u64);
            (*cid, file_location(offset, len))
        });
        let nodes = self.nodes.iter().map(|(cid, block)| {
            let mut location = file_location(0, 0);
            location.head = block.to_vec();
            (*cid, location)
        });
        leaves.chain(nodes)
    }
}

fn file_location(offset: u64, len: u64) -> Location {
    Location {
        offset,
        len: u32::try_from(len).expect("a chunk is far smaller"),
        head: Vec::new(),
        tail: Vec::new(),
    }
}

#[derive(Default)]
struct TreeBuilder {
    balanced: Balanced,
    leaves: Vec<Cid>,
    nodes: Vec<(Cid, Bytes)>,
}

impl TreeBuilder {
    /// Hashes a piece of a file; pieces come in order and all but the last are whole chunks.
    fn piece(&mut self, file: &File, path: &Path, offset: u64, len: u64) -> Result<()> {
        for link in hash_chunks(file, offset, len).map_err(io_error("read", path))? {
            self.leaves.push(link.cid());
            let nodes = &mut self.nodes;
            self.balanced
                .push(link, &mut |cid, block| nodes.push((cid, block)));
        }
        Ok(())
    }

    fn finish(mut self, len: u64) -> Tree {
        let nodes = &mut self.nodes;
        let root = self
            .balanced
            .finish(&mut |cid, block| nodes.push((cid, block)));
        if self.leaves.is_empty() {
            self.leaves.push(root.cid());
        }
        debug_assert_eq!(root.file_len(), len);
        Tree {
            root: root.cid(),
            len,
            leaves: self.leaves,
            nodes: self.nodes,
        }
    }
}

fn hash(file: &File, path: &Path, len: u64, watch: &Watch) -> Result<Tree> {
    let mut builder = TreeBuilder::default();
    let mut done = 0;
    while done < len {
        watch.check()?;
        let piece = PIECE.min(len - done);
        builder.piece(file, path, done, piece)?;
        done += piece;
        watch.progress.send_replace(done);
    }
    Ok(builder.finish(len))
}

/// Hashes the chunks of a piece on several threads, each with one chunk in memory.
fn hash_chunks(file: &File, offset: u64, len: u64) -> io::Result<Vec<Link>> {
    let chunks: Vec<u64> = (offset..offset + len).step_by(CHUNK).collect();
    let end = offset + len;
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = chunks.len().div_ceil(threads.min(MAX_THREADS)).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = chunks
            .chunks(share)
            .map(|share| scope.spawn(move || hash_share(file, share, end)))
            .collect();
        let mut links = Vec::with_capacity(chunks.len());
        for worker in workers {
            let hashed = worker
                .join()
                .map_err(|_| io::Error::other("a hashing thread panicked"))?;
            links.extend(hashed?);
        }
        Ok(links)
    })
}

fn hash_share(file: &File, starts: &[u64], end: u64) -> io::Result<Vec<Link>> {
    let mut buffer = vec![0; CHUNK];
    let mut links = Vec::with_capacity(starts.len());
    for &start in starts {
        let len = usize::try_from(end - start).map_or(CHUNK, |left| left.min(CHUNK));
        let (chunk, _) = buffer.split_at_mut(len);
        positioned::read_exact_at(file, chunk, start)?;
        links.push(leaf_link(chunk));
    }
    Ok(links)
}

fn changed(path: &Path) -> StorageError {
    StorageError::NotAddable {
        path: path.to_owned(),
        why: "it changed while it was read; try again when it is complete",
    }
}
