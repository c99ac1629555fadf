//! The machine's part in rebuilding: once all stages of a new epoch are ready, it decides how those
//! get their KV caches back that lack them, and feeds them before all go on together.

use accel_p2p::PeerId;

use super::{CHUNK, Machine, Phase};
use crate::session::event::{Command, RouteStage, StageReport};
use crate::session::rebuild::{Choice, Donor, Feed, Holding, Plan, Situation, Source, choose};

/// Attempts without a token in which stages go on from what they kept. Should something be wrong
/// with it, the next builds everything from the tokens.
const KEEPING_ATTEMPTS: u32 = 3;
/// Bytes of keys and values in one step, at most, unless a single position has more.
const COPIED_BYTES: u64 = 16 << 20;

impl Machine {
    /// Whether stages may go on from what they kept.
    pub(super) fn may_keep(&self) -> bool {
        let trusts = self.recovery.attempts() <= KEEPING_ATTEMPTS && !self.distrusts;
        self.tolerance.strategy.is_some() && trusts
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
        let givers = self.givers.iter().enumerate();
        let donors = givers.filter_map(|(index, (giver, stage))| {
            let number = self.route.len() + index;
            let report = self.reports.get(&number).copied()?;
            Some(Donor {
                number,
                stage: *stage,
                holding: Holding::of(report, giver.layers.len(), total),
            })
        });
        Situation {
            stages: stages.collect(),
            donors: donors.collect(),
            total,
            row_bytes: self.opening.row_bytes,
            kv_bytes: self.opening.kv_bytes,
        }
    }

    /// Whoever is left out of the new route and had the layers of one of its stages may give its KV
    /// cache to it.
    pub(super) fn find_givers(&mut self) {
        self.givers.clear();
        if !self.may_keep() || self.tolerance.witnessed {
            return;
        }
        let is_in = |peer| self.route.iter().any(|stage| stage.peer == peer);
        for holder in self.holders.iter().filter(|holder| !is_in(holder.peer)) {
            let mut stages = self.route.iter();
            let stage = stages.position(|stage| stage.layers == holder.layers);
            let may_give = self.recovery.takes_from(holder.peer);
            if let Some(stage) = stage.filter(|_| may_give) {
                self.givers.push((holder.clone(), stage));
            }
        }
    }

    /// Whether somebody has not said yet what they can give, and it may be of use: their stage is the only
    /// one that lacks something.
    pub(super) fn lacks_givers(&self) -> bool {
        let situation = self.situation();
        let others = situation.stages.iter().map(|stage| stage.cached).max();
        let most = match situation.stages.len() {
            1 => Some(situation.total.saturating_sub(1)),
            _ => others,
        };
        let lacks = |stage: &Holding| most.is_some_and(|most| stage.cached < most);
        let mut lacking = situation
            .stages
            .iter()
            .enumerate()
            .filter(|(_, stage)| lacks(stage));
        let (Some((only, _)), None) = (lacking.next(), lacking.next()) else {
            return false;
        };
        let mut givers = self.givers.iter().enumerate();
        situation.kv_bytes > 0
            && givers.any(|(index, (_, stage))| {
                let number = self.route.len() + index;
                *stage == only && !self.reports.contains_key(&number)
            })
    }

    /// It has nothing to give, which is worth knowing.
    pub(super) fn giver_refused(&mut self, number: usize) {
        self.reports.insert(number, StageReport::default());
        self.commit_when_ready(false);
    }

    /// A peer is gone that was asked what it can give, before that was decided.
    pub(super) fn giver_lost(&mut self, peer: PeerId) {
        let giver = self.givers.iter().position(|(giver, _)| giver.peer == peer);
        let is_placing = matches!(self.phase, Phase::Placing { .. });
        if let Some(index) = giver.filter(|_| is_placing) {
            self.recovery.lose(peer);
            self.giver_refused(self.route.len() + index);
        }
    }

    /// Whose KV cache is being copied.
    pub(super) fn source_of_rows(&self) -> Option<PeerId> {
        let Source::Cache(donor) = self.feed?.source else {
            return None;
        };
        self.party(self.epoch, donor).map(|donor| donor.peer)
    }

    /// Who gives to a stage.
    pub(super) fn donor_of(&self, stage: usize) -> Option<PeerId> {
        let feed = self.feed.filter(|feed| feed.until == stage)?;
        let Source::Cache(donor) = feed.source else {
            return None;
        };
        self.party(self.epoch, donor).map(|donor| donor.peer)
    }

    /// The peer, if a stage waits for what it gives.
    pub(super) fn giver_in_use(&self, peer: PeerId) -> Option<RouteStage> {
        let feed = self.feed.filter(|_| matches!(self.phase, Phase::Running))?;
        let Source::Cache(donor) = feed.source else {
            return None;
        };
        self.party(self.epoch, donor)
            .filter(|donor| donor.peer == peer)
    }

    /// Positions in one step of a feed.
    fn rows_of(&self, feed: &Feed) -> usize {
        let Source::Cache(donor) = feed.source else {
            return CHUNK;
        };
        let donor = self.party(self.epoch, donor);
        self.rows_within(donor.map_or(0, |donor| donor.layers.len())) as usize
    }

    /// Positions of the KV cache of so many layers that may be sent at once.
    pub(super) fn rows_within(&self, layers: u32) -> u64 {
        let bytes = self.opening.kv_bytes.saturating_mul(u64::from(layers));
        let rows = COPIED_BYTES.checked_div(bytes).unwrap_or(1);
        rows.clamp(1, CHUNK as u64)
    }

    /// The route runs: whoever is not in it need keep nothing any more.
    pub(super) fn release_others(&mut self) {
        let epoch = self.newest;
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
            let end = last.min(next + self.rows_of(&feed));
            self.send(next..end, false, feed.source, feed.until);
            next = end;
        }
        let is_done = self.in_flight.is_empty();
        self.feed = (!is_done).then_some(Feed {
            from: next as u64,
            ..feed
        });
        if is_done {
            self.release_others();
        }
        !is_done
    }
}

#[cfg(test)]
mod tests;
