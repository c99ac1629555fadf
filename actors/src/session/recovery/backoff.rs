//! How long to wait before an attempt: min(0.1 · 2ⁿ s + jitter, 5 s). Pure: the jitter is a
//! function of the session, so that the sessions which lost the same peer do not all come at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Which attempt it is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Counts from 0 since the last token.
    pub(crate) number: u32,
    /// Differs from session to session.
    pub(crate) salt: u64,
}

impl Attempt {
    /// The pause before attempt `number`; half as long again at most, by the jitter.
    pub(super) fn pause(self) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.number.min(16));
        let jitter = doubled.mul_f64(self.share() / 2.0);
        LONGEST.min(doubled + jitter)
    }

    /// A number from 0 to 1 that the session and the attempt decide.
    fn share(self) -> f64 {
        let mixed = (self.salt ^ u64::from(self.number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }
}
