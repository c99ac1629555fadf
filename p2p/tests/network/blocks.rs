//! Blocks by CID from node to node.

use std::time::Duration;

use accel_p2p::FetchError;
use futures::StreamExt;

use crate::support::{Node, PATIENCE, PrivateSwarm, cid_of};

const PER_PROVIDER: Duration = Duration::from_secs(5);
const BLOCK: usize = 256 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_fetched_from_the_node_that_has_it() {
    let a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let cid = a.store.put("hello");
    for providers in [vec![a.peer()], vec![]] {
        let block = b.network.fetch_block(&cid, &providers, PER_PROVIDER).await;
        assert_eq!(block.unwrap(), "hello");
    }
    assert_eq!(b.network.exchange_stats().bytes_received, 10);
    assert_eq!(a.network.exchange_stats().blocks_sent, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_model_crosses_in_blocks_from_two_nodes() {
    let a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let c = Node::public(&[&a, &b]).await;
    let cids: Vec<_> = (0..96u32)
        .map(|n| {
            let data: Vec<u8> = n.to_le_bytes().repeat(BLOCK / 4);
            a.store.put(data.clone());
            b.store.put(data)
        })
        .collect();
    let providers = [a.peer(), b.peer()];
    let fetched: Vec<_> = futures::stream::iter(&cids)
        .map(|cid| c.network.fetch_block(cid, &providers, PER_PROVIDER))
        .buffered(32)
        .collect()
        .await;
    for (cid, block) in cids.iter().zip(fetched) {
        assert_eq!(*cid, cid_of(&block.unwrap()));
    }
    let stats = c.network.exchange_stats();
    assert_eq!(stats.bytes_received, (cids.len() * BLOCK) as u64);
    assert_eq!(stats.wrong_blocks, 0);
    for node in [&a, &b] {
        assert!(node.network.exchange_stats().blocks_sent > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_block_is_refused_and_fetched_elsewhere() {
    let liar = Node::public(&[]).await;
    let honest = Node::public(&[]).await;
    let c = Node::public(&[&liar, &honest]).await;
    let cid = honest.store.put("the truth");
    liar.store.put_as(cid, "a lie");
    let providers = [liar.peer(), honest.peer()];
    let block = c.network.fetch_block(&cid, &providers, PATIENCE).await;
    assert_eq!(block.unwrap(), "the truth");
    assert_eq!(c.network.exchange_stats().wrong_blocks, 1);

    // The liar is not asked again.
    let next = honest.store.put("more truth");
    let block = c.network.fetch_block(&next, &providers, PATIENCE).await;
    assert_eq!(block.unwrap(), "more truth");
    assert_eq!(liar.store.times_asked(&next), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_nobody_has_is_not_found() {
    let a = Node::public(&[]).await;
    let b = Node::public(&[]).await;
    let c = Node::public(&[&a, &b]).await;
    let cid = cid_of(b"nobody has this");
    for providers in [vec![a.peer(), b.peer()], vec![]] {
        let missing = c.network.fetch_block(&cid, &providers, PATIENCE).await;
        assert_eq!(missing, Err(FetchError::NotFound { cid, asked: 2 }));
    }
    let alone = Node::public(&[]).await;
    let missing = alone.network.fetch_block(&cid, &[], PATIENCE).await;
    assert_eq!(missing, Err(FetchError::NoProviders { cid }));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_provider_dies_the_next_one_is_asked() {
    let dying = Node::public(&[]).await;
    let other = Node::public(&[]).await;
    let c = Node::public(&[&dying, &other]).await;
    let cids: Vec<_> = (0..64u32)
        .map(|n| {
            let data: Vec<u8> = n.to_le_bytes().repeat(BLOCK / 4);
            dying.store.put(data.clone());
            other.store.put(data)
        })
        .collect();
    let providers = [dying.peer(), other.peer()];
    let mut fetching = futures::stream::iter(&cids)
        .map(|cid| c.network.fetch_block(cid, &providers, PATIENCE))
        .buffered(16);
    fetching.next().await.unwrap().unwrap();
    drop(dying);
    while let Some(block) = fetching.next().await {
        block.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_fetches_of_one_block_are_one() {
    let a = Node::public(&[]).await;
    let b = Node::public(&[&a]).await;
    let cid = a.store.put("wanted twice");
    let providers = [a.peer()];
    let (one, two) = tokio::join!(
        b.network.fetch_block(&cid, &providers, PER_PROVIDER),
        b.network.fetch_block(&cid, &providers, PER_PROVIDER),
    );
    assert_eq!(one, two);
    assert_eq!(one.unwrap(), "wanted twice");
    assert_eq!(a.store.times_asked(&cid), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_private_swarm_exchange_blocks() {
    let swarm = PrivateSwarm::new();
    let a = swarm.node(&[]).await;
    let mut b = swarm.node(&[&a]).await;
    let cid = a.store.put("secret");
    b.hears_advert_of(a.peer()).await;
    let block = b.network.fetch_block(&cid, &[a.peer()], PER_PROVIDER).await;
    assert_eq!(block.unwrap(), "secret");
}
