//! Sessions that are kept for coordinators elsewhere: who may write them, and when.

use accel_storage::{JournalError, SessionKey, StorageError, Writer};
use bytes::Bytes;

use crate::support::Home;

const SESSION: SessionKey = [9; 16];

fn keeper(claim: u64) -> Writer {
    Writer {
        claim,
        is_keeper: true,
    }
}

fn owner(claim: u64) -> Writer {
    Writer {
        claim,
        is_keeper: false,
    }
}

fn is_claimed<T: std::fmt::Debug>(result: accel_storage::Result<T>, newest: u64) -> bool {
    let expected = JournalError::Claimed { newest };
    matches!(result, Err(StorageError::Journal { source, .. }) if source == expected)
}

fn records(texts: &[&str]) -> Vec<Bytes> {
    let bytes = |text: &&str| Bytes::copy_from_slice(text.as_bytes());
    texts.iter().map(bytes).collect()
}

#[tokio::test]
async fn a_copy_is_written_by_its_coordinator_until_a_newer_one_comes() {
    let home = Home::new();
    let journal = home.store.journal();
    journal.keep(SESSION, 0, b"opening").await.unwrap();
    let append = |claim, first, texts: &[&str]| {
        journal.append_as(SESSION, keeper(claim), first, records(texts))
    };
    append(0, 0, &["a", "b"]).await.unwrap();
    journal.keep(SESSION, 0, b"opening").await.unwrap();
    journal.keep(SESSION, 5, b"opening").await.unwrap();
    assert!(is_claimed(append(0, 2, &["c"]).await, 5));
    assert!(is_claimed(journal.keep(SESSION, 0, b"opening").await, 5));
    // The newer one sends from the beginning, and only what it has is compared.
    append(5, 0, &["a"]).await.unwrap();
    assert!(append(5, 0, &["a", "x"]).await.is_err());
    append(5, 2, &["c"]).await.unwrap();
    assert!(is_claimed(
        journal.close_as(SESSION, keeper(0), b"done").await,
        5
    ));
    journal.close_as(SESSION, keeper(5), b"done").await.unwrap();
    drop(journal);
    let home = home.reopen();
    let entry = home.store.journal().load(SESSION).unwrap().unwrap();
    assert!(entry.is_kept);
    assert_eq!(entry.claim, 5);
    assert_eq!(entry.records, records(&["a", "b", "c"]));
}

#[tokio::test]
async fn a_node_that_claims_its_copy_writes_it_and_its_old_coordinator_does_not() {
    let home = Home::new();
    let journal = home.store.journal();
    journal.keep(SESSION, 1, b"opening").await.unwrap();
    journal.claim(SESSION, 2).await.unwrap();
    let late = journal.append_as(SESSION, keeper(1), 0, records(&["a"]));
    assert!(is_claimed(late.await, 2));
    let own = journal.append_as(SESSION, owner(2), 0, records(&["a"]));
    own.await.unwrap();
    assert!(!journal.summary(SESSION).unwrap().unwrap().is_kept);
    // A coordinator elsewhere goes on with it: what ran here is cut off.
    journal.keep(SESSION, 3, b"opening").await.unwrap();
    let late = journal.append_as(SESSION, owner(2), 1, records(&["b"]));
    assert!(is_claimed(late.await, 3));
    assert!(journal.summary(SESSION).unwrap().unwrap().is_kept);
}

#[tokio::test]
async fn what_ended_for_one_coordinator_goes_on_for_a_newer_one() {
    let home = Home::new();
    let journal = home.store.journal();
    journal.open(SESSION, b"opening").await.unwrap();
    let own = journal.append_as(SESSION, owner(0), 0, records(&["a"]));
    own.await.unwrap();
    let failed = journal.close_as(SESSION, owner(0), b"failed: cut off");
    failed.await.unwrap();
    assert!(is_claimed(journal.keep(SESSION, 0, b"opening").await, 0));
    journal.keep(SESSION, 7, b"opening").await.unwrap();
    let next = journal.append_as(SESSION, keeper(7), 1, records(&["b"]));
    next.await.unwrap();
    drop(journal);
    let home = home.reopen();
    let journal = home.store.journal();
    let entry = journal.load(SESSION).unwrap().unwrap();
    assert_eq!((entry.outcome, entry.claim), (None, 7));
    let summary = journal.summary(SESSION).unwrap().unwrap();
    assert_eq!(summary.closed_unix_ms, None);
    journal.close_as(SESSION, keeper(7), b"done").await.unwrap();
    let again = journal.keep(SESSION, 7, b"opening").await;
    assert!(again.is_err(), "it ended for this one: {again:?}");
}

#[tokio::test]
async fn nobody_makes_a_copy_of_a_session_that_this_node_coordinates() {
    let home = Home::new();
    let journal = home.store.journal();
    journal.open(SESSION, b"opening").await.unwrap();
    assert!(is_claimed(journal.keep(SESSION, 0, b"opening").await, 0));
    let refused = journal.keep(SESSION, 1, b"another opening").await;
    assert!(refused.is_err(), "{refused:?}");
}
