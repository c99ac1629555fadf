//! How much slower a loaded stage draws tokens now than it can: because other sessions share it, or other
//! programs the machine. A mean over its last steps beside the best mean that there was.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Batches of more rows read prompts: what they take says nothing about a token.
const MOST_ROWS: usize = 16;
/// The newest step counts for one part of so many.
const PARTS: u32 = 16;
/// Steps before the mean says anything.
const ENOUGH: u32 = 32;
/// After so long without a step nobody knows.
const FRESH: Duration = Duration::from_secs(10);
/// What is said at most.
const MOST_PERCENT: u32 = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Toil(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    mean: Duration,
    best: Option<Duration>,
    steps: u32,
    last: Option<Instant>,
}

impl Toil {
    /// A batch of so many rows was computed.
    pub(super) fn saw(&self, rows: usize, took: Duration, now: Instant) {
        if rows <= MOST_ROWS {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.saw(took, now);
        }
    }

    /// The present mean in percent of the best; 100 while that is not known.
    pub(super) fn percent(&self, now: Instant) -> u32 {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.percent(now)
    }
}

impl State {
    fn saw(&mut self, took: Duration, now: Instant) {
        self.last = Some(now);
        self.steps = self.steps.saturating_add(1);
        // At first the mean is that of all steps.
        let parts = PARTS.min(self.steps);
        self.mean = self.mean / parts * (parts - 1) + took / parts;
        if self.steps >= ENOUGH {
            let best = self.best.unwrap_or(self.mean);
            self.best = Some(best.min(self.mean));
        }
    }

    fn percent(&self, now: Instant) -> u32 {
        let is_fresh = |last: Instant| now.saturating_duration_since(last) < FRESH;
        let best = self.best.filter(|_| self.last.is_some_and(is_fresh));
        let Some(best) = best.map(|best| best.as_nanos().max(1)) else {
            return 100;
        };
        let percent = self.mean.as_nanos() * 100 / best;
        u32::try_from(percent)
            .unwrap_or(u32::MAX)
            .clamp(100, MOST_PERCENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(2);

    fn after(steps: u32, took: Duration, toil: &Toil, now: Instant) {
        for _ in 0..steps {
            toil.saw(1, took, now);
        }
    }

    #[test]
    fn it_is_the_present_mean_beside_the_best_one() {
        let (toil, now) = (Toil::default(), Instant::now());
        after(ENOUGH - 1, STEP, &toil, now);
        assert_eq!(toil.percent(now), 100, "too few steps to know");
        after(1, STEP, &toil, now);
        toil.saw(256, 50 * STEP, now);
        assert_eq!(toil.percent(now), 100, "a prompt is no token");
        after(100, 3 * STEP, &toil, now);
        let percent = toil.percent(now);
        assert!((295..=300).contains(&percent), "{percent}");
        after(200, STEP, &toil, now);
        assert_eq!(toil.percent(now), 100, "it is over");
    }

    #[test]
    fn of_a_stage_that_rests_nothing_is_known() {
        let (toil, now) = (Toil::default(), Instant::now());
        after(ENOUGH, STEP, &toil, now);
        after(100, 4 * STEP, &toil, now);
        assert!(toil.percent(now) > 350);
        assert_eq!(toil.percent(now + FRESH), 100);
    }
}
