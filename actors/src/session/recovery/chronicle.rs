//! What a session remembers of its recoveries, for people and metrics. Pure: time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::wager::Wager;
use super::{FaultKind, Remedy};
use crate::planner::Weighed;
use crate::views::{Figure, RecoveryView};

/// Recoveries that are shown, the newest; all are counted.
const SHOWN: usize = 32;

/// A recovery as it begins.
#[derive(Debug, Clone)]
pub(in crate::session) struct Begun {
    pub(in crate::session) fault: FaultKind,
    pub(in crate::session) strategy: &'static str,
    pub(in crate::session) remedy: Remedy,
    /// Positions that the stages compute again.
    pub(in crate::session) replayed: u64,
    pub(in crate::session) reason: String,
}

/// See the module.
#[derive(Debug)]
pub(in crate::session) struct Chronicle {
    count: u64,
    shown: VecDeque<RecoveryView>,
    /// When the answer last went on: only then does a client begin to wait.
    moved: Instant,
    /// When the newest fault was noticed, and when stages were ready to go on after it.
    noticed: Option<Instant>,
    ready: Option<Instant>,
    /// Whether the route was asked again, and has neither answered nor been given up.
    asked_again: bool,
}

impl Chronicle {
    pub(in crate::session) fn new(now: Instant) -> Self {
        Self {
            count: 0,
            shown: VecDeque::new(),
            moved: now,
            noticed: None,
            ready: None,
            asked_again: false,
        }
    }

    /// A recovery begins. Whether the route had answered that was asked again before, if one was.
    pub(in crate::session) fn asks(&mut self, begun: &Begun) -> Option<bool> {
        let asks = matches!(begun.remedy, Remedy::Resume | Remedy::Race);
        let asks_again = asks && begun.fault == FaultKind::StepTimeout;
        std::mem::replace(&mut self.asked_again, asks_again).then_some(false)
    }

    /// A token came: the same, of a route that was not left.
    pub(in crate::session) fn answers(&mut self) -> Option<bool> {
        std::mem::take(&mut self.asked_again).then_some(true)
    }

    /// The route is left for another one that was ready first: nobody knows whether it would have answered.
    pub(in crate::session) fn switches(&mut self) {
        self.asked_again = false;
    }

    /// The session got on: a token came, or the stages are ready for the prompt.
    pub(in crate::session) fn moved(&mut self, now: Instant) {
        self.moved = now;
    }

    /// For how long the session has not got on.
    pub(in crate::session) fn since_progress(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.moved)
    }

    /// A recovery begins behind so many tokens.
    pub(in crate::session) fn begin(&mut self, begun: Begun, tokens: u64, now: Instant) {
        self.count += 1;
        // Behind an attempt that came to nothing, the time counts from that one.
        let since = self.noticed.unwrap_or(self.moved).max(self.moved);
        (self.noticed, self.ready) = (Some(now), None);
        if self.shown.len() >= SHOWN {
            self.shown.pop_front();
        }
        self.shown.push_back(RecoveryView {
            fault: begun.fault.name().to_owned(),
            reason: begun.reason,
            strategy: begun.strategy.to_owned(),
            remedy: begun.remedy.name().to_owned(),
            after_tokens: tokens,
            tokens_replayed: begun.replayed,
            detect_ms: Some(between(since, now)),
            place_ms: None,
            rebuild: None,
            prices_ms: BTreeMap::new(),
            route_prices_ms: BTreeMap::new(),
            timeout_prices_ms: BTreeMap::new(),
            rebuild_ms: None,
            stall_ms: None,
        });
    }

    /// The planner weighed two routes, and the strategy follows from that. Of several plans the last one
    /// counts.
    pub(in crate::session) fn weigh(&mut self, strategy: &'static str, weighed: &Weighed) {
        let Some(last) = self.shown.back_mut() else {
            return;
        };
        let remedy = match weighed.keeps() {
            true => Remedy::FailOver,
            false => Remedy::Replan,
        };
        strategy.clone_into(&mut last.strategy);
        remedy.name().clone_into(&mut last.remedy);
        let priced = [
            (Remedy::FailOver, weighed.keep_ns),
            (Remedy::Replan, Some(weighed.anew_ns)),
        ];
        let prices = priced.into_iter().filter_map(|(remedy, nanos)| {
            let millis = nanos? as f64 / 1e6;
            Some((remedy.name(), Figure::predicted(millis)))
        });
        last.route_prices_ms = prices.collect();
    }

    /// Stand-ins were weighed against waiting, and the strategy follows from that.
    pub(in crate::session) fn wager(&mut self, strategy: &'static str, races: bool, wager: &Wager) {
        let Some(last) = self.shown.back_mut() else {
            return;
        };
        let remedy = match races {
            true => Remedy::Race,
            false => Remedy::Resume,
        };
        strategy.clone_into(&mut last.strategy);
        remedy.name().clone_into(&mut last.remedy);
        let priced = [
            (Remedy::Resume, wager.resume()),
            (Remedy::Race, wager.race()),
        ];
        let prices = priced.map(|(remedy, price)| {
            let millis = price.as_secs_f64() * 1000.0;
            (remedy.name(), Figure::predicted(millis))
        });
        last.timeout_prices_ms = prices.into_iter().collect();
    }

    /// The stages get the KV caches that they lack like this, and so many positions are computed
    /// again. Of several placements the last one counts.
    pub(in crate::session) fn rebuild(
        &mut self,
        way: &'static str,
        prices: &[(&'static str, Duration)],
        replayed: u64,
    ) {
        let Some(last) = self.shown.back_mut() else {
            return;
        };
        last.rebuild = Some(way);
        let shown = |(way, price): &(_, Duration)| {
            let millis = price.as_secs_f64() * 1000.0;
            (*way, Figure::predicted(millis))
        };
        last.prices_ms = prices.iter().map(shown).collect();
        last.tokens_replayed = replayed;
    }

    /// Stages are ready to go on after a fault.
    pub(in crate::session) fn placed(&mut self, now: Instant) {
        let (Some(noticed), Some(last)) = (self.noticed, self.shown.back_mut()) else {
            return;
        };
        self.ready = Some(now);
        last.place_ms = Some(between(noticed, now));
    }

    /// The first token since came: for how long the answer stood still.
    pub(in crate::session) fn end(&mut self, now: Instant) -> Duration {
        let stall = now.saturating_duration_since(self.moved);
        if let Some(last) = self.shown.back_mut() {
            last.stall_ms = Some(between(self.moved, now));
            last.rebuild_ms = self.ready.map(|ready| between(ready, now));
        }
        (self.noticed, self.ready) = (None, None);
        stall
    }

    /// How the newest recovery got KV caches back, and in milliseconds what that was priced at and took.
    pub(in crate::session) fn rebuilt(&self) -> Option<(&'static str, f64, f64)> {
        let last = self.shown.back()?;
        let way = last.rebuild?;
        let priced = last.prices_ms.get(way)?;
        Some((way, priced.value, last.rebuild_ms.as_ref()?.value))
    }

    /// How many recoveries there were.
    pub(in crate::session) fn count(&self) -> u64 {
        self.count
    }

    /// The newest ones.
    pub(in crate::session) fn shown(&self) -> Vec<RecoveryView> {
        self.shown.iter().cloned().collect()
    }
}

fn between(from: Instant, to: Instant) -> Figure {
    Figure::measured(to.saturating_duration_since(from).as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_recoveries_are_shown_and_all_are_counted() {
        let start = Instant::now();
        let mut chronicle = Chronicle::new(start);
        for round in 0..40 {
            let begun = Begun {
                fault: FaultKind::PeerLost,
                strategy: "progressive",
                remedy: Remedy::FailOver,
                replayed: 7,
                reason: "a peer left".to_owned(),
            };
            chronicle.begin(begun, round, start);
        }
        let stall = chronicle.end(start + Duration::from_millis(1500));
        assert_eq!(stall, Duration::from_millis(1500));
        assert_eq!((chronicle.count(), chronicle.shown().len()), (40, SHOWN));
        let shown = chronicle.shown();
        let last = shown.last().expect("the newest is shown");
        assert_eq!((last.after_tokens, last.tokens_replayed), (39, 7));
        assert_eq!(last.stall_ms, Some(Figure::measured(1500.0)));
        assert_eq!(shown.first().map(|view| view.stall_ms), Some(None));
    }

    #[test]
    fn the_parts_of_a_stall_add_up_to_it() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut chronicle = Chronicle::new(start);
        chronicle.placed(at(1));
        chronicle.moved(at(10));
        let begun = Begun {
            fault: FaultKind::PeerLost,
            strategy: "progressive",
            remedy: Remedy::FailOver,
            replayed: 7,
            reason: "a peer left".to_owned(),
        };
        chronicle.begin(begun, 3, at(15));
        let prices = [
            ("replay", Duration::from_millis(60)),
            ("prefill", Duration::from_millis(90)),
        ];
        chronicle.rebuild("replay", &prices, 6);
        chronicle.placed(at(40));
        chronicle.end(at(110));
        let shown = chronicle.shown();
        let last = shown.last().expect("it is shown");
        let parts = [
            last.detect_ms,
            last.place_ms,
            last.rebuild_ms,
            last.stall_ms,
        ];
        let expected = [5.0, 25.0, 70.0, 100.0].map(|millis| Some(Figure::measured(millis)));
        assert_eq!(parts, expected);
        assert_eq!((last.rebuild, last.tokens_replayed), (Some("replay"), 6));
        let priced = last.prices_ms.get("prefill");
        assert_eq!(priced, Some(&Figure::predicted(90.0)));
    }
}
