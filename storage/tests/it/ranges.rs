//! Any ranges of any tree: what is wanted is present and right, and no other leaf was asked for.

use std::ops::Range;

use accel_storage::Want;
use accel_storage::dag::{self, RAW};
use proptest::prelude::*;
use proptest::test_runner::Config;

use crate::stranger::{Blocks, Form};
use crate::support::{Home, Peer, generate, quiet};

#[derive(Debug, Clone)]
struct Case {
    size: usize,
    form: Form,
    trickle: bool,
    wants: Vec<Vec<Range<u64>>>,
}

fn form() -> impl Strategy<Value = Form> {
    (50usize..2000, 2usize..9, any::<bool>(), any::<bool>()).prop_map(
        |(chunk, width, raw_leaves, version_0)| Form {
            chunk,
            width,
            raw_leaves,
            version_0,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    (1usize..8000, form(), any::<bool>()).prop_flat_map(|(size, form, trickle)| {
        let end = size as u64 + 10;
        let range = (0..end, 0..end).prop_map(|(a, b)| a.min(b)..a.max(b));
        let want = prop::collection::vec(range, 0..4);
        prop::collection::vec(want, 1..4).prop_map(move |wants| Case {
            size,
            form,
            trickle,
            wants,
        })
    })
}

proptest! {
    #![proptest_config(Config::with_cases(24))]

    #[test]
    fn any_ranges_of_any_tree_are_fetched_exactly(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(case))?;
    }
}

async fn check(case: Case) -> Result<(), TestCaseError> {
    let content = generate(case.size as u64, case.size);
    let mut blocks = Blocks::default();
    let root = match case.trickle {
        true => blocks.trickle(&content, case.form),
        false => blocks.balanced(&content, case.form),
    };
    let peer = Peer::with(blocks.0.clone());
    let home = Home::new();
    let mut wanted = vec![false; case.size];
    for want in case.wants {
        for range in &want {
            for byte in range
                .clone()
                .take_while(|byte| (*byte as usize) < case.size)
            {
                wanted[byte as usize] = true;
            }
        }
        let fetched = home
            .store
            .fetch(&root.cid, Want::Ranges(want), &peer, &quiet)
            .await;
        prop_assert_eq!(fetched.unwrap().file_len, case.size as u64);
    }
    let kept = std::fs::read(home.store.model_path(&root.cid).unwrap()).unwrap();
    for (byte, wanted) in wanted.iter().enumerate() {
        if *wanted {
            let at = byte as u64;
            prop_assert!(home.store.is_present(&root.cid, at..at + 1).unwrap());
            prop_assert_eq!(kept[byte], content[byte]);
        }
    }
    if case.form.raw_leaves && !case.trickle {
        let leaves = content.chunks(case.form.chunk);
        for (leaf, wanted) in leaves.zip(wanted.chunks(case.form.chunk)) {
            let cid = dag::cid_of(RAW, leaf);
            let is_root = cid == root.cid;
            let overlaps = wanted.contains(&true);
            prop_assert_eq!(peer.asked().contains(&cid), overlaps || is_root);
        }
    }
    let mut asked: Vec<_> = peer.asked().iter().map(|cid| *cid.hash()).collect();
    let times = asked.len();
    asked.sort();
    asked.dedup();
    prop_assert_eq!(asked.len(), times, "no block was asked for twice");
    Ok(())
}
