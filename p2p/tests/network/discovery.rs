//! Nodes find each other, and notice who leaves.

use std::time::Duration;

use crate::support::{Node, PrivateSwarm, advert_body, invited_config, public_config};

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_hear_each_others_adverts() {
    let mut a = Node::public(&[]).await;
    let mut b = Node::public(&[&a]).await;
    let heard = b.hears_advert_of(a.peer()).await;
    assert_eq!(heard.body.addrs, a.network.listen_addrs());
    assert_eq!(heard.body.tensor_addrs, a.network.tensor_addrs());
    a.hears_advert_of(b.peer()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_joined_a_third_connect_directly() {
    let mut hub = Node::public(&[]).await;
    let mut a = Node::public(&[&hub]).await;
    let mut b = Node::public(&[&hub]).await;
    a.hears_advert_of(b.peer()).await;
    b.hears_advert_of(a.peer()).await;
    a.sees_connected(b.peer()).await;
    for node in [&a, &b] {
        hub.hears_advert_of(node.peer()).await;
    }
    hub.network.shutdown().await;
    a.sees_disconnected(hub.peer()).await;
    assert!(a.network.is_connected(&b.peer()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_advert_reaches_the_others() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    a.hears_advert_of(b.peer()).await;
    b.network.set_advert(advert_body("changed"));
    while a.hears_advert_of(b.peer()).await.body.version != "changed" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_is_gone_at_once() {
    let mut a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    a.hears_advert_of(b.peer()).await;
    b.network.shutdown().await;
    // Its advert would hold for a quarter of a minute more; the goodbye ends it.
    a.hears_expiry_of(b.peer()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_is_disconnected_at_once_and_expires_with_its_advert() {
    let mut a = Node::public(&[]).await;
    let mut config = public_config();
    config.join = vec![a.as_target()];
    config.advert_ttl = Duration::from_secs(2);
    let b = Node::start(config).await;
    b.network.set_advert(advert_body("short-lived"));
    let peer = b.peer();
    a.hears_advert_of(peer).await;
    drop(b);
    a.sees_disconnected(peer).await;
    a.hears_expiry_of(peer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advert_is_renewed_for_as_long_as_its_node_lives() {
    let mut a = Node::public(&[]).await;
    let mut config = public_config();
    config.join = vec![a.as_target()];
    config.advert_ttl = Duration::from_millis(1500);
    let b = Node::start(config).await;
    b.network.set_advert(advert_body("short-lived"));
    let first = a.hears_advert_of(b.peer()).await;
    let mut latest = first.clone();
    while latest.issued_unix_ms < first.issued_unix_ms + 3 * first.ttl_ms {
        latest = a.hears_advert_of(b.peer()).await;
    }
    assert!(latest.seq > first.seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_joins_a_private_swarm_with_nothing_but_an_invite() {
    let swarm = PrivateSwarm::new();
    let mut host = swarm.node(&[]).await;
    let invite = host.network.create_invite(Duration::from_secs(60)).unwrap();
    let mut guest = Node::start(invited_config(&invite)).await;
    guest.network.set_advert(advert_body("guest"));
    host.hears_advert_of(guest.peer()).await;
    guest.hears_advert_of(host.peer()).await;

    // With the certificate it comes back without asking again, and nobody else can use it.
    let membership = guest.network.membership();
    assert!(!membership.holds_authority());
    guest.network.shutdown().await;
    let mut config = guest.config.clone();
    config.swarm = membership;
    config.join = vec![host.as_target()];
    let mut thief = config.clone();
    thief.seed = rand::random();
    let guest = Node::start(config).await;
    assert!(guest.network.is_connected(&host.peer()));
    let refused = Node::try_start(thief)
        .await
        .err()
        .expect("a thief is refused");
    assert_eq!(refused.code(), "no_certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_is_connected_again() {
    let a = Node::public(&[]).await;
    let mut b = Node::public(&[&a]).await;
    let mut config = a.config.clone();
    config.listen = vec![a.addr().iter().take(2).collect()];
    a.network.shutdown().await;
    b.sees_disconnected(a.peer()).await;
    let returned = Node::start(config).await;
    b.sees_connected(returned.peer()).await;
}
