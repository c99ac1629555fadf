//! Trees made to harm: each ends in a typed error, soon and with little memory.

use accel_storage::dag::{DAG_PB, MAX_BLOCK, MAX_DEPTH, MAX_FILE, MAX_LINKS, cid_of};
use accel_storage::{DagError, ModelRecord, StorageError, Want};
use bytes::Bytes;
use cid::Cid;
use ipld_dagpb::PbNode;
use multihash::Multihash;

use crate::stranger::{Blocks, Form, KUBO_V0, Part, unixfs};
use crate::support::{Home, Peer, nobody, quiet};

const FORM: Form = Form {
    raw_leaves: true,
    version_0: false,
    ..KUBO_V0
};

async fn refusal(blocks: Blocks, root: Cid) -> DagError {
    let home = Home::new();
    let peer = Peer::with(blocks.0);
    let refused = home.store.fetch(&root, Want::All, &peer, &quiet).await;
    match refused {
        Err(StorageError::Dag { source, .. }) => source,
        other => panic!("expected the tree to be refused, got {other:?}"),
    }
}

#[tokio::test]
async fn a_leaf_of_another_length_than_claimed_is_refused() {
    let mut blocks = Blocks::default();
    let leaf = blocks.raw(b"four");
    let root = blocks.claiming(&[], &[leaf, leaf], &[4, 3], 7, FORM);
    let expected = DagError::SizeMismatch {
        claimed: 3,
        actual: 4,
    };
    assert_eq!(refusal(blocks, root.cid).await, expected);
}

#[tokio::test]
async fn a_node_whose_sizes_do_not_add_up_is_refused() {
    let mut blocks = Blocks::default();
    let leaf = blocks.raw(b"four");
    let root = blocks.claiming(&[], &[leaf], &[4], 5, FORM);
    let refused = refusal(blocks, root.cid).await;
    assert!(matches!(refused, DagError::SizeMismatch { .. }));
}

#[tokio::test]
async fn a_chain_of_single_links_ends_at_the_depth_limit() {
    let mut blocks = Blocks::default();
    let mut part = blocks.raw(b"deep");
    for _ in 0..=MAX_DEPTH {
        part = blocks.node(&[], &[part], FORM);
    }
    let expected = DagError::TooDeep { limit: MAX_DEPTH };
    assert_eq!(refusal(blocks, part.cid).await, expected);
}

#[tokio::test]
async fn a_huge_fanout_is_refused() {
    let mut blocks = Blocks::default();
    let leaf = blocks.raw(b"x");
    let root = blocks.node(&[], &vec![leaf; MAX_LINKS + 1], FORM);
    let refused = refusal(blocks, root.cid).await;
    assert!(matches!(refused, DagError::TooManyLinks { .. }));
}

#[tokio::test]
async fn empty_nodes_are_not_walked_however_many() {
    let mut blocks = Blocks::default();
    let mut empty = blocks.raw(b"");
    for _ in 0..10 {
        empty = blocks.node(&[], &[empty; 1000], FORM);
    }
    let leaf = blocks.raw(b"the only byte that counts");
    let root = blocks.node(&[], &[empty, leaf, empty], FORM);
    let home = Home::new();
    let peer = Peer::with(blocks.0);
    let fetched = home.store.fetch(&root.cid, Want::All, &peer, &quiet).await;
    assert_eq!(fetched.unwrap().blocks_fetched, 2);
}

#[tokio::test]
async fn a_bomb_that_unfolds_beyond_the_disk_is_refused_at_its_root() {
    let mut blocks = Blocks::default();
    let mut bomb = blocks.raw(&[0; 1 << 20]);
    // 1 MiB, 1 GiB, 1 TiB, 15 TiB
    for width in [1024, 1024, 15] {
        bomb = blocks.node(&[], &vec![bomb; width], FORM);
    }
    let home = Home::new();
    let peer = Peer::with(blocks.0);
    let refused = home.store.fetch(&bomb.cid, Want::All, &peer, &quiet).await;
    assert!(matches!(refused, Err(StorageError::NotEnoughSpace { .. })));
    assert_eq!(peer.asked().len(), 1);
}

#[tokio::test]
async fn a_file_longer_than_any_model_is_refused() {
    let mut blocks = Blocks::default();
    let leaf = blocks.raw(b"x");
    let lies = [MAX_FILE, 1];
    let root = blocks.claiming(&[], &[leaf, leaf], &lies, MAX_FILE + 1, FORM);
    let refused = refusal(blocks, root.cid).await;
    assert!(matches!(refused, DagError::FileTooLong { .. }));
}

#[tokio::test]
async fn a_part_of_a_huge_shared_tree_costs_only_its_path() {
    let mut blocks = Blocks::default();
    let mut part = blocks.raw(&[7; 1000]);
    for _ in 0..3 {
        part = blocks.node(&[], &[part; 1000], FORM);
    }
    let home = Home::new();
    let peer = Peer::with(blocks.0);
    let want = Want::Ranges(vec![part.len - 5..part.len, 0..5]);
    let fetched = home.store.fetch(&part.cid, want, &peer, &quiet).await;
    assert_eq!(fetched.unwrap().blocks_fetched, 4);
    assert_eq!(home.store.present_bytes(&part.cid).unwrap(), 2000);
}

#[tokio::test]
async fn a_tree_that_is_mostly_not_content_is_refused() {
    let mut blocks = Blocks::default();
    let mut parts: Vec<Part> = Vec::new();
    for index in 0u8..40 {
        // A leaf of one byte in a block of almost 2 MiB: the rest is an unknown field.
        let mut data = unixfs(2, &[index], 1, &[]);
        let padding = MAX_BLOCK - 100;
        data.extend_from_slice(&[0x92, 0x3f]);
        data.extend_from_slice(&[
            (padding & 0x7f) as u8 | 0x80,
            (padding >> 7 & 0x7f) as u8 | 0x80,
            (padding >> 14) as u8,
        ]);
        data.resize(data.len() + padding, 0);
        parts.push(put(&mut blocks, data, 1));
    }
    let root = blocks.node(&[], &parts, FORM);
    let refused = refusal(blocks, root.cid).await;
    assert!(matches!(refused, DagError::Overhead { .. }), "{refused:?}");
}

#[tokio::test]
async fn what_is_not_a_file_is_refused_by_what_it_is() {
    let mut blocks = Blocks::default();
    let directory = put(&mut blocks, unixfs(1, &[], 0, &[]), 0);
    let expected = DagError::NotAFile { kind: "directory" };
    assert_eq!(refusal(blocks, directory.cid).await, expected);

    let mut blocks = Blocks::default();
    let block = Bytes::from_static(b"\xff\xff not protobuf");
    let cid = cid_of(DAG_PB, &block);
    blocks.0.push((cid, block));
    assert!(matches!(refusal(blocks, cid).await, DagError::Malformed(_)));
}

#[tokio::test]
async fn a_cid_that_cannot_be_checked_is_refused_without_asking() {
    let home = Home::new();
    let sha1 = Multihash::<64>::wrap(0x11, &[0; 20]).unwrap();
    for (cid, expected) in [
        (Cid::new_v1(0x55, sha1), DagError::Hash { code: 0x11 }),
        (
            Cid::new_v1(0x71, *cid_of(DAG_PB, b"").hash()),
            DagError::Codec { codec: 0x71 },
        ),
    ] {
        let refused = home.store.fetch(&cid, Want::All, &nobody(), &quiet).await;
        let Err(StorageError::Dag { source, .. }) = refused else {
            panic!("expected a refusal, got {refused:?}");
        };
        assert_eq!(source, expected);
        assert_eq!(home.store.get_block(&cid).unwrap(), None);
    }
}

#[tokio::test]
async fn a_short_digest_matches_nothing() {
    let mut blocks = Blocks::default();
    let leaf = blocks.raw(b"content");
    let short = Multihash::<64>::wrap(0x12, &leaf.cid.hash().digest()[..4]).unwrap();
    let cid = Cid::new_v1(0x55, short);
    let mut peer = Peer::with(blocks.0);
    peer.blocks
        .insert(cid.hash().to_bytes(), Bytes::from_static(b"content"));
    let home = Home::new();
    let refused = home.store.fetch(&cid, Want::All, &peer, &quiet).await;
    assert!(matches!(refused, Err(StorageError::WrongBlock { .. })));
}

#[tokio::test]
async fn a_wrong_length_from_hearsay_is_replaced_by_the_roots() {
    let mut blocks = Blocks::default();
    let root = blocks.raw(b"seven b");
    let home = Home::new();
    let hearsay = ModelRecord {
        cid: root.cid,
        name: "heard of".to_owned(),
        bytes: 1 << 50,
        present_bytes: 1 << 50,
        pinned: false,
        added_unix: 1,
    };
    home.store.record(hearsay).unwrap();
    assert!(!home.store.is_present(&root.cid, 0..1).unwrap());
    let peer = Peer::with(blocks.0);
    home.store
        .fetch(&root.cid, Want::All, &peer, &quiet)
        .await
        .unwrap();
    let record = home.store.resolve("heard of").unwrap().unwrap();
    assert_eq!((record.bytes, record.complete()), (7, true));
}

fn put(blocks: &mut Blocks, data: Vec<u8>, len: u64) -> Part {
    let node = PbNode {
        links: Vec::new(),
        data: Some(data.into()),
    };
    let block = Bytes::from(node.into_bytes());
    let cid = cid_of(DAG_PB, &block);
    let tree = block.len() as u64;
    blocks.0.push((cid, block));
    Part { cid, len, tree }
}
