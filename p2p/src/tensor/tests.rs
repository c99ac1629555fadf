use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use tokio::time::timeout;

use super::*;
use crate::wire::{SessionId, StepInput, limit};

/// Far beyond every limit of the plane: only a hang gets here.
const HANG: Duration = Duration::from_secs(60);

struct Node {
    id: PeerId,
    plane: TensorPlane,
    frames: mpsc::Receiver<(PeerId, TensorFrame)>,
}

impl Node {
    fn start() -> Self {
        Self::start_as(&Keypair::generate_ed25519(), Arc::new(|_| true))
    }

    fn start_as(keypair: &Keypair, admission: Admission) -> Self {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (plane, frames) = TensorPlane::bind(keypair, any_port, admission).expect("port 0");
        Self {
            id: keypair.public().to_peer_id(),
            plane,
            frames,
        }
    }

    async fn sender_to(&self, other: &Node) -> TensorSender {
        let addrs = other.plane.local_addrs();
        self.plane
            .sender(other.id, &addrs)
            .await
            .expect("it listens")
    }

    async fn next(&mut self) -> (PeerId, TensorFrame) {
        timeout(HANG, self.frames.recv())
            .await
            .expect("it hangs")
            .expect("the plane runs")
    }
}

async fn next_loss(losses: &mut broadcast::Receiver<PeerLoss>) -> PeerLoss {
    timeout(HANG, losses.recv())
        .await
        .expect("it hangs")
        .expect("the plane runs")
}

fn step(step: u64, input: StepInput) -> TensorFrame {
    let session = SessionId([1; 16]);
    TensorFrame::Step {
        session,
        epoch: 1,
        step,
        position: step,
        sample: true,
        input,
    }
}

fn tokens(number: u64) -> TensorFrame {
    step(number, StepInput::Tokens(vec![number as u32; 3]))
}

fn hidden(number: u64, bytes: usize) -> TensorFrame {
    let data = Bytes::from(vec![number as u8; bytes]);
    step(number, StepInput::Hidden { rows: 1, data })
}

#[tokio::test]
async fn frames_arrive_in_the_order_they_were_sent() {
    let (a, mut b) = (Node::start(), Node::start());
    let sender = a.sender_to(&b).await;
    let sent = |number| match number % 3 {
        0 => hidden(number, 40_000),
        1 => tokens(number),
        _ => TensorFrame::failed(SessionId([2; 16]), 1, number, "code", "message"),
    };
    let sending = async {
        for number in 0..600 {
            sender.send(sent(number)).await.expect("it is connected");
        }
    };
    let receiving = async {
        for number in 0..600 {
            assert_eq!(b.next().await, (a.id, sent(number)));
        }
    };
    tokio::join!(sending, receiving);
}

#[tokio::test]
async fn large_frames_arrive_whole() {
    let (a, mut b) = (Node::start(), Node::start());
    let sender = a.sender_to(&b).await;
    let sending = async {
        for bytes in [4, 256 * 1024, 32 * 1024 * 1024] {
            sender
                .send(hidden(7, bytes))
                .await
                .expect("it is connected");
        }
    };
    let receiving = async {
        for bytes in [4, 256 * 1024, 32 * 1024 * 1024] {
            assert!(b.next().await == (a.id, hidden(7, bytes)), "{bytes} bytes");
        }
    };
    tokio::join!(sending, receiving);
}

#[tokio::test]
async fn a_frame_over_the_limit_is_not_sent() {
    let (a, mut b) = (Node::start(), Node::start());
    let sender = a.sender_to(&b).await;
    let error = sender
        .send(hidden(0, limit::TENSOR_FRAME))
        .await
        .expect_err("it is too large");
    assert!(
        matches!(error, TensorError::Wire(WireError::TooLarge { .. })),
        "{error}"
    );
    sender
        .send(tokens(1))
        .await
        .expect("the connection is none the worse");
    assert_eq!(b.next().await, (a.id, tokens(1)));
}

#[tokio::test]
async fn both_ends_may_call_each_other_at_once() {
    let (mut a, mut b) = (Node::start(), Node::start());
    let (to_b, to_a) = tokio::join!(a.sender_to(&b), b.sender_to(&a));
    for number in 0..50 {
        to_b.send(tokens(number)).await.expect("it is connected");
        to_a.send(tokens(100 + number))
            .await
            .expect("it is connected");
    }
    for number in 0..50 {
        assert_eq!(b.next().await, (a.id, tokens(number)));
        assert_eq!(a.next().await, (b.id, tokens(100 + number)));
    }
}

#[tokio::test]
async fn an_answer_goes_over_the_connection_that_the_question_came_on() {
    let (mut a, mut b) = (Node::start(), Node::start());
    a.sender_to(&b)
        .await
        .send(tokens(1))
        .await
        .expect("it is connected");
    let (from, _) = b.next().await;
    let back = b
        .plane
        .sender(from, &[])
        .await
        .expect("no address is needed");
    back.send(tokens(2)).await.expect("it is connected");
    assert_eq!(a.next().await, (b.id, tokens(2)));
}

#[tokio::test]
async fn another_peer_at_the_address_is_refused() {
    let (a, b) = (Node::start(), Node::start());
    let wanted = PeerId::random();
    let addr = b.plane.local_addrs()[0];
    let error = a
        .plane
        .sender(wanted, &[addr])
        .await
        .expect_err("b is not who was wanted");
    assert_eq!(
        error,
        TensorError::WrongPeer(Box::new(WrongPeer {
            expected: wanted,
            found: b.id,
            addr
        }))
    );
}

#[tokio::test]
async fn an_address_that_nobody_answers_does_not_hide_one_that_works() {
    let (a, mut b) = (Node::start(), Node::start());
    let impostor = Node::start();
    let mut addrs = impostor.plane.local_addrs();
    addrs.extend(b.plane.local_addrs());
    let sender = a
        .plane
        .sender(b.id, &addrs)
        .await
        .expect("the second address is right");
    sender.send(tokens(1)).await.expect("it is connected");
    assert_eq!(b.next().await, (a.id, tokens(1)));
}

#[tokio::test]
async fn a_peer_without_addresses_is_unreachable() {
    let a = Node::start();
    let error = a
        .plane
        .sender(PeerId::random(), &[])
        .await
        .expect_err("nowhere to go");
    assert!(matches!(error, TensorError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn who_is_no_member_is_told_so_and_delivers_nothing() {
    let a = Node::start();
    let member = Keypair::generate_ed25519();
    let member_id = member.public().to_peer_id();
    let admission: Admission = Arc::new(move |peer| *peer == member_id);
    let mut b = Node::start_as(&Keypair::generate_ed25519(), admission);
    let member = Node::start_as(&member, Arc::new(|_| true));

    let mut losses = a.plane.losses();
    if let Ok(sender) = a.plane.sender(b.id, &b.plane.local_addrs()).await {
        // The connection may stand for a moment on this side, before the refusal arrives.
        let _ = sender.send(tokens(1)).await;
        let loss = next_loss(&mut losses).await;
        assert!(
            matches!(loss.error, TensorError::Refused { .. }),
            "{}",
            loss.error
        );
    }
    member
        .sender_to(&b)
        .await
        .send(tokens(2))
        .await
        .expect("it is a member");
    assert_eq!(
        b.next().await,
        (member.id, tokens(2)),
        "nothing of the stranger came before"
    );
}

#[tokio::test]
async fn nothing_is_sent_to_who_is_no_member() {
    let b = Node::start();
    let a = Node::start_as(&Keypair::generate_ed25519(), Arc::new(|_| false));
    let refused = a
        .plane
        .sender(b.id, &b.plane.local_addrs())
        .await
        .expect_err("b is a stranger");
    assert_eq!(refused, TensorError::NotAMember(b.id));
}

#[tokio::test]
async fn a_peer_that_shuts_down_is_lost_at_once() {
    let (a, mut b) = (Node::start(), Node::start());
    let mut losses = a.plane.losses();
    let sender = a.sender_to(&b).await;
    sender.send(tokens(1)).await.expect("it is connected");
    b.next().await;
    b.plane.shutdown().await;
    let loss = next_loss(&mut losses).await;
    assert_eq!(loss.peer, b.id);
    assert!(
        loss.error.to_string().contains("shut down"),
        "{}",
        loss.error
    );
}

#[tokio::test]
async fn what_was_sent_before_a_shutdown_still_arrives() {
    let (a, mut b) = (Node::start(), Node::start());
    let sender = a.sender_to(&b).await;
    for number in 0..20 {
        sender
            .send(hidden(number, 100_000))
            .await
            .expect("it is connected");
    }
    let receiving = async {
        for number in 0..20 {
            assert_eq!(b.next().await, (a.id, hidden(number, 100_000)));
        }
    };
    tokio::join!(a.plane.shutdown(), receiving);
    let after = sender
        .send(tokens(1))
        .await
        .expect_err("the plane is closed");
    assert_eq!(after, TensorError::ShutDown);
}

#[tokio::test]
async fn a_peer_that_dies_without_a_word_is_noticed() {
    let a = Node::start();
    let mut losses = a.plane.losses();
    let doomed = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a thread can be had");
    let b = doomed
        .spawn(async { Node::start() })
        .await
        .expect("it starts");
    let sender = a.sender_to(&b).await;
    sender.send(tokens(1)).await.expect("it is connected");
    // Its tasks stop where they are, and nothing more is sent.
    doomed.shutdown_background();
    let loss = next_loss(&mut losses).await;
    assert_eq!(loss.peer, b.id);
    assert!(sender.send(tokens(2)).await.is_err());
}

#[tokio::test]
async fn a_send_after_a_broken_connection_connects_again() {
    let (a, mut b) = (Node::start(), Node::start());
    let mut losses = a.plane.losses();
    let sender = a.sender_to(&b).await;
    for number in 0..3 {
        sender.send(tokens(number)).await.expect("it connects");
        assert_eq!(b.next().await, (a.id, tokens(number)));
        b.plane.disconnect(&a.id);
        assert_eq!(next_loss(&mut losses).await.peer, b.id);
    }
}

#[tokio::test]
async fn a_peer_that_comes_back_elsewhere_is_found_again() {
    let keypair = Keypair::generate_ed25519();
    let a = Node::start();
    let mut losses = a.plane.losses();
    let b = Node::start_as(&keypair, Arc::new(|_| true));
    a.sender_to(&b)
        .await
        .send(tokens(1))
        .await
        .expect("it is connected");
    b.plane.shutdown().await;
    next_loss(&mut losses).await;

    let mut again = Node::start_as(&keypair, Arc::new(|_| true));
    a.sender_to(&again)
        .await
        .send(tokens(2))
        .await
        .expect("it is connected");
    assert_eq!(again.next().await, (a.id, tokens(2)));
}

#[tokio::test]
async fn a_disconnect_on_this_side_is_no_loss() {
    let (a, mut b) = (Node::start(), Node::start());
    let mut losses = a.plane.losses();
    let sender = a.sender_to(&b).await;
    sender.send(tokens(1)).await.expect("it is connected");
    b.next().await;
    a.plane.disconnect(&b.id);
    sender.send(tokens(2)).await.expect("it connects again");
    assert_eq!(b.next().await, (a.id, tokens(2)));
    assert!(losses.try_recv().is_err());
}

#[tokio::test]
async fn a_send_that_is_given_up_harms_no_other_frame() {
    let (a, mut b) = (Node::start(), Node::start());
    let sender = a.sender_to(&b).await;
    sender.send(tokens(1)).await.expect("it is connected");
    {
        // Larger than what may be under way: one poll writes a part of it.
        let send = sender.send(hidden(2, 60 * 1024 * 1024));
        let mut send = std::pin::pin!(send);
        assert!(futures::poll!(send.as_mut()).is_pending());
    }
    sender.send(tokens(3)).await.expect("it is connected");
    assert_eq!(b.next().await, (a.id, tokens(1)));
    assert_eq!(b.next().await, (a.id, tokens(3)));
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_is_disconnected() {
    let frame_of = |size: u32, header: u16, rest: &[u8]| {
        [&size.to_le_bytes(), header.to_le_bytes().as_slice(), rest].concat()
    };
    let cases = [
        ("a frame of 4 GiB", frame_of(u32::MAX, 10, &[])),
        ("a header over its limit", frame_of(60_000, 50_000, &[])),
        ("a header larger than its frame", frame_of(10, 20, &[])),
        ("a header of noise", frame_of(8, 8, b"nonsense")),
        ("no header", frame_of(4, 0, b"data")),
    ];
    for (what, bytes) in cases {
        let b = Node::start();
        let mut losses = b.plane.losses();
        let keypair = Keypair::generate_ed25519();
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (raw, client) = endpoint::bind(&keypair, any_port).expect("port 0");
        let addr = b.plane.local_addrs()[0];
        let connection = raw
            .connect_with(client, addr, "accel")
            .expect("a good address");
        let connection = connection.await.expect("b listens");
        let mut stream = connection.open_uni().await.expect("b takes streams");
        stream.write_all(&bytes).await.expect("it is little");
        let closed = timeout(HANG, connection.closed()).await.expect("it hangs");
        assert!(closed.to_string().contains("bad frame"), "{what}: {closed}");
        let loss = next_loss(&mut losses).await;
        assert_eq!(loss.peer, keypair.public().to_peer_id(), "{what}");
    }
}

#[tokio::test]
async fn traffic_is_counted_on_both_ends() {
    let (a, mut b) = (Node::start(), Node::start());
    let sender = a.sender_to(&b).await;
    for number in 0..5 {
        sender
            .send(hidden(number, 1000))
            .await
            .expect("it is connected");
        b.next().await;
    }
    let (sent, received) = (a.plane.traffic(&b.id), b.plane.traffic(&a.id));
    assert_eq!((sent.sent_frames, received.received_frames), (5, 5));
    assert_eq!(sent.sent_bytes, received.received_bytes);
    assert!(sent.sent_bytes > 5000, "headers count too: {sent:?}");
    assert_eq!((sent.received_bytes, received.sent_bytes), (0, 0));
    assert_eq!(a.plane.all_traffic(), [(b.id, sent)]);
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error() {
    let a = Node::start();
    let taken = a.plane.local_addrs()[0];
    let keypair = Keypair::generate_ed25519();
    let error = TensorPlane::bind(&keypair, taken, Arc::new(|_| true)).expect_err("a is there");
    assert!(matches!(error, TensorError::Bind { .. }), "{error}");
}
