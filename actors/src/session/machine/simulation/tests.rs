//! Many seeds, or one that failed.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Seen, play};
use crate::session::recovery::{FaultKind, Remedy};

/// Replays one seed, and tells what happens.
const SEED: &str = "ACCEL_SIM_SEED";
/// How many seeds are played otherwise, unless this says another number.
const SEEDS: u64 = 10_000;
const COUNT: &str = "ACCEL_SIM_SEEDS";

#[test]
fn whatever_the_network_and_the_peers_do_the_answer_is_the_one_without_faults() {
    if let Ok(seed) = std::env::var(SEED) {
        play(seed.parse().expect("a number"), true);
        return;
    }
    let count = std::env::var(COUNT).map(|count| count.parse().expect("a number"));
    let seeds = count.unwrap_or(SEEDS);
    let (next, seen) = (AtomicU64::new(0), Mutex::new(HashSet::new()));
    let play_all = || {
        let mut own = HashSet::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                break;
            }
            let mut failing = Failing { seed, failed: true };
            own.extend(play(seed, false));
            failing.failed = false;
        }
        seen.lock().expect("nobody failed").extend(own);
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(play_all);
        }
    });
    use {FaultKind::*, Remedy::*};
    let seen = seen.into_inner().expect("nobody failed");
    let faults = [PeerLost, StepFailed, StepTimeout];
    for way in faults.map(|fault| [(fault, Resume), (fault, Restart), (fault, FailOver)]) {
        for (fault, remedy) in way {
            let way = Seen::Recovery(fault, remedy);
            assert!(seen.contains(&way), "no {fault:?}, {remedy:?}");
        }
    }
    assert!(seen.contains(&Seen::Recovery(PlacementFailed, Restart)));
    assert!(seen.contains(&Seen::Recovery(Interrupted, FailOver)));
    assert!(seen.contains(&Seen::Raced));
    assert!(seen.contains(&Seen::Recovery(PeerLost, Replan)));
    assert!(seen.contains(&Seen::Moved) && seen.contains(&Seen::MoveDropped));
    assert!(seen.contains(&Seen::CutAnew));
    assert!(seen.contains(&Seen::Rivals) && seen.contains(&Seen::Deposed));
    for way in ["keep", "replay", "copy", "prefill"] {
        assert!(seen.contains(&Seen::Rebuild(way)), "never {way}");
    }
}

/// Says how to see a seed again that failed.
struct Failing {
    seed: u64,
    failed: bool,
}

impl Drop for Failing {
    fn drop(&mut self) {
        if self.failed {
            let Self { seed, .. } = self;
            let test = "whatever_the_network_and_the_peers_do";
            eprintln!(
                "seed {seed} failed; see it with\n  \
                 {SEED}={seed} cargo test -p accel-actors --lib {test} -- --nocapture"
            );
        }
    }
}
