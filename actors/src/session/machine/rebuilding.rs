//! The machine's part in rebuilding: once all stages of a new epoch are ready, it decides how those
//! get their KV caches back that lack them, and feeds them before all go on together.

use super::{CHUNK, Machine};
use crate::session::event::Command;
use crate::session::rebuild::{Choice, Feed, Holding, Plan, Situation, choose};

/// Attempts without a token in which stages go on from what they kept. Should something be wrong
/// with it, the next builds everything from the tokens.
const KEEPING_ATTEMPTS: u32 = 3;

impl Machine {
    /// Whether stages may go on from what they kept.
    pub(super) fn may_keep(&self) -> bool {
        self.tolerance.strategy.is_some() && self.recovery.attempts() <= KEEPING_ATTEMPTS
    }

    /// Decides, and gives the positions that each stage goes on from.
    pub(super) fn plan_rebuild(&mut self) -> Vec<u64> {
        let choice = choose(&self.situation(), self.tolerance.rebuild);
        let Choice { way, plan, prices } = choice;
        let Plan {
            lengths,
            feed,
            begin,
        } = plan;
        if self.recovery.is_under_way() {
            let kept = lengths.iter().copied().min().unwrap_or(0);
            self.out.push(Command::Rebuilding {
                way,
                prices,
                replayed: self.recovery.given().saturating_sub(kept),
            });
        }
        self.sent = begin as usize;
        self.feed = feed;
        lengths
    }

    fn situation(&self) -> Situation {
        let total = (self.opening.prompt.len() + self.answer.len()) as u64;
        let stages = self.route.iter().enumerate().map(|(index, stage)| {
            let report = self.reports.get(&index).copied().unwrap_or_default();
            Holding::of(report, stage.layers.len(), total)
        });
        Situation {
            stages: stages.collect(),
            total,
            row_bytes: self.opening.row_bytes,
        }
    }

    /// The route runs: whoever is not in it need keep nothing any more.
    pub(super) fn release_others(&mut self) {
        let epoch = self.epoch;
        let route = &self.route;
        let is_in = |peer| route.iter().any(|stage| stage.peer == peer);
        let holders = std::mem::take(&mut self.holders).into_iter();
        let (stay, others): (Vec<_>, Vec<_>) = holders.partition(|holder| is_in(holder.peer));
        self.holders = stay;
        for stage in others {
            self.out.push(Command::Release { epoch, stage });
        }
    }

    /// Feeds stages what only they lack; whether that is still under way. All of it is answered
    /// before all stages go on together, because steps of the two may come over different ways.
    pub(super) fn feed_some(&mut self) -> bool {
        let Some(feed) = self.feed else {
            return false;
        };
        let last = feed.to as usize;
        let mut next = feed.from as usize;
        while next < last && self.has_room() {
            let end = last.min(next + CHUNK);
            self.send(next..end, false, feed.source, feed.until);
            next = end;
        }
        let is_done = self.in_flight.is_empty();
        self.feed = (!is_done).then_some(Feed {
            from: next as u64,
            ..feed
        });
        !is_done
    }
}
