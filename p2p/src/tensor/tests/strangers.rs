//! Who the other end is, and whether it may take part.

use super::*;

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
    let (a, member) = (Node::start(), Node::start());
    let mut b = Node::start_as(&Keypair::generate_ed25519(), Gate::Only(member.id));
    let addrs = b.plane.local_addrs();
    let error = a
        .plane
        .sender(b.id, &addrs)
        .await
        .expect_err("a is a stranger to b");
    assert!(
        matches!(error, TensorError::Refused { peer, .. } if peer == b.id),
        "{error}"
    );
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
    let mut b = Node::start();
    let a = Node::start_as(&Keypair::generate_ed25519(), Gate::Only(PeerId::random()));
    let addrs = b.plane.local_addrs();
    let error = a
        .plane
        .sender(b.id, &addrs)
        .await
        .expect_err("b is a stranger to a");
    assert!(
        matches!(error, TensorError::NotAMember { peer, .. } if peer == b.id),
        "{error}"
    );
    assert!(b.frames.try_recv().is_err());
}

/// A member of the swarm of `key`.
fn member_of(key: &SwarmKey) -> Node {
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    Node::start_as(
        &keypair,
        Gate::Members(SwarmMembership::from_key(key, peer, NOW)),
    )
}

#[tokio::test]
async fn members_that_never_heard_of_each_other_are_admitted_by_their_certificates() {
    let key = SwarmKey::generate("home").expect("the name is good");
    let (a, mut b) = (member_of(&key), member_of(&key));
    a.sender_to(&b)
        .await
        .send(tokens(1))
        .await
        .expect("both are members");
    assert_eq!(b.next().await, (a.id, tokens(1)));
}

#[tokio::test]
async fn a_member_of_another_swarm_is_a_stranger() {
    let key = || SwarmKey::generate("home").expect("the name is good");
    let b = member_of(&key());
    for stranger in [member_of(&key()), Node::start()] {
        let called = stranger.plane.sender(b.id, &b.plane.local_addrs()).await;
        assert!(
            matches!(called, Err(TensorError::Refused { .. })),
            "{called:?}"
        );
    }
}

/// What a bare connection lives on.
pub(super) struct Bare {
    _endpoint: quinn::Endpoint,
    _thread: PlaneThread,
}

/// A bare connection to `node`, under the id of a new peer.
async fn connect_bare(node: &Node) -> (Bare, quinn::Connection, PeerId) {
    let keypair = Keypair::generate_ed25519();
    let (bare, connection) = connect_bare_as(&keypair, node).await;
    (bare, connection, keypair.public().to_peer_id())
}

pub(super) async fn connect_bare_as(keypair: &Keypair, node: &Node) -> (Bare, quinn::Connection) {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let thread = PlaneThread::start().expect("a thread");
    let (endpoint, client) = endpoint::bind(keypair, any_port, &thread).expect("port 0");
    let addr = node.plane.local_addrs()[0];
    let connecting = endpoint
        .connect_with(client, addr, "accel")
        .expect("a good address");
    let connection = connecting.await.expect("it listens");
    let bare = Bare {
        _endpoint: endpoint,
        _thread: thread,
    };
    (bare, connection)
}

async fn closed(connection: &quinn::Connection) -> String {
    timeout(HANG, connection.closed())
        .await
        .expect("it hangs")
        .to_string()
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
        let (_bare, connection, id) = connect_bare(&b).await;
        greeting::offer(&connection, b.id, &Gate::Everybody, 1)
            .await
            .expect("everybody is welcome");
        let mut stream = connection.open_uni().await.expect("b takes streams");
        stream.write_all(&bytes).await.expect("it is little");
        let closed = closed(&connection).await;
        assert!(closed.contains("bad frame"), "{what}: {closed}");
        assert_eq!(next_loss(&mut losses).await.peer, id, "{what}");
    }
}

#[tokio::test]
async fn a_greeting_that_is_none_is_refused() {
    let cases = [
        vec![],
        b"hello".to_vec(),
        vec![0x31, 7],
        vec![0x31; limit::TENSOR_GREETING + 1],
    ];
    for greeting in cases {
        let b = Node::start();
        let (_bare, connection, _) = connect_bare(&b).await;
        let (mut sending, _receiving) = connection.open_bi().await.expect("b takes a greeting");
        sending.write_all(&greeting).await.expect("it is little");
        sending.finish().expect("it is open");
        let closed = closed(&connection).await;
        let told = closed.contains("not a member") || closed.contains("bad greeting");
        assert!(told, "{greeting:?}: {closed}");
    }
}

#[tokio::test]
async fn frames_of_who_never_greets_are_not_taken() {
    let mut b = Node::start();
    let (_bare, connection, _) = connect_bare(&b).await;
    let mut stream = connection.open_uni().await.expect("b takes streams");
    let parts = frame::encode(tokens(1)).expect("it is small");
    stream
        .write_all(&parts.concat())
        .await
        .expect("it is little");
    closed(&connection).await;
    assert!(b.frames.try_recv().is_err());
}
