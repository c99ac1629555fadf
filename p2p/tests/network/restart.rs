//! A node that dies and is started again with its seed: the same peer, at other ports.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use accel_p2p::{
    ControlRequest, NetworkEvent, PeerId, SessionId, StepInput, TensorError, TensorFrame,
};
use futures::future::join_all;

use crate::support::{Node, PATIENCE, advert_body, public_config};

/// How long an attempt to connect takes in these tests.
const CONNECT: Duration = Duration::from_secs(3);
const SENDERS: u64 = 8;

/// A node to restart, as another one knows it, and nobody at its old address.
struct Restarted {
    a: Node,
    b: Node,
    old: SocketAddr,
    /// Takes what is sent to the old address and says nothing, as when its machine is gone.
    _hole: Option<UdpSocket>,
}

/// Kills a node and starts it again, before it says anything but that it is there.
async fn restarted() -> Restarted {
    let mut config = public_config();
    config.tensor_connect_timeout = CONNECT;
    let mut a = Node::start(config).await;
    a.network.set_advert(advert_body("a"));
    let b = Node::public(&[&a]).await;
    let (peer, mut again) = (b.peer(), b.config.clone());
    let first = a.hears_greeting_of(peer).await;
    let old = a.hears_advert_of(peer).await.body.tensor_addrs[0];
    drop(b);
    a.sees_disconnected(peer).await;
    a.is_without(peer).await;
    let hole = UdpSocket::bind(old).ok();

    again.join = vec![a.as_target()];
    let b = Node::start(again).await;
    assert_ne!(b.network.tensor_addrs(), [old]);
    // What it said before is void at once; its advert would hold for a quarter of a minute.
    a.hears_expiry_of(peer).await;
    let second = a.hears_greeting_of(peer).await;
    assert!(second > first, "{second} is a later life than {first}");
    Restarted {
        a,
        b,
        old,
        _hole: hole,
    }
}

fn frame(step: u64) -> TensorFrame {
    TensorFrame::Step {
        session: SessionId([1; 16]),
        epoch: 1,
        step,
        position: step,
        sample: true,
        until: 0,
        input: StepInput::Tokens(vec![7]),
    }
}

/// Sends a frame to the old address of `peer` from each of several tasks.
async fn send_all(a: &Node, peer: PeerId, old: SocketAddr) -> Vec<Result<(), TensorError>> {
    let sending = (0..SENDERS).map(|step| {
        let network = a.network.clone();
        tokio::spawn(async move {
            let sender = network.tensor(peer, &[old]).await?;
            sender.send(frame(step)).await
        })
    });
    let sent = tokio::time::timeout(PATIENCE, join_all(sending)).await;
    let sent = sent.expect("it hangs").into_iter();
    sent.map(|sent| sent.expect("no panic")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_address_of_a_restarted_node_costs_all_senders_one_attempt_together() {
    let Restarted { a, b, old, _hole } = restarted().await;
    let begun = Instant::now();
    let sent = send_all(&a, b.peer(), old).await;
    assert!(sent.iter().all(Result::is_err), "{sent:?}");
    let took = begun.elapsed();
    assert!(took < CONNECT * 2, "one after the other? {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_is_found_by_its_new_advert_whatever_address_others_tell() {
    let mut nodes = restarted().await;
    let (peer, old) = (nodes.b.peer(), nodes.old);
    let speaking = async {
        // Meanwhile the old address is dialled.
        tokio::time::sleep(Duration::from_millis(300)).await;
        nodes.b.network.set_advert(advert_body("again"));
    };
    let (sent, ()) = tokio::join!(send_all(&nodes.a, peer, old), speaking);
    for sent in sent {
        sent.expect("it is reached");
    }
    let mut steps = Vec::new();
    for _ in 0..SENDERS {
        let step = nodes.b.hears(|event| match event {
            NetworkEvent::Tensor {
                frame: TensorFrame::Step { step, .. },
                ..
            } => Some(step),
            _ => None,
        });
        steps.push(step.await);
    }
    steps.sort_unstable();
    assert_eq!(steps, (0..SENDERS).collect::<Vec<_>>());
    let heard = nodes.a.hears_advert_of(peer).await;
    assert_eq!(heard.body.version, "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_told_of_after_the_greeting_of_who_asks() {
    let Restarted { a, b, .. } = restarted().await;
    a.network.shutdown().await;
    b.is_without(a.peer()).await;
    let mut config = a.config.clone();
    config.join = vec![b.as_target()];
    let mut a = Node::start(config).await;
    b.is_with(a.peer()).await;
    let (session, epoch) = (SessionId([1; 16]), 1);
    let request = ControlRequest::Release { session, epoch };
    let asking = b.network.control(a.peer(), request);
    let asking = async { asking.await.expect("it is connected") };
    let hearing = async {
        let peer = b.peer();
        let greeted = |event| match event {
            NetworkEvent::PeerGreeted { peer: found, .. } => Some(found == peer),
            NetworkEvent::Control(_) => Some(false),
            _ => None,
        };
        assert!(a.hears(greeted).await, "the request came first");
        let is_request = |event| matches!(event, NetworkEvent::Control(_)).then_some(());
        a.hears(is_request).await;
    };
    tokio::join!(asking, hearing);
}
