//! What a node keeps and tells, and what it refuses.

use accel_inference::SamplingParams;
use accel_p2p::ReplicaCall;
use accel_storage::{DataDir, Store};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::tolerance::FaultTolerance;

const SESSION: SessionId = SessionId([4; 16]);

fn opening(level: FaultTolerance) -> Vec<u8> {
    let record = OpeningRecord {
        version: OpeningRecord::version(),
        model: "cid".into(),
        name: "small".into(),
        prompt: vec![1, 2],
        sampling: SamplingParams::default(),
        max_new: 7,
        stop: Vec::new(),
        numerics: "cpu-1".into(),
        fault_tolerance: level,
        form: Some("{}".into()),
    };
    record.to_bytes()
}

struct Home {
    keeper: Arc<Keeper>,
    journal: Journal,
    tenures: Arc<Tenures>,
    _dir: TempDir,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&DataDir::open(dir.path()).unwrap()).unwrap();
        let (journal, tenures) = (store.journal(), Arc::new(Tenures::default()));
        let table = Arc::new(SessionTable::new(8));
        let keeper = Keeper::new(journal.clone(), table, Arc::clone(&tenures));
        Self {
            keeper,
            journal,
            tenures,
            _dir: dir,
        }
    }

    /// A stream of a peer.
    fn stream(&self, peer: PeerId) -> mpsc::Sender<ReplicaCall> {
        let (sender, calls) = mpsc::channel(1);
        let incoming = IncomingReplica { peer, calls };
        tokio::spawn(Arc::clone(&self.keeper).serve(incoming));
        sender
    }
}

async fn ask(stream: &mpsc::Sender<ReplicaCall>, request: ReplicaRequest) -> ReplicaReply {
    let (answer, reply) = oneshot::channel();
    let call = ReplicaCall { request, answer };
    assert!(stream.send(call).await.is_ok(), "it serves the stream");
    reply.await.unwrap()
}

fn open(claim: u64, opening: &[u8]) -> ReplicaRequest {
    ReplicaRequest::Open {
        session: SESSION,
        claim,
        bytes: opening.len() as u64,
        part: opening.to_vec(),
    }
}

fn append(first: u64, tokens: &[u8]) -> ReplicaRequest {
    let record = |token: &u8| Record {
        bytes: vec![*token; 8],
    };
    let records = tokens.iter().map(record).collect();
    ReplicaRequest::Append { first, records }
}

fn fetch(opening_from: u64, from: u64) -> ReplicaRequest {
    ReplicaRequest::Fetch {
        session: SESSION,
        opening_from,
        from,
    }
}

fn code(reply: &ReplicaReply) -> &str {
    match reply {
        ReplicaReply::Refused { code, hint, .. } => {
            assert!(!hint.is_empty());
            code
        }
        other => panic!("{other:?}"),
    }
}

fn durable(records: u64) -> ReplicaReply {
    ReplicaReply::Durable { records }
}

#[tokio::test]
async fn a_session_is_kept_as_it_comes_and_told_to_whoever_asks() {
    let home = Home::new();
    let opening = opening(FaultTolerance::High);
    let stream = home.stream(PeerId::random());
    let (front, back) = opening.split_at(10);
    let first = ReplicaRequest::Open {
        session: SESSION,
        claim: 5,
        bytes: opening.len() as u64,
        part: front.to_vec(),
    };
    assert_eq!(ask(&stream, first).await, ReplicaReply::More);
    let part = back.to_vec();
    let rest = ReplicaRequest::Opening { part };
    assert_eq!(ask(&stream, rest).await, durable(0));
    assert_eq!(home.tenures.live(), 1);
    assert_eq!(ask(&stream, append(0, &[1, 2])).await, durable(2));
    assert_eq!(ask(&stream, append(2, &[])).await, durable(2));
    assert_eq!(ask(&stream, append(2, &[3])).await, durable(3));

    let reader = home.stream(PeerId::random());
    let page = ask(&reader, fetch(0, 1)).await;
    let ReplicaReply::Page {
        claim,
        part,
        total,
        records,
        outcome,
        ..
    } = page
    else {
        panic!("{page:?}");
    };
    assert_eq!((claim, total, records.len(), outcome), (5, 3, 2, None));
    assert_eq!(part, opening);
    let outcome = b"done: stop".to_vec();
    let close = ReplicaRequest::Close { outcome };
    assert_eq!(ask(&stream, close).await, durable(0));
    let entry = home.journal.load(SESSION.bytes()).unwrap().unwrap();
    assert_eq!(entry.outcome.unwrap(), "done: stop");
}

#[tokio::test]
async fn an_older_coordinator_is_told_that_the_session_moved() {
    let home = Home::new();
    let opening = opening(FaultTolerance::High);
    let old = home.stream(PeerId::random());
    ask(&old, open(1, &opening)).await;
    let new = home.stream(PeerId::random());
    assert_eq!(ask(&new, open(2, &opening)).await, durable(0));
    assert_eq!(code(&ask(&old, append(0, &[1])).await), SESSION_MOVED);
    let late = home.stream(PeerId::random());
    assert_eq!(code(&ask(&late, open(1, &opening)).await), SESSION_MOVED);
    // This node goes on with it itself.
    home.journal.claim(SESSION.bytes(), 3).await.unwrap();
    assert_eq!(code(&ask(&new, append(0, &[1])).await), SESSION_MOVED);
}

#[tokio::test]
async fn what_is_no_session_to_be_kept_is_refused_and_what_is_out_of_place() {
    let home = Home::new();
    let high = opening(FaultTolerance::High);
    let low = opening(FaultTolerance::Low);
    for bytes in [&low[..], b"{}", b"\xff"] {
        let stream = home.stream(PeerId::random());
        assert_eq!(code(&ask(&stream, open(0, bytes)).await), "bad_request");
    }
    let stream = home.stream(PeerId::random());
    assert_eq!(code(&ask(&stream, append(0, &[1])).await), "bad_request");
    let stream = home.stream(PeerId::random());
    ask(&stream, open(0, &high)).await;
    assert_eq!(code(&ask(&stream, open(9, &high)).await), "bad_request");
    assert_eq!(code(&ask(&stream, append(1, &[1])).await), "journal");
}

#[tokio::test]
async fn a_session_that_was_not_to_leave_its_node_is_told_to_nobody() {
    let home = Home::new();
    let medium = opening(FaultTolerance::Medium);
    home.journal.open(SESSION.bytes(), &medium).await.unwrap();
    let stream = home.stream(PeerId::random());
    assert_eq!(ask(&stream, fetch(0, 0)).await, ReplicaReply::Unknown);
}

#[tokio::test]
async fn a_session_that_was_handed_over_is_told_also_by_whoever_went_on_with_it() {
    let home = Home::new();
    let medium = opening(FaultTolerance::Medium);
    let stream = home.stream(PeerId::random());
    assert_eq!(ask(&stream, open(0, &medium)).await, durable(0));
    assert_eq!(ask(&stream, append(0, &[1])).await, durable(1));
    let is_told = async || {
        let reader = home.stream(PeerId::random());
        let reply = ask(&reader, fetch(0, 0)).await;
        matches!(reply, ReplicaReply::Page { total: 1, .. })
    };
    assert!(is_told().await, "while it waits");
    home.journal.claim(SESSION.bytes(), 1 << 16).await.unwrap();
    assert!(is_told().await, "once this node coordinates it");
}

#[tokio::test]
async fn a_peer_that_sends_too_much_is_refused() {
    let home = Home::new();
    let greedy = PeerId::random();
    home.keeper.quotas.charge(greedy, 64 << 20, Instant::now());
    let opening = opening(FaultTolerance::High);
    let stream = home.stream(greedy);
    assert_eq!(code(&ask(&stream, open(0, &opening)).await), "quota");
    let stream = home.stream(PeerId::random());
    assert_eq!(ask(&stream, open(0, &opening)).await, durable(0));
}

#[tokio::test]
async fn a_copy_is_deleted_once_its_coordinator_is_gone_and_nobody_came_and_not_before() {
    let home = Home::new();
    let opening = opening(FaultTolerance::High);
    let stream = home.stream(PeerId::random());
    ask(&stream, open(0, &opening)).await;
    ask(&stream, append(0, &[1, 2])).await;
    let suspended = crate::suspended::Suspended {
        journal: home.journal.clone(),
        table: Arc::new(SessionTable::new(8)),
        tenures: Arc::clone(&home.tenures),
        window: std::time::Duration::from_millis(20),
    };
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    suspended.at_start().await.unwrap();
    let kept = |session: SessionId| home.journal.load(session.bytes()).unwrap();
    assert_eq!(kept(SESSION).map(|entry| entry.records.len()), Some(2));
    assert!(suspended.table.views().is_empty(), "it is not shown");
    drop(stream);
    while home.tenures.live() > 0 {
        tokio::task::yield_now().await;
    }
    suspended.at_start().await.unwrap();
    assert!(kept(SESSION).is_some(), "it waits for its client");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    suspended.at_start().await.unwrap();
    assert_eq!(kept(SESSION), None);
}
