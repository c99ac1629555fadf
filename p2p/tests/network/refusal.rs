//! What does not start, and who is not let in: each with an error that says what to do.

use std::net::TcpListener;
use std::time::Duration;

use accel_p2p::{
    ControlError, ControlRequest, JoinTarget, NetworkError, NetworkEvent, SessionId,
    SwarmMembership, unix_ms,
};

use crate::support::{
    Node, PATIENCE, PrivateSwarm, advert_body, invited_config, peer_of, public_config,
};

async fn refused(config: accel_p2p::NetworkConfig) -> NetworkError {
    let starting = tokio::time::timeout(PATIENCE, Node::try_start(config));
    let started = starting.await.expect("the start is bounded in time");
    started.err().expect("the node must not start")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_named() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let mut config = public_config();
    config.listen = vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()];
    let error = refused(config).await;
    assert!(
        matches!(error, NetworkError::AddressInUse { .. }),
        "{error}"
    );
    assert!(error.to_string().contains(&port.to_string()));
    assert!(error.to_string().contains("--listen"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_of_another_node_is_busy_too() {
    let other = Node::public(&[]).await;
    let mut config = public_config();
    config.listen = vec![other.addr().iter().take(2).collect()];
    let error = refused(config).await;
    assert!(
        matches!(error, NetworkError::AddressInUse { .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_listened_on_is_named() {
    let mut config = public_config();
    config.listen = vec!["/dns4/example.org/tcp/1".parse().unwrap()];
    let error = refused(config).await;
    assert!(matches!(error, NetworkError::BadAddress { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_target_that_does_not_answer_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = format!("/ip4/127.0.0.1/tcp/{}", free.local_addr().unwrap().port());
    drop(free);
    let swarm = PrivateSwarm::new();
    for mut config in [public_config(), swarm.config()] {
        config.join = vec![JoinTarget::Addr(addr.parse().unwrap())];
        let error = refused(config).await;
        assert!(matches!(error, NetworkError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&addr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_peer_than_expected_is_refused() {
    let node = Node::public(&[]).await;
    let mut addr = node.addr();
    addr.pop();
    let expected = peer_of(rand::random());
    let mut config = public_config();
    config.join = vec![JoinTarget::Addr(addr.with_p2p(expected).unwrap())];
    let error = refused(config).await;
    assert!(matches!(error, NetworkError::WrongPeer { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_join_targets_is_enough() {
    let node = Node::public(&[]).await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("/ip4/127.0.0.1/tcp/{}", free.local_addr().unwrap().port());
    drop(free);
    let mut config = public_config();
    config.join = vec![JoinTarget::Addr(dead.parse().unwrap()), node.as_target()];
    let joined = Node::start(config).await;
    assert!(joined.network.is_connected(&node.peer()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_another_swarm_key_cannot_connect_and_is_told_why() {
    let (ours, theirs) = (PrivateSwarm::new(), PrivateSwarm::new());
    let member = ours.node(&[]).await;
    let mut config = theirs.config();
    config.join = vec![member.as_target()];
    let error = refused(config).await;
    assert!(
        matches!(error, NetworkError::WrongSwarmKey { .. }),
        "{error}"
    );
    assert!(member.network.connected().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_public_swarm_does_not_get_into_a_private_one() {
    let member = PrivateSwarm::new().node(&[]).await;
    let mut config = public_config();
    config.join = vec![member.as_target()];
    let error = refused(config).await;
    assert!(matches!(error, NetworkError::NotPublic { .. }), "{error}");
    assert!(member.network.connected().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_invite_is_refused_before_anybody_is_asked() {
    let host = PrivateSwarm::new().node(&[]).await;
    let invite = host.network.create_invite(Duration::ZERO).unwrap();
    let error = refused(invited_config(&invite)).await;
    assert_eq!(error.code(), "bad_invite");
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_to_a_swarm_whose_key_was_replaced_is_refused() {
    let swarm = PrivateSwarm::new();
    let host = swarm.node(&[]).await;
    let addrs = host.network.listen_addrs();
    let other = PrivateSwarm::new();
    let invite = other
        .key
        .issue_invite(addrs, Duration::from_secs(60), unix_ms())
        .unwrap();
    let error = refused(invited_config(&invite)).await;
    assert!(
        matches!(error, NetworkError::WrongSwarmKey { .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_pre_shared_key_but_no_certificate_gets_nothing() {
    let swarm = PrivateSwarm::new();
    let member = swarm.node(&[]).await;
    let cid = member.store.put("secret");

    // An intruder that got hold of an invite and does not ask to be let in.
    let invite = member
        .network
        .create_invite(Duration::from_secs(60))
        .unwrap();
    let intruder_seed = rand::random();
    let mut config = invited_config(&invite);
    config.seed = intruder_seed;
    config.join = vec![member.as_target()];
    let error = refused(config).await;
    assert_eq!(error.code(), "no_certificate");
    member.is_without(peer_of(intruder_seed)).await;
    assert_eq!(member.store.times_asked(&cid), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_a_peer_that_is_not_connected_says_so() {
    let node = Node::public(&[]).await;
    let nobody = peer_of(rand::random());
    let request = ControlRequest::Release {
        session: SessionId([0; 16]),
        epoch: 0,
    };
    let error = node.network.control(nobody, request).await.err().unwrap();
    assert!(
        matches!(error, ControlError::Network(NetworkError::NotConnected(peer)) if peer == nobody)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_different_public_swarms_may_connect_but_hear_no_adverts() {
    let mut a = Node::public(&[]).await;
    let mut config = public_config();
    config.swarm = SwarmMembership::public("another swarm");
    config.join = vec![a.as_target()];
    let b = Node::start(config).await;
    b.network.set_advert(advert_body("foreign"));
    let c = Node::public(&[&a]).await;
    let (foreign, own) = (b.peer(), c.peer());
    let heard = a
        .hears(|event| match event {
            NetworkEvent::Advert(advert) => Some(advert.peer),
            _ => None,
        })
        .await;
    assert_eq!(heard, own);
    assert_ne!(heard, foreign);
}
