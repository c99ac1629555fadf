//! Our CIDs are everybody's CIDs.

use std::io::Write;
use std::path::{Path, PathBuf};

use accel_storage::Want;
use cid::Cid;

use crate::stranger::{Blocks, KUBO_V0};
use crate::support::{Home, Peer, generate, nobody, quiet};

struct Row {
    seed: u64,
    size: usize,
    v0: Cid,
    v1: Cid,
}

fn table() -> Vec<Row> {
    let lines = include_str!("../kubo-cids.txt").lines();
    let rows = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        Row {
            seed: fields[0].parse().unwrap(),
            size: fields[1].parse().unwrap(),
            v0: fields[2].parse().unwrap(),
            v1: fields[3].parse().unwrap(),
        }
    });
    rows.collect()
}

#[tokio::test]
async fn a_file_has_the_cid_that_kubo_gives_it() {
    let home = Home::new();
    for Row { seed, size, v1, .. } in table() {
        let content = generate(seed, size);
        let record = home.add("model", &content).await;
        assert_eq!(record.cid, v1, "seed {seed}, {size} bytes");
        assert_eq!(record.bytes, size as u64);
        assert!(record.complete());
        let kept = std::fs::read(home.store.model_path(&v1).unwrap()).unwrap();
        assert!(kept == content, "seed {seed}: the bytes differ");
    }
}

#[tokio::test]
async fn every_block_of_an_added_file_is_served() {
    let owner = Home::new();
    let content = generate(5, 262_145);
    let root = owner.add("model", &content).await.cid;
    let peer = Peer::serving(&owner.store, &root);
    let other = Home::new();
    let fetched = other.store.fetch(&root, Want::All, &peer, &quiet).await;
    assert_eq!(fetched.unwrap().blocks_fetched, 3);
    let path = other.store.model_path(&root).unwrap();
    assert!(std::fs::read(path).unwrap() == content);
}

#[tokio::test]
async fn a_file_that_kubo_added_with_version_0_is_fetched_and_served_as_it_was() {
    for Row { seed, size, v0, .. } in table() {
        if size > 1 << 20 && seed != 0 {
            continue;
        }
        let content = generate(seed, size);
        let mut blocks = Blocks::default();
        let root = blocks.balanced(&content, KUBO_V0).cid;
        assert_eq!(root, v0, "the test builds what Kubo builds");

        let home = Home::new();
        let peer = Peer::with(blocks.0.clone());
        home.store
            .fetch(&root, Want::All, &peer, &quiet)
            .await
            .unwrap();
        let path = home.store.model_path(&root).unwrap();
        assert!(std::fs::read(path).unwrap() == content, "seed {seed}");
        for (cid, block) in &blocks.0 {
            assert_eq!(home.store.get_block(cid).unwrap().as_ref(), Some(block));
        }
        let again = home.store.fetch(&root, Want::All, &nobody(), &quiet).await;
        assert_eq!(again.unwrap().blocks_fetched, 0);
    }
}

#[tokio::test]
async fn a_real_model_has_the_cid_that_others_know() {
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let Some(path) = find_model(name) else {
        let notice = format!("SKIPPED: no {name}; set ACCEL_MODELS to the directory that holds it");
        let is_required = std::env::var_os("ACCEL_REQUIRE_MODEL").is_some_and(|value| value == "1");
        assert!(!is_required, "{notice}");
        // Unlike eprintln, this is seen when the test passes.
        writeln!(std::io::stderr(), "{notice}").unwrap();
        return;
    };
    let home = Home::new();
    let added = home.store.add_file(&path, "smollm2", &|_, _| {}).await;
    let expected = "bafybeifvmoiokowzsdfjoiosxsk3t5p42iq6lajhmfld5v22b3osnrzmj4";
    assert_eq!(added.unwrap().cid.to_string(), expected);
}

fn find_model(name: &str) -> Option<PathBuf> {
    let from_env = std::env::var_os("ACCEL_MODELS").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cached = cache.or(home).map(|dir| dir.join("accel/models"));
    let dirs = [from_env, cached].into_iter().flatten();
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}
