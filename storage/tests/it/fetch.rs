//! Fetching from peers: what is asked for, what survives, what is refused.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use accel_storage::dag::{self, CHUNK};
use accel_storage::{BlockSourceError, FetchProgress, StorageError, Want};
use bytes::Bytes;
use cid::Cid;

use crate::stranger::{Blocks, Form, inline};
use crate::support::{Home, Peer, generate, nobody, quiet};

const FORM: Form = Form {
    chunk: 1000,
    width: 3,
    raw_leaves: true,
    version_0: false,
};

fn swarm(content: &[u8], form: Form) -> (Cid, Peer) {
    let mut blocks = Blocks::default();
    let root = blocks.balanced(content, form).cid;
    (root, Peer::with(blocks.0))
}

fn bytes_of(home: &Home, root: &Cid) -> Vec<u8> {
    std::fs::read(home.store.model_path(root).unwrap()).unwrap()
}

#[tokio::test]
async fn a_fetched_file_is_whole_and_is_not_asked_for_again() {
    let content = generate(1, 100_000);
    let (root, peer) = swarm(&content, FORM);
    let home = Home::new();
    let report = home
        .store
        .fetch(&root, Want::All, &peer, &quiet)
        .await
        .unwrap();
    assert_eq!(report.file_len, 100_000);
    assert_eq!(report.bytes_already_here, 0);
    assert_eq!(report.blocks_fetched, peer.asked().len() as u64);
    assert!(bytes_of(&home, &root) == content);
    let home = home.reopen();
    assert!(home.store.is_present(&root, 0..100_000).unwrap());
    let again = home
        .store
        .fetch(&root, Want::All, &nobody(), &quiet)
        .await
        .unwrap();
    assert_eq!(
        (again.blocks_fetched, again.bytes_already_here),
        (0, 100_000)
    );
}

#[tokio::test]
async fn a_range_costs_its_leaves_and_the_nodes_above_them() {
    let owner = Home::new();
    let chunk = CHUNK as u64;
    let content = generate(2, 6 * CHUNK);
    let root = owner.add("model", &content).await.cid;
    let peer = Peer::serving(&owner.store, &root);

    let home = Home::new();
    // The last byte of leaf 1 to the first of leaf 3.
    let want = Want::from(2 * chunk - 1..3 * chunk + 1);
    let report = home.store.fetch(&root, want, &peer, &quiet).await.unwrap();
    assert_eq!(report.blocks_fetched, 1 + 3);
    assert_eq!(home.store.present_bytes(&root).unwrap(), 3 * chunk);
    assert!(home.store.is_present(&root, chunk..4 * chunk).unwrap());
    assert!(!home.store.is_present(&root, chunk - 1..chunk).unwrap());
    let kept = bytes_of(&home, &root);
    let range = CHUNK..4 * CHUNK;
    assert!(kept[range.clone()] == content[range]);
    let record = home.store.resolve(&root.to_string()).unwrap().unwrap();
    assert!(!record.complete());
}

#[tokio::test]
async fn progress_only_grows_and_ends_at_the_whole() {
    let (root, peer) = swarm(&generate(3, 50_000), FORM);
    let home = Home::new();
    let last = AtomicU64::new(0);
    let progress = |p: FetchProgress| {
        assert_eq!(p.total_bytes, 20_000);
        assert!(p.done_bytes >= last.swap(p.done_bytes, Ordering::SeqCst));
    };
    // Out of order, overlapping, empty, and beyond the end.
    let want = Want::Ranges(vec![35_000..99_000, 30_000..40_000, 7..7]);
    home.store
        .fetch(&root, want, &peer, &progress)
        .await
        .unwrap();
    assert_eq!(last.load(Ordering::SeqCst), 20_000);
}

#[tokio::test]
async fn an_interrupted_fetch_goes_on_where_it_stopped() {
    let content = generate(4, 100_000);
    let (root, mut peer) = swarm(&content, FORM);
    peer.dies_after = Some(100);
    let home = Home::new();
    let stopped = home.store.fetch(&root, Want::All, &peer, &quiet).await;
    let Err(StorageError::Source { source, .. }) = stopped else {
        panic!("expected the source's error, got {stopped:?}");
    };
    assert_eq!(source, BlockSourceError::Timeout);

    let home = home.reopen();
    let kept = home.store.present_bytes(&root).unwrap();
    assert!(kept > 0, "what had landed is kept");
    let file = bytes_of(&home, &root);
    for start in (0..100_000).step_by(1000) {
        let range = start as u64..start as u64 + 1000;
        if home.store.is_present(&root, range).unwrap() {
            assert!(file[start..start + 1000] == content[start..start + 1000]);
        }
    }
    peer.dies_after = None;
    peer.forget_asked();
    let report = home
        .store
        .fetch(&root, Want::All, &peer, &quiet)
        .await
        .unwrap();
    assert_eq!(report.bytes_already_here, kept);
    assert!(report.blocks_fetched < peer.blocks.len() as u64);
    assert!(bytes_of(&home, &root) == content);
}

#[tokio::test]
async fn a_dropped_fetch_leaves_nothing_wrong_behind() {
    let content = generate(5, 100_000);
    let (root, peer) = swarm(&content, FORM);
    let home = Home::new();
    for polls in 1..40 {
        let fetch = home.store.fetch(&root, Want::All, &peer, &quiet);
        let mut fetch = std::pin::pin!(fetch);
        for _ in 0..polls {
            let _ = futures::poll!(fetch.as_mut());
            tokio::task::yield_now().await;
        }
    }
    home.store
        .fetch(&root, Want::All, &peer, &quiet)
        .await
        .unwrap();
    assert!(bytes_of(&home, &root) == content);
}

#[tokio::test]
async fn a_wrong_block_is_refused_and_asked_for_again() {
    let content = generate(6, 10_000);
    let (root, peer) = swarm(&content, FORM);
    let leaf = dag::cid_of(dag::RAW, &content[2000..3000]);
    let wrong = || Ok(Bytes::from_static(b"something else"));
    peer.answer_first(&leaf, vec![wrong(), wrong()]);
    let home = Home::new();
    home.store
        .fetch(&root, Want::All, &peer, &quiet)
        .await
        .unwrap();
    assert!(bytes_of(&home, &root) == content);
    let times = peer.asked().iter().filter(|cid| **cid == leaf).count();
    assert_eq!(times, 3);
}

#[tokio::test]
async fn a_source_that_only_lies_writes_nothing() {
    let content = generate(7, 10_000);
    let (root, peer) = swarm(&content, FORM);
    let leaf = dag::cid_of(dag::RAW, &content[2000..3000]);
    let lies = vec![Ok(Bytes::from(vec![7; 1000])); 3];
    peer.answer_first(&leaf, lies);
    let home = Home::new();
    let want = Want::from(2000..3000);
    let refused = home.store.fetch(&root, want, &peer, &quiet).await;
    assert!(
        matches!(refused, Err(StorageError::WrongBlock { cid, .. }) if cid == leaf),
        "{refused:?}"
    );
    assert!(!home.store.is_present(&root, 2000..2001).unwrap());
    assert!(!home.store.has_block(&leaf).unwrap());
    assert!(bytes_of(&home, &root).iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_block_that_nobody_has_is_named() {
    let content = generate(8, 10_000);
    let (root, mut peer) = swarm(&content, FORM);
    let leaf = dag::cid_of(dag::RAW, &content[4000..5000]);
    peer.blocks.remove(&leaf.hash().to_bytes());
    let home = Home::new();
    let failed = home.store.fetch(&root, Want::All, &peer, &quiet).await;
    let Err(StorageError::Source { cid, source }) = failed else {
        panic!("expected the source's error, got {failed:?}");
    };
    assert_eq!((cid, source), (leaf, BlockSourceError::NotFound));
}

#[tokio::test]
async fn what_the_disk_corrupted_is_not_served_and_is_fetched_again() {
    let content = generate(9, 10_000);
    let (root, peer) = swarm(&content, FORM);
    let home = Home::new();
    home.store
        .fetch(&root, Want::All, &peer, &quiet)
        .await
        .unwrap();
    let path = home.store.model_path(&root).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"rot", 2500).unwrap();

    let leaf = dag::cid_of(dag::RAW, &content[2000..3000]);
    assert!(home.store.has_block(&leaf).unwrap());
    assert_eq!(home.store.get_block(&leaf).unwrap(), None);
    assert!(!home.store.has_block(&leaf).unwrap());
    assert!(!home.store.is_present(&root, 2000..3000).unwrap());
    let home = home.reopen();
    assert_eq!(home.store.present_bytes(&root).unwrap(), 9000);

    let report = home
        .store
        .fetch(&root, Want::All, &peer, &quiet)
        .await
        .unwrap();
    assert_eq!(report.blocks_fetched, 1);
    assert!(bytes_of(&home, &root) == content);
}

#[tokio::test]
async fn two_fetches_of_one_model_ask_once_for_each_block() {
    let content = generate(10, 60_000);
    let (root, peer) = swarm(&content, FORM);
    let home = Home::new();
    let one = home.store.fetch(&root, Want::All, &peer, &quiet);
    let part = Want::from(10_000..50_000);
    let other = home.store.fetch(&root, part, &peer, &quiet);
    let (one, other) = futures::join!(one, other);
    let (one, other) = (one.unwrap(), other.unwrap());
    let mut asked = peer.asked();
    let all = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), all, "no block was asked for twice");
    assert_eq!(one.blocks_fetched + other.blocks_fetched, all as u64);
    assert!(bytes_of(&home, &root) == content);
}

#[tokio::test]
async fn equal_blocks_come_once_and_are_served_until_their_last_holder_goes() {
    let (root, peer) = swarm(&vec![0; 50_000], FORM);
    let home = Home::new();
    let report = home
        .store
        .fetch(&root, Want::All, &peer, &quiet)
        .await
        .unwrap();
    let mut distinct = peer.asked();
    distinct.sort();
    distinct.dedup();
    assert_eq!(report.blocks_fetched, distinct.len() as u64);
    assert!(home.store.is_present(&root, 0..50_000).unwrap());

    // Another model with the same blocks in it costs no traffic for them.
    let mut longer = vec![0; 50_000];
    longer.extend_from_slice(b"and more");
    let (second, peer) = swarm(&longer, FORM);
    home.store
        .fetch(&second, Want::All, &peer, &quiet)
        .await
        .unwrap();
    let leaf = dag::cid_of(dag::RAW, &[0; 1000]);
    assert!(!peer.asked().contains(&leaf));
    home.store.remove(&root).unwrap();
    assert!(home.store.get_block(&leaf).unwrap().is_some());
    home.store.remove(&second).unwrap();
    assert!(home.store.get_block(&leaf).unwrap().is_none());
}

#[tokio::test]
async fn content_within_a_cid_is_not_asked_for() {
    let mut blocks = Blocks::default();
    let first = blocks.raw(&[1; 100]);
    let root = blocks.node(&[], &[first, inline(b"inline")], FORM);
    let peer = Peer::with(blocks.0);
    let home = Home::new();
    let fetched = home.store.fetch(&root.cid, Want::All, &peer, &quiet).await;
    assert_eq!(fetched.unwrap().blocks_fetched, 2);
    assert_eq!(&bytes_of(&home, &root.cid)[100..], b"inline");
    let served = home.store.get_block(&inline(b"inline").cid).unwrap();
    assert_eq!(served.unwrap(), "inline");
}

#[tokio::test]
async fn a_file_that_is_its_own_cid_needs_no_peer() {
    let root = inline(b"tiny").cid;
    let home = Home::new();
    home.store
        .fetch(&root, Want::All, &nobody(), &quiet)
        .await
        .unwrap();
    assert_eq!(bytes_of(&home, &root), b"tiny");
}

#[tokio::test]
async fn the_length_of_a_file_costs_at_most_its_root() {
    let (root, peer) = swarm(&generate(11, 30_000), FORM);
    let home = Home::new();
    assert_eq!(home.store.file_len(&root, &peer).await.unwrap(), 30_000);
    assert_eq!(peer.asked(), [root]);
    assert!(home.store.models().unwrap().is_empty());
    let want = Want::from(0..10);
    home.store.fetch(&root, want, &peer, &quiet).await.unwrap();
    assert_eq!(home.store.file_len(&root, &nobody()).await.unwrap(), 30_000);
}

#[tokio::test]
async fn a_model_removed_while_it_is_fetched_stays_removed() {
    let (root, peer) = swarm(&generate(12, 60_000), FORM);
    let home = Home::new();
    let removing = |p: FetchProgress| {
        if p.fetched_blocks == 20 {
            home.store.remove(&root).unwrap();
        }
    };
    let ended = home.store.fetch(&root, Want::All, &peer, &removing).await;
    assert!(
        matches!(ended, Err(StorageError::Removed { .. })),
        "{ended:?}"
    );
    assert!(home.store.models().unwrap().is_empty());
    assert!(!home.store.has_block(&root).unwrap());
}
