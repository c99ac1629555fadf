//! Requests from node to node.

use accel_p2p::{
    ControlError, ControlReply, ControlRequest, IncomingControl, NetworkEvent, SessionId,
};
use futures::future::join_all;

use crate::support::{Node, PrivateSwarm};

fn release(session: [u8; 16]) -> ControlRequest {
    ControlRequest::Release {
        session: SessionId(session),
        epoch: 1,
    }
}

async fn next_request(node: &mut Node) -> IncomingControl {
    node.hears(|event| match event {
        NetworkEvent::Control(incoming) => Some(incoming),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_answered_with_progress_and_then_finally() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let request = release([1; 16]);
    let mut call = b.network.control(a.peer(), request.clone()).await.unwrap();
    let incoming = next_request(&mut a).await;
    assert_eq!(incoming.peer, b.peer());
    assert_eq!(incoming.request, request);
    let replies = [
        ControlReply::Progress { done: 1, total: 2 },
        ControlReply::Progress { done: 2, total: 2 },
        ControlReply::Done,
    ];
    for reply in &replies {
        incoming.responder.send(reply.clone()).await.unwrap();
    }
    for reply in replies {
        assert_eq!(call.next().await.unwrap().unwrap(), reply);
    }
    assert!(call.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_answer() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let call = b.network.control(a.peer(), release([2; 16])).await.unwrap();
    let refusal = ControlReply::refused("too_big", "no room", "free some memory");
    let incoming = next_request(&mut a).await;
    incoming.responder.send(refusal.clone()).await.unwrap();
    assert_eq!(call.finish().await.unwrap(), refusal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responder_notices_that_the_caller_is_gone() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let call = b.network.control(a.peer(), release([3; 16])).await.unwrap();
    let incoming = next_request(&mut a).await;
    assert!(!incoming.responder.is_closed());
    drop(call);
    incoming.responder.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_notices_that_nobody_will_answer() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let call = b.network.control(a.peer(), release([4; 16])).await.unwrap();
    drop(next_request(&mut a).await);
    assert!(matches!(call.finish().await, Err(ControlError::Unanswered(peer)) if peer == a.peer()));

    let call = b.network.control(a.peer(), release([5; 16])).await.unwrap();
    let _unanswered = next_request(&mut a).await;
    drop(a);
    assert!(call.finish().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_are_all_taken() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let peer = a.peer();
    let calls = join_all((0..32u8).map(|n| b.network.control(peer, release([n; 16]))));
    let answering = async {
        for _ in 0..32 {
            let incoming = next_request(&mut a).await;
            incoming.responder.send(ControlReply::Done).await.unwrap();
        }
    };
    let (calls, ()) = tokio::join!(calls, answering);
    for call in calls {
        assert_eq!(call.unwrap().finish().await.unwrap(), ControlReply::Done);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_may_call_right_after_it_connected() {
    let swarm = PrivateSwarm::new();
    let mut a = swarm.node(&[]).await;
    let b = swarm.node(&[&a]).await;
    // Its certificate may still be on the way: the request waits for it.
    let call = b.network.control(a.peer(), release([6; 16])).await.unwrap();
    let incoming = next_request(&mut a).await;
    incoming.responder.send(ControlReply::Done).await.unwrap();
    assert_eq!(call.finish().await.unwrap(), ControlReply::Done);
}
