//! A circuit breaker: whoever fails again and again is left alone for a while, then tried a few
//! times. Pure: time is an argument.
//!
//! ```text
//! closed ──failures in a row, or a crash──► open ──a while──► half-open ──successes──► closed
//!                                             ▲                   │
//!                                             └─────a failure─────┘
//! ```

use std::time::{Duration, Instant};

/// When a breaker opens, and how it closes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLimits {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open.
    pub open: Duration,
    /// Requests that are let through while it is half open.
    pub trials: u32,
    /// Successes that close it.
    pub successes: u32,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self {
            failures: 5,
            open: Duration::from_secs(30),
            trials: 3,
            successes: 3,
        }
    }
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BreakerState {
    /// Requests pass.
    Closed,
    /// None pass.
    Open,
    /// A few pass, to see.
    HalfOpen,
}

impl BreakerState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed {
        failures: u32,
    },
    /// Open until then; half open from then on.
    Tripped {
        until: Instant,
        trials: u32,
        successes: u32,
    },
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Breaker {
    limits: BreakerLimits,
    phase: Phase,
}

impl Breaker {
    pub(super) fn new(limits: BreakerLimits) -> Self {
        Self {
            limits,
            phase: Phase::Closed { failures: 0 },
        }
    }

    pub(super) fn state(&self, now: Instant) -> BreakerState {
        match self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Tripped { until, .. } if now < until => BreakerState::Open,
            Phase::Tripped { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether a request may pass.
    pub(super) fn admits(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Closed { .. } => true,
            Phase::Tripped { until, trials, .. } => now >= until && trials < self.limits.trials,
        }
    }

    /// A request passes.
    pub(super) fn pass(&mut self, now: Instant) {
        let open = self.limits.open;
        if let Phase::Tripped { until, trials, .. } = &mut self.phase
            && now >= *until
        {
            *trials += 1;
            // Trials whose ends nobody hears of do not keep it half open for ever.
            if *trials >= self.limits.trials {
                *trials = 0;
                *until = now + open;
            }
        }
    }

    pub(super) fn succeed(&mut self) {
        match &mut self.phase {
            Phase::Closed { failures } => *failures = 0,
            Phase::Tripped { successes, .. } => {
                *successes += 1;
                if *successes >= self.limits.successes {
                    self.phase = Phase::Closed { failures: 0 };
                }
            }
        }
    }

    /// Whether it opens by this.
    pub(super) fn fail(&mut self, now: Instant) -> bool {
        match &mut self.phase {
            Phase::Closed { failures } => {
                *failures += 1;
                *failures >= self.limits.failures && self.trip(now)
            }
            Phase::Tripped { .. } => self.trip(now),
        }
    }

    /// Opens it, whatever was before. Whether it was not open yet.
    pub(super) fn trip(&mut self, now: Instant) -> bool {
        let was_open = self.state(now) == BreakerState::Open;
        self.phase = Phase::Tripped {
            until: now + self.limits.open,
            trials: 0,
            successes: 0,
        };
        !was_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Duration = Duration::from_secs(30);

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(BreakerLimits::default()), Instant::now())
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_a_success_between_them_does_not_count() {
        let (mut breaker, now) = breaker();
        for _ in 0..4 {
            assert!(!breaker.fail(now));
        }
        breaker.succeed();
        for _ in 0..4 {
            assert!(!breaker.fail(now));
        }
        assert!(breaker.admits(now));
        assert!(breaker.fail(now));
        assert_eq!(breaker.state(now), BreakerState::Open);
        assert!(!breaker.admits(now + OPEN - Duration::from_millis(1)));
    }

    #[test]
    fn half_open_it_lets_three_through_and_three_successes_close_it() {
        let (mut breaker, now) = breaker();
        assert!(breaker.trip(now));
        let later = now + OPEN;
        assert_eq!(breaker.state(later), BreakerState::HalfOpen);
        for _ in 0..2 {
            assert!(breaker.admits(later));
            breaker.pass(later);
        }
        for expected in [
            BreakerState::HalfOpen,
            BreakerState::HalfOpen,
            BreakerState::Closed,
        ] {
            breaker.succeed();
            assert_eq!(breaker.state(later), expected);
        }
    }

    #[test]
    fn a_failure_while_half_open_opens_it_again() {
        let (mut breaker, now) = breaker();
        breaker.trip(now);
        let later = now + OPEN;
        breaker.pass(later);
        breaker.succeed();
        assert!(breaker.fail(later));
        assert!(!breaker.admits(later + OPEN - Duration::from_millis(1)));
        assert!(breaker.admits(later + OPEN));
    }

    #[test]
    fn trials_that_come_to_nothing_are_given_again_after_a_while() {
        let (mut breaker, now) = breaker();
        breaker.trip(now);
        let later = now + OPEN;
        for _ in 0..3 {
            assert!(breaker.admits(later));
            breaker.pass(later);
        }
        assert!(!breaker.admits(later));
        assert!(breaker.admits(later + OPEN));
    }
}
