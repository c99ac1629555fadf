//! Directories, content and sources for the tests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use accel_storage::{
    BlockSource, BlockSourceError, DataDir, FetchProgress, ModelRecord, StorageError, Store, dag,
};
use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;

/// A store in a directory of its own.
pub struct Home {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        Self { dir, store }
    }

    /// Closes the store and opens it again.
    pub fn reopen(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let store = open(dir.path());
        Self { dir, store }
    }

    pub async fn add(&self, name: &str, content: &[u8]) -> ModelRecord {
        let path = self.write("source", content);
        let added = self.store.add_file(&path, name, &|_, _| {}).await;
        added.unwrap()
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// Opens a store as soon as disk work of an earlier one, whose caller has gone, has ended.
pub fn open(dir: &Path) -> Store {
    for _ in 0..1000 {
        match DataDir::open(dir) {
            Ok(data) => return Store::open(&data).unwrap(),
            Err(StorageError::InUse { .. }) => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the directory is still held");
}

/// Pseudo-random content (xorshift64*); zeros for seed 0.
pub fn generate(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let word = state.wrapping_mul(0x2545_F491_4F6C_DD1D);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

pub fn quiet(_: FetchProgress) {}

type Answer = Result<Bytes, BlockSourceError>;

/// Blocks by hash, with a record of what was asked for, and faults.
#[derive(Default)]
pub struct Peer {
    pub blocks: HashMap<Vec<u8>, Bytes>,
    pub asked: Mutex<Vec<Cid>>,
    /// Answers to give first, per block.
    pub answers: Mutex<HashMap<Vec<u8>, Vec<Answer>>>,
    /// After so many answers, none.
    pub dies_after: Option<usize>,
}

impl Peer {
    pub fn with(blocks: impl IntoIterator<Item = (Cid, Bytes)>) -> Self {
        let blocks = blocks.into_iter();
        Self {
            blocks: blocks.map(|(cid, b)| (cid.hash().to_bytes(), b)).collect(),
            ..Self::default()
        }
    }

    /// Serves every block that a store has of a file.
    pub fn serving(store: &Store, root: &Cid) -> Self {
        let mut blocks = Vec::new();
        let mut cids = vec![*root];
        while let Some(cid) = cids.pop() {
            let block = store
                .get_block(&cid)
                .unwrap()
                .expect("the store is complete");
            let node = dag::decode(&cid, &block).unwrap();
            cids.extend(node.children.iter().map(|child| child.cid));
            blocks.push((cid, block));
        }
        Self::with(blocks)
    }

    pub fn answer_first(&self, cid: &Cid, answers: Vec<Answer>) {
        let mut all = self.answers.lock().unwrap();
        all.insert(cid.hash().to_bytes(), answers);
    }

    pub fn asked(&self) -> Vec<Cid> {
        self.asked.lock().unwrap().clone()
    }

    pub fn forget_asked(&self) {
        self.asked.lock().unwrap().clear();
    }
}

#[async_trait]
impl BlockSource for Peer {
    async fn block(&self, cid: &Cid) -> Answer {
        tokio::task::yield_now().await;
        let before = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(*cid);
            asked.len() - 1
        };
        if self.dies_after.is_some_and(|limit| before >= limit) {
            return Err(BlockSourceError::Timeout);
        }
        let key = cid.hash().to_bytes();
        let prepared = self
            .answers
            .lock()
            .unwrap()
            .get_mut(&key)
            .and_then(Vec::pop);
        if let Some(answer) = prepared {
            return answer;
        }
        let block = self.blocks.get(&key).cloned();
        block.ok_or(BlockSourceError::NotFound)
    }
}

/// A source that must not be asked.
pub fn nobody() -> Peer {
    Peer::default()
}
