//! How long to wait before a restart, and when to give up. Pure: `now` is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The rules of a unit.
#[derive(Debug, Clone)]
pub struct RestartPolicy {
    /// The pause before the first restart; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// More restarts than this within `window` and the unit is given up.
    pub most_restarts: usize,
    /// Restarts older than this are forgotten.
    pub window: Duration,
    /// How often the members are asked for a sign of life.
    pub heartbeat: Duration,
    /// How long a member may take to answer.
    pub patience: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(5),
            most_restarts: 20,
            window: Duration::from_secs(300),
            heartbeat: Duration::from_secs(1),
            patience: Duration::from_secs(10),
        }
    }
}

/// The restarts of a unit so far.
#[derive(Debug)]
pub struct Backoff {
    policy: RestartPolicy,
    recent: VecDeque<Instant>,
}

impl Backoff {
    /// No restart yet.
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            recent: VecDeque::new(),
        }
    }

    /// Notes a failure at `now`; how long to wait before the restart, or nothing when the unit
    /// failed too often.
    pub fn failed(&mut self, now: Instant) -> Option<Duration> {
        let window = self.policy.window;
        self.recent
            .retain(|restart| now.saturating_duration_since(*restart) < window);
        if self.recent.len() >= self.policy.most_restarts {
            return None;
        }
        let doublings = u32::try_from(self.recent.len()).unwrap_or(u32::MAX).min(20);
        self.recent.push_back(now);
        let pause = self.policy.first_pause.saturating_mul(1 << doublings);
        Some(pause.min(self.policy.longest_pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(RestartPolicy {
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_millis(35),
            most_restarts: 4,
            window: Duration::from_secs(60),
            ..RestartPolicy::default()
        })
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_then_the_unit_is_given_up() {
        let (mut backoff, now) = (backoff(), Instant::now());
        let pauses: Vec<_> = (0..5).map(|_| backoff.failed(now)).collect();
        let millis = |n| Some(Duration::from_millis(n));
        assert_eq!(
            pauses,
            [millis(10), millis(20), millis(35), millis(35), None]
        );
    }

    #[test]
    fn old_restarts_are_forgotten() {
        let (mut backoff, now) = (backoff(), Instant::now());
        for _ in 0..4 {
            backoff.failed(now);
        }
        let later = now + Duration::from_secs(61);
        assert_eq!(backoff.failed(later), Some(Duration::from_millis(10)));
    }
}
