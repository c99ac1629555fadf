//! Fetching parts of a file: up to [`IN_FLIGHT`] blocks are under way at once; each is verified and
//! written to its place; what has landed becomes durable in groups while more is under way.

use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::task::JoinHandle;

use super::blocks::Landed;
use super::catalogue::{Model, canonical};
use super::claims::Claim;
use super::index::Location;
use super::walk::{Item, Walk, check_len};
use super::{Inner, Store};
use crate::dag::{self, FileNode, MAX_FILE};
use crate::error::{DagError, Result, StorageError, io_error};
use crate::positioned;
use crate::ranges::RangeSet;
use crate::types::{BlockSource, FetchProgress, FetchReport, Want};

/// Blocks under way at once.
const IN_FLIGHT: usize = 32;
/// Blocks that may wait for the disk before no more are asked for.
const UNSYNCED: usize = 256;
/// How often a block is asked for when the answers are wrong.
const ATTEMPTS: u32 = 3;
/// What a tree may take beside the content it is fetched for: twice that content, and this.
const OVERHEAD: u64 = 64 << 20;

type Visit<'a> = Pin<Box<dyn Future<Output = Result<Visited>> + Send + 'a>>;

/// A block that was obtained and, if it carries content, written.
struct Visited {
    item: Item,
    node: FileNode,
    landed: Option<Landed>,
    /// Its size, if it came from the source.
    fetched: Option<u64>,
}

/// A verified block.
struct Obtained {
    block: Bytes,
    claim: Option<Claim>,
    from_source: bool,
}

impl Store {
    /// Fetches parts of a file: the tree nodes on the way and the leaves that overlap what is
    /// wanted, as far as they are not here. Can be repeated after any interruption; what was
    /// durable by then is not fetched again. Dropping the future stops it.
    pub async fn fetch(
        &self,
        root: &Cid,
        want: Want,
        source: &dyn BlockSource,
        progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<FetchReport> {
        let root = canonical(root);
        let (len, head) = self.inner.root_len(&root, source).await?;
        let wanted = wanted(want, len);
        let inner = self.inner.clone();
        let (model, file, missing) = {
            let wanted = wanted.clone();
            blocking(move || inner.prepare(&root, len, &wanted)).await?
        };
        let mut fetch = Fetch {
            inner: &self.inner,
            source,
            progress,
            walk: Walk::new(wanted.clone(), Item::root(root, len)),
            total: wanted.total(),
            report: FetchReport {
                file_len: len,
                bytes_already_here: wanted.total(),
                ..FetchReport::default()
            },
            done: wanted.total() - missing,
            overhead: 0,
            pending: Vec::new(),
            model,
            file,
        };
        if let Some(head) = head {
            fetch.begin_with(Item::root(root, len), head).await?;
        }
        fetch.run().await
    }

    /// Length of the file under a root; fetches the root block only if need be, and keeps nothing.
    pub async fn file_len(&self, root: &Cid, source: &dyn BlockSource) -> Result<u64> {
        let (len, _) = self.inner.root_len(&canonical(root), source).await?;
        Ok(len)
    }
}

impl Inner {
    /// The length of the file, and the root block if that had to be looked at.
    async fn root_len(
        self: &Arc<Self>,
        root: &Cid,
        source: &dyn BlockSource,
    ) -> Result<(u64, Option<Obtained>)> {
        if let Some(model) = self.model(root) {
            let state = model.state();
            if state.entry.verified {
                return Ok((state.entry.bytes, None));
            }
        }
        let refused = |source| StorageError::Dag { cid: *root, source };
        dag::check_cid(root).map_err(refused)?;
        let obtained = self.obtain(*root, source).await?;
        let len = dag::decode(root, &obtained.block).map_err(refused)?.len;
        if len > MAX_FILE {
            let limit = MAX_FILE;
            return Err(refused(DagError::FileTooLong { bytes: len, limit }));
        }
        Ok((len, Some(obtained)))
    }

    /// Enters the model, makes its file and checks that the missing part fits on the disk.
    fn prepare(
        &self,
        root: &Cid,
        len: u64,
        wanted: &RangeSet,
    ) -> Result<(Arc<Model>, Arc<File>, u64)> {
        let model = self.ensure_model(root, len, true)?;
        let missing = {
            let state = model.state();
            let here: u64 = wanted.iter().map(|part| state.present.overlap(&part)).sum();
            wanted.total() - here
        };
        self.check_space(missing)?;
        let file = model.write()?.ensure_file(len)?;
        Ok((model, file, missing))
    }

    /// Gets a block from its own CID, this disk or the source, in this order.
    async fn obtain(self: &Arc<Self>, cid: Cid, source: &dyn BlockSource) -> Result<Obtained> {
        if let Some(block) = dag::inline(&cid) {
            return Ok(Obtained {
                block,
                claim: None,
                from_source: false,
            });
        }
        let claim = self.claims.claim(&cid).await;
        let inner = self.clone();
        if let Some(block) = blocking(move || inner.get_block(&cid)).await? {
            return Ok(Obtained {
                block,
                claim,
                from_source: false,
            });
        }
        Ok(Obtained {
            block: ask(cid, source).await?,
            claim,
            from_source: true,
        })
    }

    async fn visit(
        self: Arc<Self>,
        model: Arc<Model>,
        file: Arc<File>,
        item: Item,
        source: &dyn BlockSource,
    ) -> Result<Visited> {
        let obtained = self.obtain(item.cid, source).await?;
        blocking(move || self.land(&model, &file, item, obtained)).await
    }

    /// Writes what a block holds of the file to its place.
    fn land(&self, model: &Model, file: &File, item: Item, obtained: Obtained) -> Result<Visited> {
        let Obtained {
            block,
            claim,
            from_source,
        } = obtained;
        let refused = |source| StorageError::Dag {
            cid: item.cid,
            source,
        };
        let node = dag::decode(&item.cid, &block).map_err(refused)?;
        check_len(&item, &node).map_err(refused)?;
        let location = locate(&block, &node, item.offset);
        let is_new = !self.has_block_of(model, &item.cid)?;
        let is_missing = !model.contains(&location.range());
        if is_missing {
            let data = block.get(node.data.clone()).unwrap_or_default();
            positioned::write_all_at(file, data, item.offset)
                .map_err(io_error("write", &model.path))?;
        }
        let landed = (is_new || is_missing).then(|| Landed {
            cid: item.cid,
            location,
            indexed: dag::inline(&item.cid).is_none(),
            _claim: claim,
        });
        Ok(Visited {
            item,
            node,
            landed,
            fetched: from_source.then_some(block.len() as u64),
        })
    }
}

/// A fetch under way.
struct Fetch<'a> {
    inner: &'a Arc<Inner>,
    source: &'a dyn BlockSource,
    progress: &'a (dyn Fn(FetchProgress) + Send + Sync),
    walk: Walk,
    total: u64,
    done: u64,
    overhead: u64,
    report: FetchReport,
    pending: Vec<Landed>,
    model: Arc<Model>,
    file: Arc<File>,
}

impl<'a> Fetch<'a> {
    /// Uses the root block that was fetched to learn the length.
    async fn begin_with(&mut self, root: Item, obtained: Obtained) -> Result<()> {
        let (inner, model, file) = (self.inner.clone(), self.model.clone(), self.file.clone());
        let visited = blocking(move || inner.land(&model, &file, root, obtained)).await?;
        // The walk begins at the root: it is expanded here instead.
        let _root = self.walk.next(&RangeSet::new());
        self.take(visited)
    }

    async fn run(mut self) -> Result<FetchReport> {
        let mut visits = FuturesUnordered::new();
        let mut commit: Option<JoinHandle<Result<()>>> = None;
        let mut failure = None;
        self.tell();
        loop {
            if failure.is_none() {
                self.start_visits(&mut visits);
            }
            if commit.is_none() && !self.pending.is_empty() {
                commit = Some(self.start_commit());
            }
            if visits.is_empty() && commit.is_none() {
                break;
            }
            let step = tokio::select! {
                Some(visited) = visits.next() => visited.and_then(|visited| self.take(visited)),
                committed = finished(&mut commit) => committed,
            };
            if let Err(error) = step {
                // What has landed is still made durable, so that a later fetch goes on from there.
                failure.get_or_insert(error);
                visits.clear();
            }
        }
        match failure {
            Some(error) => Err(error),
            None => {
                // Parts that another fetch brought meanwhile were not visited.
                self.done = self.total;
                self.tell();
                Ok(self.report)
            }
        }
    }

    fn start_visits(&mut self, visits: &mut FuturesUnordered<Visit<'a>>) {
        while self.pending.len() < UNSYNCED && self.walk.has_room(visits.len(), IN_FLIGHT) {
            let next = self.walk.next(&self.model.state().present);
            let Some(item) = next else { break };
            let inner = self.inner.clone();
            let (model, file) = (self.model.clone(), self.file.clone());
            visits.push(Box::pin(inner.visit(model, file, item, self.source)));
        }
    }

    fn start_commit(&mut self) -> JoinHandle<Result<()>> {
        let landed = std::mem::take(&mut self.pending);
        let (inner, model, file) = (self.inner.clone(), self.model.clone(), self.file.clone());
        tokio::task::spawn_blocking(move || inner.commit(&model, &file, &landed))
    }

    fn take(&mut self, visited: Visited) -> Result<()> {
        let Visited {
            item,
            node,
            landed,
            fetched,
        } = visited;
        let start = item.offset;
        let data = start..start + node.data.len() as u64;
        let wanted = self.walk.wanted_within(&data);
        self.done += wanted;
        if let Some(bytes) = fetched {
            self.report.blocks_fetched += 1;
            self.report.bytes_fetched += bytes;
            self.report.bytes_already_here -= wanted;
            self.overhead += bytes - node.data.len() as u64;
        }
        self.pending.extend(landed);
        self.tell();
        let refused = |source| StorageError::Dag {
            cid: item.cid,
            source,
        };
        self.check_overhead().map_err(refused)?;
        self.walk.expand(&item, node).map_err(refused)
    }

    fn check_overhead(&self) -> Result<(), DagError> {
        let limit = self.total.saturating_mul(2).saturating_add(OVERHEAD);
        if self.overhead > limit {
            let overhead = self.overhead;
            return Err(DagError::Overhead { overhead, limit });
        }
        Ok(())
    }

    fn tell(&self) {
        (self.progress)(FetchProgress {
            done_bytes: self.done,
            total_bytes: self.total,
            fetched_bytes: self.report.bytes_fetched,
            fetched_blocks: self.report.blocks_fetched,
        });
    }
}

/// Asks for a block until the answer is right.
async fn ask(cid: Cid, source: &dyn BlockSource) -> Result<Bytes> {
    for _ in 0..ATTEMPTS {
        let answer = source.block(&cid).await;
        let block = answer.map_err(|source| StorageError::Source { cid, source })?;
        if block.len() > dag::MAX_BLOCK {
            continue;
        }
        let (checked, is_right) = blocking(move || {
            let is_right = dag::matches(&cid, &block);
            let is_right = is_right.map_err(|source| StorageError::Dag { cid, source })?;
            Ok((block, is_right))
        })
        .await?;
        if is_right {
            return Ok(checked);
        }
        tracing::warn!(%cid, "the source sent wrong data for a block");
    }
    Err(StorageError::WrongBlock {
        cid,
        attempts: ATTEMPTS,
    })
}

/// How a block is put together from the file and what is around it.
fn locate(block: &Bytes, node: &FileNode, offset: u64) -> Location {
    let Range { start, end } = node.data;
    let part = |range: Range<usize>| block.get(range).unwrap_or_default().to_vec();
    Location {
        offset,
        len: u32::try_from(end - start).expect("a block is at most a few MiB"),
        head: part(0..start),
        tail: part(end..block.len()),
    }
}

fn wanted(want: Want, len: u64) -> RangeSet {
    let mut wanted = RangeSet::new();
    match want {
        Want::All => {
            wanted.insert(0..len);
        }
        Want::Ranges(ranges) => {
            for range in ranges {
                wanted.insert(range.start.min(len)..range.end.min(len));
            }
        }
    }
    wanted
}

/// The end of the commit under way; pending for ever when there is none.
async fn finished(commit: &mut Option<JoinHandle<Result<()>>>) -> Result<()> {
    let Some(running) = commit else {
        return std::future::pending().await;
    };
    let result = running.await;
    *commit = None;
    result.map_err(|_| StorageError::Interrupted("a write to disk stopped; fetch again"))?
}

/// Runs work that reads or writes the disk off the asynchronous threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| StorageError::Interrupted("disk work stopped; try again"))?
}
