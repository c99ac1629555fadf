//! Peers that leave, die and come back.

use super::strangers::connect_bare_as;
use super::*;

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
    let (a, b) = (Node::start(), Node::start());
    let mut losses = a.plane.losses();
    let sender = a.sender_to(&b).await;
    sender.send(tokens(1)).await.expect("it is connected");
    // Its thread stops where it is, and nothing more is sent.
    let _frozen = b.freeze();
    let loss = next_loss(&mut losses).await;
    assert_eq!(loss.peer, b.id);
    assert!(loss.error.to_string().contains("silent"), "{}", loss.error);
    assert!(sender.send(tokens(2)).await.is_err());
}

#[tokio::test]
async fn a_node_that_was_stopped_itself_takes_nobody_for_dead() {
    let (a, mut b) = (Node::start(), Node::start());
    let (mut losses, mut remote) = (a.plane.losses(), b.plane.losses());
    let sender = a.sender_to(&b).await;
    sender.send(tokens(1)).await.expect("it is connected");
    b.next().await;
    // Both stop and go on together, as on one machine that sleeps: the silence has no witness.
    let (frozen_a, frozen_b) = (a.freeze(), b.freeze());
    std::thread::sleep(SILENCE * 2);
    drop((frozen_a, frozen_b));
    sender.send(tokens(2)).await.expect("it is connected still");
    assert_eq!(b.next().await, (a.id, tokens(2)));
    assert!(losses.try_recv().is_err() && remote.try_recv().is_err());
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
    let b = Node::start_as(&keypair, Gate::Everybody);
    a.sender_to(&b)
        .await
        .send(tokens(1))
        .await
        .expect("it is connected");
    b.plane.shutdown().await;
    next_loss(&mut losses).await;

    let mut again = Node::start_as(&keypair, Gate::Everybody);
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
async fn a_connection_that_breaks_is_a_loss_if_frames_went_over_it_whatever_else_is_open() {
    let (mut a, keypair) = (Node::start(), Keypair::generate_ed25519());
    let peer = keypair.public().to_peer_id();
    let mut losses = a.plane.losses();
    let mut connections = Vec::new();
    for number in 0..2 {
        let (bare, connection) = connect_bare_as(&keypair, &a).await;
        greeting::offer(&connection, a.id, &Gate::Everybody, 1)
            .await
            .expect("everybody is welcome");
        let mut stream = connection.open_uni().await.expect("a takes streams");
        let parts = frame::encode(tokens(number)).expect("it is small");
        let written = stream.write_all(&parts.concat()).await;
        written.expect("it is little");
        assert_eq!(a.next().await, (peer, tokens(number)));
        // The first one is written to as long as it is there.
        let sender = a.plane.sender(peer, &[]).await.expect("it is connected");
        sender.send(tokens(9)).await.expect("it is connected");
        connections.push((bare, connection, stream));
    }
    connections[0].1.close(endpoint::BYE, b"bye");
    assert_eq!(next_loss(&mut losses).await.peer, peer);
    let sender = a.plane.sender(peer, &[]).await.expect("one is left");
    sender.send(tokens(9)).await.expect("one is left");
}
