//! Names, pins, removal, and what survives a restart.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use accel_storage::{ModelRecord, StorageError, Want};
use cid::Cid;

use crate::stranger::{Blocks, KUBO_V0};
use crate::support::{Home, Peer, generate, nobody, quiet};

fn cid_of(home: &Home, name: &str) -> Option<Cid> {
    home.store.resolve(name).unwrap().map(|record| record.cid)
}

#[tokio::test]
async fn a_name_means_the_content_that_got_it_last() {
    let home = Home::new();
    let old = home.add("model", b"old").await.cid;
    let new = home.add("model", b"new").await.cid;
    assert_eq!(cid_of(&home, "model"), Some(new));
    assert_eq!(home.store.models().unwrap()[0].cid, new);
    // The older one is still there by its CID, and by the name again when the newer one goes.
    assert_eq!(cid_of(&home, &old.to_string()), Some(old));
    let home = home.reopen();
    assert_eq!(cid_of(&home, "model"), Some(new));
    home.store.remove(&new).unwrap();
    assert_eq!(cid_of(&home, "model"), Some(old));
    assert_eq!(cid_of(&home, "unheard of"), None);
}

#[tokio::test]
async fn content_has_every_name_it_was_given_and_shows_the_last() {
    let home = Home::new();
    let cid = home.add("first", b"content").await.cid;
    let record = home.add("second", b"content").await;
    assert_eq!((record.cid, record.name.as_str()), (cid, "second"));
    assert_eq!(cid_of(&home, "first"), Some(cid));
    assert_eq!(home.store.models().unwrap().len(), 1);
}

#[tokio::test]
async fn both_versions_of_a_cid_are_one_model() {
    let mut blocks = Blocks::default();
    let v0 = blocks.balanced(&generate(1, 1000), KUBO_V0).cid;
    let v1 = v0.into_v1().unwrap();
    let home = Home::new();
    let peer = Peer::with(blocks.0);
    home.store
        .fetch(&v0, Want::All, &peer, &quiet)
        .await
        .unwrap();
    assert_eq!(cid_of(&home, &v0.to_string()), Some(v1));
    assert_eq!(cid_of(&home, &v1.to_string()), Some(v1));
    home.store
        .fetch(&v1, Want::All, &nobody(), &quiet)
        .await
        .unwrap();
    assert!(home.store.get_block(&v0).unwrap().is_some());
    assert!(home.store.get_block(&v1).unwrap().is_some());
    assert_eq!(home.store.models().unwrap()[0].name, v1.to_string());
}

#[tokio::test]
async fn removal_takes_the_file_and_the_blocks() {
    let home = Home::new();
    let content = generate(2, 600_000);
    let root = home.add("model", &content).await.cid;
    let path = home.store.model_path(&root).unwrap();
    home.store.remove(&root).unwrap();
    assert!(!path.exists());
    assert!(!home.store.has_block(&root).unwrap());
    assert_eq!(home.store.get_block(&root).unwrap(), None);
    let again = home.store.remove(&root);
    assert!(matches!(again, Err(StorageError::UnknownModel { .. })));
    // And it can be added again.
    let home = home.reopen();
    assert!(home.add("model", &content).await.complete());
    assert!(home.store.get_block(&root).unwrap().is_some());
}

#[tokio::test]
async fn pins_survive_a_restart() {
    let home = Home::new();
    let root = home.add("model", b"content").await.cid;
    home.store.pin(&root, true).unwrap();
    let home = home.reopen();
    assert!(home.store.resolve("model").unwrap().unwrap().pinned);
    home.store.pin(&root, false).unwrap();
    assert!(!home.store.resolve("model").unwrap().unwrap().pinned);
}

#[tokio::test]
async fn content_that_is_here_is_not_copied_again() {
    let home = Home::new();
    let content = generate(3, 300_000);
    let root = home.add("model", &content).await.cid;
    let path = home.store.model_path(&root).unwrap();
    let before = identity(&path);
    home.add("model", &content).await;
    assert_eq!(identity(&path), before);
}

#[tokio::test]
async fn adding_completes_what_was_fetched_in_part() {
    let owner = Home::new();
    let content = generate(4, 600_000);
    let root = owner.add("model", &content).await.cid;
    let peer = Peer::serving(&owner.store, &root);
    let home = Home::new();
    let want = Want::from(0..10);
    home.store.fetch(&root, want, &peer, &quiet).await.unwrap();
    let record = home.add("model", &content).await;
    assert!(record.complete());
    let path = home.store.model_path(&root).unwrap();
    assert!(std::fs::read(path).unwrap() == content);
}

#[tokio::test]
async fn progress_of_adding_reaches_the_whole() {
    let home = Home::new();
    let content = generate(5, 70_000_000);
    let path = home.write("source", &content);
    let last = AtomicU64::new(0);
    let progress = |done: u64, total: u64| {
        assert_eq!(total, 70_000_000);
        assert!(done >= last.swap(done, Ordering::SeqCst));
    };
    home.store
        .add_file(&path, "model", &progress)
        .await
        .unwrap();
    assert_eq!(last.load(Ordering::SeqCst), 70_000_000);
    let left = std::fs::read_dir(home.dir.path().join("tmp")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn what_cannot_be_added_is_refused_with_the_reason() {
    let home = Home::new();
    let missing = home.dir.path().join("missing");
    let refused = home.store.add_file(&missing, "model", &|_, _| {}).await;
    assert!(matches!(refused, Err(StorageError::Io { .. })));
    let refused = home
        .store
        .add_file(home.dir.path(), "model", &|_, _| {})
        .await;
    assert!(matches!(refused, Err(StorageError::NotAddable { .. })));
    let file = home.write("source", b"content");
    for name in ["", "line\nbreak", " padded", &"x".repeat(300)] {
        let refused = home.store.add_file(&file, name, &|_, _| {}).await;
        assert!(matches!(refused, Err(StorageError::BadName { .. })));
    }
    assert!(home.store.models().unwrap().is_empty());
}

#[tokio::test]
async fn a_file_cut_behind_our_back_is_not_claimed_to_be_here() {
    let home = Home::new();
    let root = home.add("model", &generate(6, 300_000)).await.cid;
    let path = home.store.model_path(&root).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(1000).unwrap();
    let home = home.reopen();
    assert_eq!(home.store.present_bytes(&root).unwrap(), 0);
    assert!(!home.store.resolve("model").unwrap().unwrap().complete());
}

#[tokio::test]
async fn the_rest_of_an_interrupted_import_is_cleared_on_start() {
    let home = Home::new();
    let stray = home.dir.path().join("models/bafkqaaa");
    let half = home.dir.path().join("tmp/.tmp123");
    std::fs::write(&stray, b"renamed, but never entered").unwrap();
    std::fs::write(&half, b"half").unwrap();
    let _home = home.reopen();
    assert!(!stray.exists());
    assert!(!half.exists());
}

#[tokio::test]
async fn a_model_heard_of_is_listed_with_nothing_present() {
    let home = Home::new();
    let cid: Cid = "bafybeifvmoiokowzsdfjoiosxsk3t5p42iq6lajhmfld5v22b3osnrzmj4"
        .parse()
        .unwrap();
    let record = ModelRecord {
        cid,
        name: "smollm2".to_owned(),
        bytes: 98_362_432,
        present_bytes: 0,
        pinned: true,
        added_unix: 1_800_000_000,
    };
    home.store.record(record.clone()).unwrap();
    let home = home.reopen();
    assert_eq!(home.store.models().unwrap(), [record]);
}

#[test]
fn a_second_node_on_the_directory_is_refused_as_long_as_the_store_lives() {
    let home = Home::new();
    let refused = accel_storage::DataDir::open(home.dir.path());
    let Err(StorageError::InUse { pid, .. }) = refused else {
        panic!("expected InUse, got {refused:?}");
    };
    assert_eq!(pid, Some(std::process::id()));
    let _home = home.reopen();
}

/// Changes when the file at the path is another one.
fn identity(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
}
