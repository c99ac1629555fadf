//! What it is worth to have stand-ins get ready while a route that did not answer in time is asked again. Nobody
//! knows whether it will answer. If it does, the stand-ins worked for nothing; if it does not, and nobody
//! got ready meanwhile, the client waited for nothing. Pure.

use std::time::Duration;

/// What is known when a step was not answered in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wager {
    /// Predicted time until stand-ins draw the next token: they get their layers and read what there is.
    pub(crate) stand_ins: Duration,
    /// How long the route is given once more.
    pub(crate) patience: Duration,
    /// How often routes of this node's sessions were asked again, and answered then.
    pub(crate) odds: Odds,
}

impl Wager {
    /// What is expected to be lost if it is only asked again: the wait, and what stand-ins take then.
    pub(crate) fn resume(&self) -> Duration {
        let nobody_answers = 1.0 - self.odds.chance();
        (self.patience + self.stand_ins).mul_f64(nobody_answers)
    }

    /// What is lost if both are asked: the work of the stand-ins, needed or not.
    pub(crate) fn race(&self) -> Duration {
        self.stand_ins
    }

    /// Whether both are asked.
    pub(crate) fn pays(&self) -> bool {
        self.race() < self.resume()
    }
}

/// How often a route answered that was asked again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Odds {
    pub(crate) asked: u32,
    pub(crate) answered: u32,
}

impl Odds {
    /// The newest of so many count most.
    const MEMORY: u32 = 64;

    /// It was asked again.
    pub(crate) fn note(&mut self, answered: bool) {
        if self.asked >= Self::MEMORY {
            (self.asked, self.answered) = (self.asked / 2, self.answered / 2);
        }
        self.asked += 1;
        self.answered += u32::from(answered);
    }

    /// The chance that the next one answers, by Laplace's rule of succession: one half, if nothing is known.
    pub(crate) fn chance(self) -> f64 {
        (f64::from(self.answered) + 1.0) / (f64::from(self.asked) + 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wager(stand_ins_ms: u64, answered: u32, asked: u32) -> Wager {
        Wager {
            stand_ins: Duration::from_millis(stand_ins_ms),
            patience: Duration::from_secs(10),
            odds: Odds { asked, answered },
        }
    }

    #[test]
    fn both_are_asked_unless_the_route_mostly_answers_and_stand_ins_are_dear() {
        let cases = [
            (wager(200, 0, 0), true, "cheap, and nothing is known"),
            (wager(200, 60, 64), true, "cheap"),
            (wager(4_000, 60, 64), false, "dear, and it mostly answers"),
            (wager(4_000, 4, 64), true, "it mostly does not answer"),
            (wager(30_000, 0, 0), false, "dearer than the wait"),
            (wager(30_000, 0, 64), true, "it never answers"),
        ];
        for (wager, pays, why) in cases {
            assert_eq!(wager.pays(), pays, "{why}: {wager:?}");
        }
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut odds = Odds::default();
        for _ in 0..1000 {
            odds.note(true);
        }
        assert!(odds.chance() > 0.95, "{odds:?}");
        for _ in 0..100 {
            odds.note(false);
        }
        assert!(odds.chance() < 0.3, "{odds:?}");
        assert!(odds.answered <= odds.asked && odds.asked <= Odds::MEMORY);
    }
}
