//! Frames between two ends that know each other.

use super::*;

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
async fn who_call_each_other_at_once_do_not_lose_each_other_by_it() {
    for round in 0..40 {
        let (mut first, mut second) = (Node::start(), Node::start());
        let mut losses = [first.plane.losses(), second.plane.losses()];
        let (to_second, to_first) =
            tokio::join!(first.sender_to(&second), second.sender_to(&first));
        let sent = tokio::join!(to_second.send(tokens(1)), to_first.send(tokens(2)));
        assert_eq!(sent, (Ok(()), Ok(())), "{round}");
        assert_eq!(second.next().await, (first.id, tokens(1)), "{round}");
        assert_eq!(first.next().await, (second.id, tokens(2)), "{round}");
        // What a connection that is given up did to the other end shows a moment later.
        tokio::time::sleep(Duration::from_millis(20)).await;
        for losses in &mut losses {
            let lost = losses.try_recv();
            assert_eq!(lost, Err(broadcast::error::TryRecvError::Empty), "{round}");
        }
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

/// Waits until that many frames of `from` came in, taken by the consumer or not.
async fn received(node: &Node, from: PeerId, frames: u64) {
    let coming = async {
        while node.plane.traffic(&from).received_frames < frames {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, coming).await.expect("it hangs");
}

#[tokio::test]
async fn a_flood_that_nobody_takes_stays_within_its_senders_share_and_stops_no_one_else() {
    /// Two fit into a share, three do not.
    const BYTES: usize = 24 * 1024 * 1024;
    const FRAMES: u64 = 5;
    let (a, mut b, c) = (Node::start(), Node::start(), Node::start());
    let (flooding, quiet) = (a.sender_to(&b).await, c.sender_to(&b).await);
    let flood = async {
        for number in 0..FRAMES {
            flooding
                .send(hidden(number, BYTES))
                .await
                .expect("it is read in the end");
        }
    };
    let watch = async {
        received(&b, a.id, 2).await;
        quiet.send(hidden(9, 1000)).await.expect("it is connected");
        received(&b, c.id, 1).await;
        let mut taken = 0;
        for _ in 0..=FRAMES {
            assert!(b.plane.shared.budget.held() <= budget::PER_PEER + 1000);
            let came = b.plane.traffic(&a.id).received_frames;
            assert!(came <= taken + 2, "{came} frames came, {taken} were taken");
            let (from, frame) = b.next().await;
            taken += u64::from(from == a.id);
            drop(frame);
        }
        assert_eq!((taken, b.plane.shared.budget.held()), (FRAMES, 0));
    };
    tokio::join!(flood, watch);
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
    let mut taken = config(1);
    taken.listen = a.plane.local_addrs()[0];
    let keypair = Keypair::generate_ed25519();
    let error =
        TensorPlane::bind(&keypair, &taken, Arc::new(Gate::Everybody)).expect_err("a is there");
    assert!(matches!(error, TensorError::Bind { .. }), "{error}");
}
