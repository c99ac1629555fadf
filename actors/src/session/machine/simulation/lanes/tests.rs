use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Came, play};

/// Replays one seed, and tells what happens.
const SEED: &str = "ACCEL_LANES_SEED";
/// How many seeds are played otherwise.
const SEEDS: u64 = 4_000;

#[test]
fn whoever_lies_changes_no_token_and_nobody_honest_is_quarantined() {
    if let Ok(seed) = std::env::var(SEED) {
        let came = play(seed.parse().expect("a number"), true);
        return println!("{came:?}");
    }
    let (next, came) = (AtomicU64::new(0), Mutex::new(BTreeMap::<Came, u64>::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                return;
            }
            let played = std::panic::catch_unwind(|| play(seed, false));
            let Ok(result) = played else {
                panic!("seed {seed} failed; see it with {SEED}={seed} and --nocapture");
            };
            *came
                .lock()
                .expect("nobody failed")
                .entry(result)
                .or_default() += 1;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let came = came.into_inner().expect("nobody failed");
    println!("{came:?}");
    for result in [Came::NobodyLied, Came::Quarantined, Came::Excluded] {
        let count = came.get(&result).copied().unwrap_or_default();
        assert!(count > SEEDS / 20, "{result:?}: {count}");
    }
}
