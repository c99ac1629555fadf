//! Messages about journals: within their limits, and beyond.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::*;
use super::{assert_round_trip, decode_as_everything};

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..most)
}

fn record() -> impl Strategy<Value = Record> {
    bytes(40).prop_map(|bytes| Record { bytes })
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<[u8; 16]>().prop_map(SessionId)
}

fn request() -> impl Strategy<Value = ReplicaRequest> {
    let open = (session(), any::<u64>(), bytes(80), 0..1_000u64).prop_map(
        |(session, claim, part, more)| ReplicaRequest::Open {
            session,
            claim,
            bytes: part.len() as u64 + more,
            part,
        },
    );
    let fetch =
        (session(), any::<u64>(), any::<u64>()).prop_map(|(session, opening_from, from)| {
            ReplicaRequest::Fetch {
                session,
                opening_from,
                from,
            }
        });
    prop_oneof![
        open,
        bytes(80).prop_map(|part| ReplicaRequest::Opening { part }),
        (any::<u32>(), vec(record(), 0..5)).prop_map(|(first, records)| {
            let first = u64::from(first);
            ReplicaRequest::Append { first, records }
        }),
        bytes(40).prop_map(|outcome| ReplicaRequest::Close { outcome }),
        fetch,
    ]
}

fn reply() -> impl Strategy<Value = ReplicaReply> {
    let page = (
        any::<u64>(),
        bytes(80),
        vec(record(), 0..5),
        option::of(record()),
    )
        .prop_map(|(claim, part, records, outcome)| ReplicaReply::Page {
            claim,
            bytes: part.len() as u64,
            part,
            total: records.len() as u64,
            records,
            outcome,
        });
    prop_oneof![
        Just(ReplicaReply::More),
        any::<u64>().prop_map(|records| ReplicaReply::Durable { records }),
        page,
        Just(ReplicaReply::Unknown),
        Just(ReplicaReply::refused("quota", "too much", "elsewhere")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn they_survive_the_wire(request in request(), reply in reply()) {
        assert_round_trip(&request);
        assert_round_trip(&reply);
    }

    #[test]
    fn damaged_ones_never_panic(
        request in request(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encode(&request).expect("it is within the limits");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        decode_as_everything(&bytes);
    }
}

#[test]
fn what_cannot_be_is_neither_sent_nor_accepted() {
    let empty = Record { bytes: Vec::new() };
    let long = Record {
        bytes: vec![0; limit::REPLICA_RECORD + 1],
    };
    let open = |bytes, part| ReplicaRequest::Open {
        session: SessionId([1; 16]),
        claim: 0,
        bytes,
        part,
    };
    let append = |first, records| ReplicaRequest::Append { first, records };
    let record = || Record { bytes: vec![1] };
    let requests = [
        open(0, Vec::new()),
        open(1, vec![0; 2]),
        open(limit::REPLICA_OPENING + 1, vec![0]),
        open(limit::REPLICA_OPENING, vec![0; limit::REPLICA_PART + 1]),
        ReplicaRequest::Opening { part: Vec::new() },
        append(0, vec![empty]),
        append(0, vec![long]),
        append(u64::MAX, vec![record()]),
        append(0, vec![record(); limit::REPLICA_RECORDS + 1]),
    ];
    for request in requests {
        assert!(encode(&request).is_err(), "{request:?}");
    }
    let page = ReplicaReply::Page {
        claim: 0,
        bytes: 1,
        part: vec![1],
        total: 1,
        records: vec![record(); 2],
        outcome: None,
    };
    assert!(encode(&page).is_err(), "more records than there are");
}

#[test]
fn the_largest_messages_fit_their_limit() {
    let bytes = vec![0xff; limit::REPLICA_RECORD];
    let records = vec![Record { bytes }; limit::REPLICA_RECORDS];
    let page = ReplicaReply::Page {
        claim: u64::MAX,
        bytes: limit::REPLICA_OPENING,
        part: vec![0xff; limit::REPLICA_PART],
        total: u64::MAX,
        outcome: records.first().cloned(),
        records,
    };
    assert_round_trip(&page);
}
