//! Journalled means durable, in order, and never changed.

use std::path::Path;

use accel_storage::journal::{OPENING_LIMIT, RECORD_LIMIT};
use accel_storage::{Damage, JournalEntry, JournalError, Result, SessionKey, StorageError};

use crate::support::{Home, open};

const SESSION: SessionKey = [7; 16];
const OTHER: SessionKey = [255; 16];

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> JournalError {
    match result {
        Err(StorageError::Journal { source, .. }) => source,
        other => panic!("expected the journal to refuse, got {other:?}"),
    }
}

fn load(home: &Home, session: SessionKey) -> JournalEntry {
    home.store.journal().load(session).unwrap().unwrap()
}

/// The database that was just closed. On a busy machine sled's own threads have its lock for a moment longer.
fn reopened(path: &std::path::Path) -> sled::Db {
    for _ in 0..100 {
        match sled::open(path) {
            Ok(db) => return db,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
    sled::open(path).unwrap()
}

/// Changes the journal as a bad disk would.
fn tamper(home: Home, change: impl FnOnce(&sled::Tree)) -> Home {
    let Home { dir, store } = home;
    drop(store);
    let db = reopened(&dir.path().join("db"));
    let tree = db.open_tree("journal").unwrap();
    change(&tree);
    db.flush().unwrap();
    drop(tree);
    drop(db);
    let store = open(dir.path());
    Home { dir, store }
}

fn record_key(session: SessionKey, index: u64) -> Vec<u8> {
    [&session[..], &[1], &index.to_be_bytes()].concat()
}

async fn with_records(count: u64) -> Home {
    let home = Home::new();
    let journal = home.store.journal();
    journal.open(SESSION, b"opening").await.unwrap();
    for index in 0..count {
        let record = format!("record {index}");
        journal
            .append(SESSION, index, record.as_bytes())
            .await
            .unwrap();
    }
    home
}

#[tokio::test]
async fn a_session_is_read_back_after_a_restart() {
    let home = with_records(300).await;
    home.store.journal().close(SESSION, b"done").await.unwrap();
    let home = home.reopen();
    let entry = load(&home, SESSION);
    assert_eq!(entry.opening, "opening");
    assert_eq!(entry.records.len(), 300);
    assert_eq!(entry.records[257], "record 257");
    assert_eq!(entry.outcome.unwrap(), "done");
    assert_eq!(entry.damage, None);
    assert_eq!(home.store.journal().load(OTHER).unwrap(), None);
}

#[tokio::test]
async fn what_was_acknowledged_is_on_disk_and_not_only_in_memory() {
    let home = with_records(5).await;
    // As a crash at this moment would leave it.
    let crashed = tempfile::tempdir().unwrap();
    copy(&home.dir.path().join("db"), &crashed.path().join("db"));
    let store = open(crashed.path());
    let entry = store.journal().load(SESSION).unwrap().unwrap();
    assert_eq!(entry.records.len(), 5);
    assert_eq!(entry.damage, None);
}

#[tokio::test]
async fn appends_that_wait_together_share_a_flush() {
    let home = Home::new();
    let journal = home.store.journal();
    let sessions: Vec<SessionKey> = (0..64u8).map(|n| [n; 16]).collect();
    for session in &sessions {
        journal.open(*session, b"opening").await.unwrap();
    }
    let before = journal.stats();
    for index in 0..4 {
        let appends = sessions.iter().map(|s| journal.append(*s, index, b"token"));
        for appended in futures::future::join_all(appends).await {
            appended.unwrap();
        }
    }
    let after = journal.stats();
    assert_eq!(after.writes - before.writes, 4 * 64);
    assert!(after.flushes - before.flushes <= 4 * 64 / 2, "{after:?}");
}

#[tokio::test]
async fn records_of_one_session_in_one_group_keep_their_order() {
    let home = with_records(0).await;
    let journal = home.store.journal();
    let contents: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let appends = contents.iter().zip(0..);
    let appends = appends.map(|(c, index)| journal.append(SESSION, index, c.as_bytes()));
    for appended in futures::future::join_all(appends).await {
        appended.unwrap();
    }
    let records = load(&home, SESSION).records;
    assert!(
        records
            .iter()
            .zip(&contents)
            .all(|(r, c)| r == c.as_bytes())
    );
    assert_eq!(records.len(), 100);
}

#[tokio::test]
async fn what_was_journalled_never_changes() {
    let home = with_records(2).await;
    let journal = home.store.journal();
    journal.append(SESSION, 1, b"record 1").await.unwrap();
    let changed = journal.append(SESSION, 1, b"another").await;
    assert_eq!(refusal(changed), JournalError::Conflict { index: 1 });
    let ahead = journal.append(SESSION, 3, b"record 3").await;
    let gap = JournalError::Gap {
        expected: 2,
        got: 3,
    };
    assert_eq!(refusal(ahead), gap);
    journal.open(SESSION, b"opening").await.unwrap();
    let reopened = journal.open(SESSION, b"other").await;
    assert_eq!(refusal(reopened), JournalError::AlreadyOpen);
    journal.close(SESSION, b"done").await.unwrap();
    journal.close(SESSION, b"done").await.unwrap();
    let after = journal.append(SESSION, 2, b"late").await;
    assert_eq!(refusal(after), JournalError::Closed);
    let unknown = journal.append(OTHER, 0, b"x").await;
    assert_eq!(refusal(unknown), JournalError::Unknown);
    assert_eq!(load(&home, SESSION).records.len(), 2);
}

#[tokio::test]
async fn a_damaged_record_ends_the_session_there_and_appending_repairs_it() {
    let home = with_records(6).await;
    let home = tamper(home, |tree| {
        let key = record_key(SESSION, 4);
        let mut value = tree.get(&key).unwrap().unwrap().to_vec();
        *value.last_mut().unwrap() ^= 1;
        tree.insert(key, value).unwrap();
    });
    let entry = load(&home, SESSION);
    assert_eq!(entry.records.len(), 4);
    assert_eq!(entry.damage, Some(Damage::Records { from: 4 }));

    let journal = home.store.journal();
    journal.append(SESSION, 4, b"again").await.unwrap();
    let entry = load(&home, SESSION);
    assert_eq!(entry.records.len(), 5, "what followed the damage is gone");
    assert_eq!(entry.records[4], "again");
    assert_eq!(entry.damage, None);
}

#[tokio::test]
async fn torn_missing_and_displaced_records_are_all_noticed() {
    type Change = fn(&sled::Tree);
    let changes: [(&str, Change); 4] = [
        ("cut short", |tree| {
            let key = record_key(SESSION, 2);
            let value = tree.get(&key).unwrap().unwrap();
            tree.insert(key, &value[..10]).unwrap();
        }),
        ("empty", |tree| {
            tree.insert(record_key(SESSION, 2), vec![]).unwrap();
        }),
        ("missing", |tree| {
            tree.remove(record_key(SESSION, 2)).unwrap();
        }),
        ("another record in its place", |tree| {
            let other = tree.get(record_key(SESSION, 3)).unwrap().unwrap();
            tree.insert(record_key(SESSION, 2), other).unwrap();
        }),
    ];
    for (what, change) in changes {
        let home = tamper(with_records(5).await, change);
        let entry = load(&home, SESSION);
        assert_eq!(entry.records.len(), 2, "{what}");
        assert_eq!(entry.damage, Some(Damage::Records { from: 2 }), "{what}");
    }
}

#[tokio::test]
async fn without_its_opening_record_a_session_is_an_error() {
    let home = tamper(with_records(2).await, |tree| {
        let key = [&SESSION[..], &[0]].concat();
        tree.remove(key).unwrap();
    });
    let refused = home.store.journal().load(SESSION);
    assert!(matches!(refusal(refused), JournalError::Damaged(_)));
    assert_eq!(home.store.journal().sessions().unwrap().len(), 1);
}

#[tokio::test]
async fn sessions_are_listed_and_the_oldest_closed_ones_pruned() {
    let home = Home::new();
    let journal = home.store.journal();
    for n in 0..5u8 {
        journal.open([n; 16], b"opening").await.unwrap();
        journal.append([n; 16], 0, b"token").await.unwrap();
    }
    journal.open(OTHER, b"opening").await.unwrap();
    for n in [3, 1, 2] {
        journal.close([n; 16], b"done").await.unwrap();
        // The order of closing is told by the clock.
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
    assert_eq!(journal.sessions().unwrap().len(), 6);
    assert_eq!(journal.prune(1).await.unwrap(), 2);
    assert_eq!(journal.prune(1).await.unwrap(), 0);
    let left = journal.sessions().unwrap();
    let keys: Vec<u8> = left.iter().map(|session| session.key[0]).collect();
    assert_eq!(keys, [0, 2, 4, 255]);
    let closed = left.iter().filter(|s| s.closed_unix_ms.is_some());
    assert_eq!(closed.count(), 1);
    assert_eq!(journal.load([1; 16]).unwrap(), None);
}

#[tokio::test]
async fn oversized_records_are_refused() {
    let home = with_records(0).await;
    let journal = home.store.journal();
    let record = journal.append(SESSION, 0, &vec![0; RECORD_LIMIT + 1]).await;
    assert!(matches!(refusal(record), JournalError::TooLarge { .. }));
    let opening = journal.open(OTHER, &vec![0; OPENING_LIMIT + 1]).await;
    assert!(matches!(refusal(opening), JournalError::TooLarge { .. }));
    journal
        .append(SESSION, 0, &vec![0; RECORD_LIMIT])
        .await
        .unwrap();
    drop(journal);
    assert_eq!(load(&home.reopen(), SESSION).records[0].len(), RECORD_LIMIT);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn whoever_goes_on_claims_the_session_above_every_claim_before() {
    let home = with_records(2).await;
    let journal = home.store.journal();
    assert_eq!(load(&home, SESSION).claim, 0);
    journal.claim(SESSION, 7).await.unwrap();
    for not_above in [0, 6, 7] {
        let refused = refusal(journal.claim(SESSION, not_above).await);
        assert_eq!(refused, JournalError::Claimed { newest: 7 });
    }
    drop(journal);
    let home = home.reopen();
    let journal = home.store.journal();
    let refused = refusal(journal.claim(SESSION, 7).await);
    assert_eq!(refused, JournalError::Claimed { newest: 7 }, "it lasts");
    journal.claim(SESSION, 9).await.unwrap();
    let entry = load(&home, SESSION);
    assert_eq!((entry.claim, entry.records.len()), (9, 2));
    journal.append(SESSION, 2, b"more").await.unwrap();
    journal.close(SESSION, b"done").await.unwrap();
    let refused = refusal(journal.claim(SESSION, 10).await);
    assert_eq!(refused, JournalError::Closed);
    let unknown = refusal(journal.claim(OTHER, 1).await);
    assert_eq!(unknown, JournalError::Unknown);
}

#[tokio::test]
async fn a_damaged_claim_is_noticed_and_nobody_goes_on() {
    let home = with_records(2).await;
    home.store.journal().claim(SESSION, 7).await.unwrap();
    let home = tamper(home, |tree| {
        let key = [&SESSION[..], &[3]].concat();
        tree.insert(key, &b"nonsense"[..]).unwrap();
    });
    assert_eq!(load(&home, SESSION).damage, Some(Damage::Claim));
    let refused = home.store.journal().claim(SESSION, 8).await;
    assert!(matches!(refusal(refused), JournalError::Damaged(_)));
}

#[tokio::test]
async fn it_is_told_when_a_session_was_last_written_before_its_end() {
    let home = with_records(0).await;
    let journal = home.store.journal();
    let told = || {
        let sessions = home.store.journal().sessions().unwrap();
        (sessions[0].opened_unix_ms, sessions[0].touched_unix_ms)
    };
    let (opened, touched) = told();
    assert_eq!(opened, touched);
    // Time is told by the clock.
    let tick = || tokio::time::sleep(std::time::Duration::from_millis(3));
    tick().await;
    journal.append(SESSION, 0, b"token").await.unwrap();
    let (_, after_token) = told();
    assert!(after_token > opened);
    tick().await;
    journal.claim(SESSION, 1).await.unwrap();
    let (_, after_claim) = told();
    assert!(after_claim > after_token);
    tick().await;
    journal.close(SESSION, b"done").await.unwrap();
    assert_eq!(told(), (opened, after_claim));
}
