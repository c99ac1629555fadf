//! Peers that are started again, and dials that many wait for.

use std::net::UdpSocket;
use std::time::Instant;

use futures::future::join_all;

use super::*;

/// An address at which nobody answers: that of a process that is gone.
fn hole() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("port 0");
    socket.set_nonblocking(true).expect("it can be");
    let addr = socket.local_addr().expect("it is bound");
    (socket, addr)
}

/// Waits until somebody dials the hole.
async fn dialled(hole: &UdpSocket) {
    let dialling = async {
        while hole.recv_from(&mut [0; 2048]).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANG, dialling).await.expect("nobody dials");
}

/// A node whose attempts to connect take for ever.
fn patient() -> Node {
    let mut patient = config(1);
    patient.connect_timeout = HANG * 2;
    Node::start_with(&Keypair::generate_ed25519(), &patient, Gate::Everybody)
}

/// A frame to `peer` at `addr`, from a task of its own.
fn send(from: &Node, peer: PeerId, addr: SocketAddr) -> impl Future<Output = Sent> + use<> {
    let plane = from.plane.clone();
    let sending = tokio::spawn(async move {
        let sender = plane.sender(peer, &[addr]).await?;
        sender.send(tokens(1)).await
    });
    async move {
        timeout(HANG, sending)
            .await
            .expect("it hangs")
            .expect("no panic")
    }
}

type Sent = Result<(), TensorError>;

#[tokio::test]
async fn frames_go_to_a_later_life_although_an_earlier_one_still_looks_connected() {
    let keypair = Keypair::generate_ed25519();
    let (mut a, b) = (Node::start(), Node::start_in(&keypair, 7));
    let (mut losses, mut remote) = (a.plane.losses(), b.plane.losses());
    let to_b = a.sender_to(&b).await;
    to_b.send(tokens(1)).await.expect("it is connected");

    // The earlier one still runs, so that nothing but its age tells it from the later one.
    let mut again = Node::start_in(&keypair, 8);
    let from_b = again.sender_to(&a).await;
    from_b.send(tokens(2)).await.expect("it is connected");
    assert_eq!(a.next().await, (b.id, tokens(2)));
    let loss = next_loss(&mut losses).await;
    assert!(loss.error.to_string().contains("started again"), "{loss:?}");
    assert_eq!(next_loss(&mut remote).await.peer, a.id);
    to_b.send(tokens(3)).await.expect("it is connected");
    assert_eq!(again.next().await, (a.id, tokens(3)));
}

#[tokio::test]
async fn what_is_heard_of_a_peer_elsewhere_ends_connections_to_earlier_lives_only() {
    let keypair = Keypair::generate_ed25519();
    let (a, mut b) = (Node::start(), Node::start_in(&keypair, 7));
    let mut remote = b.plane.losses();
    let addrs = b.plane.local_addrs();
    assert_eq!(a.plane.moved(&b.id, 7, &addrs), None, "nothing to lose");
    let sender = a.sender_to(&b).await;
    for life in [6, 7] {
        assert_eq!(a.plane.moved(&b.id, life, &addrs), None, "life {life}");
    }
    sender.send(tokens(1)).await.expect("it is connected");
    assert_eq!(b.next().await, (a.id, tokens(1)));

    let loss = a.plane.moved(&b.id, 8, &[]).expect("it is connected");
    assert_eq!(loss.peer, b.id);
    assert_eq!(next_loss(&mut remote).await.peer, a.id);
    assert_eq!(a.plane.moved(&b.id, 8, &[]), None, "told once");
    // A clock that was set back is no reason to talk to nobody.
    sender.send(tokens(2)).await.expect("it connects again");
    assert_eq!(b.next().await, (a.id, tokens(2)));
}

#[tokio::test]
async fn all_who_need_a_peer_share_one_attempt_to_reach_it_and_its_failure() {
    let (a, gone) = (Node::start(), PeerId::random());
    let (_hole, addr) = hole();
    let begun = Instant::now();
    let sent = join_all((0..8).map(|_| send(&a, gone, addr))).await;
    let unreachable = |sent: &Sent| matches!(sent, Err(TensorError::Unreachable { .. }));
    assert!(sent.iter().all(unreachable), "{sent:?}");
    let took = begun.elapsed();
    assert!(took < CONNECT_TIMEOUT * 2, "one after the other? {took:?}");
    // Nothing is left of the attempt: the next one dials again.
    assert!(unreachable(&send(&a, gone, addr).await));
}

#[tokio::test]
async fn a_newer_address_ends_an_attempt_to_reach_an_older_one() {
    let (a, mut b) = (patient(), Node::start());
    let (hole, addr) = hole();
    let sending: Vec<_> = (0..8).map(|_| send(&a, b.id, addr)).collect();
    dialled(&hole).await;
    // Its greeting comes first, its advert later.
    a.plane.moved(&b.id, 1, &[]);
    a.plane.moved(&b.id, 1, &b.plane.local_addrs());
    for sent in join_all(sending).await {
        sent.expect("it is reached");
        b.next().await;
    }
}

#[tokio::test]
async fn who_knows_where_a_peer_is_helps_those_who_do_not() {
    let (a, mut b) = (patient(), Node::start());
    let (hole, addr) = hole();
    let waiting = send(&a, b.id, addr);
    dialled(&hole).await;
    let knowing = send(&a, b.id, b.plane.local_addrs()[0]);
    for sent in [waiting.await, knowing.await] {
        sent.expect("it is reached");
        b.next().await;
    }
}

#[tokio::test]
async fn a_peer_that_dials_itself_ends_the_attempt_to_reach_it() {
    let (mut a, mut b) = (patient(), Node::start());
    let (hole, addr) = hole();
    let waiting = send(&a, b.id, addr);
    dialled(&hole).await;
    let sender = b.sender_to(&a).await;
    sender.send(tokens(2)).await.expect("it is connected");
    assert_eq!(a.next().await, (b.id, tokens(2)));
    waiting.await.expect("b came by itself");
    assert_eq!(b.next().await, (a.id, tokens(1)));
}

#[tokio::test]
async fn an_attempt_goes_on_when_whoever_began_it_no_longer_waits() {
    let (a, mut b) = (patient(), Node::start());
    let (hole, addr) = hole();
    let (plane, peer) = (a.plane.clone(), b.id);
    let first = tokio::spawn(async move { plane.sender(peer, &[addr]).await.map(|_| ()) });
    dialled(&hole).await;
    let second = send(&a, b.id, addr);
    first.abort();
    a.plane.moved(&b.id, 1, &b.plane.local_addrs());
    second.await.expect("it is reached");
    assert_eq!(b.next().await, (a.id, tokens(1)));
}
