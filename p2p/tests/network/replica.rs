//! Streams about journals of sessions, from node to node.

use accel_p2p::wire::limit;
use accel_p2p::{
    ControlError, IncomingReplica, NetworkEvent, Record, ReplicaReply, ReplicaRequest, SessionId,
};

use crate::support::{Node, PrivateSwarm};

const SESSION: SessionId = SessionId([6; 16]);

async fn next_stream(node: &mut Node) -> IncomingReplica {
    node.hears(|event| match event {
        NetworkEvent::Replica(incoming) => Some(incoming),
        _ => None,
    })
    .await
}

/// Answers each request with how many records it has.
async fn count(mut incoming: IncomingReplica) -> u64 {
    let mut all = 0;
    while let Some(call) = incoming.calls.recv().await {
        if let ReplicaRequest::Append { records, .. } = &call.request {
            all += records.len() as u64;
        }
        call.answer
            .send(ReplicaReply::Durable { records: all })
            .unwrap();
    }
    all
}

fn append(first: u64, count: usize, size: usize) -> ReplicaRequest {
    let bytes = vec![7; size];
    let records = vec![Record { bytes }; count];
    ReplicaRequest::Append { first, records }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_any_size_that_is_allowed_are_answered_one_by_one_until_the_caller_leaves() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let mut stream = b.network.replica(a.peer()).await.unwrap();
    let incoming = next_stream(&mut a).await;
    assert_eq!(incoming.peer, b.peer());
    let counting = tokio::spawn(count(incoming));
    let open = ReplicaRequest::Open {
        session: SESSION,
        claim: 3,
        bytes: limit::REPLICA_OPENING,
        part: vec![1; limit::REPLICA_PART],
    };
    let durable = |records| ReplicaReply::Durable { records };
    assert_eq!(stream.ask(&open).await.unwrap(), durable(0));
    let full = append(0, limit::REPLICA_RECORDS, limit::REPLICA_RECORD);
    let most = limit::REPLICA_RECORDS as u64;
    assert_eq!(stream.ask(&full).await.unwrap(), durable(most));
    assert_eq!(
        stream.ask(&append(most, 0, 0)).await.unwrap(),
        durable(most)
    );
    let too_much = append(0, limit::REPLICA_RECORDS + 1, 1);
    assert!(stream.ask(&too_much).await.is_err());
    drop(stream);
    assert_eq!(counting.await.unwrap(), most);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_the_last_reply_and_a_dropped_call_ends_the_stream() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let fetch = ReplicaRequest::Fetch {
        session: SESSION,
        opening_from: 0,
        from: 0,
    };
    let mut stream = b.network.replica(a.peer()).await.unwrap();
    let mut incoming = next_stream(&mut a).await;
    let refusal = ReplicaReply::refused("quota", "too much", "keep it elsewhere");
    let told = refusal.clone();
    let answering = tokio::spawn(async move {
        let call = incoming.calls.recv().await.unwrap();
        call.answer.send(told).unwrap();
        incoming.calls.recv().await.is_none()
    });
    assert_eq!(stream.ask(&fetch).await.unwrap(), refusal);
    assert!(stream.ask(&fetch).await.is_err());
    assert!(answering.await.unwrap());

    let mut stream = b.network.replica(a.peer()).await.unwrap();
    drop(next_stream(&mut a).await);
    assert!(stream.ask(&fetch).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_a_bounded_number_of_streams() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let mut open = Vec::new();
    let mut kept = Vec::new();
    let refused = loop {
        match b.network.replica(a.peer()).await {
            Ok(stream) => open.push(stream),
            Err(error) => break error,
        }
        kept.push(next_stream(&mut a).await);
        assert!(open.len() <= 256, "there is no bound");
    };
    assert!(matches!(refused, ControlError::Unanswered(_)), "{refused}");
    open.clear();
    kept.clear();
    // Once those have ended there is room again.
    let mut again = b.network.replica(a.peer()).await;
    for _ in 0..50 {
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        again = b.network.replica(a.peer()).await;
    }
    again.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_private_swarm_keep_sessions_for_each_other() {
    let swarm = PrivateSwarm::new();
    let mut a = swarm.node(&[]).await;
    let b = swarm.node(&[&a]).await;
    let mut stream = b.network.replica(a.peer()).await.unwrap();
    let counting = tokio::spawn(count(next_stream(&mut a).await));
    stream.ask(&append(0, 1, 8)).await.unwrap();
    drop(stream);
    assert_eq!(counting.await.unwrap(), 1);
}
