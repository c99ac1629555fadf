//! Stand-ins of a session's route are asked to have their layers ready, so that a loss costs no
//! fetching and no loading. It is a help at most: nothing waits for it, and what fails is left.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use accel_inference::LayerRange;
use accel_p2p::PeerId;
use accel_p2p::wire::{ControlRequest, WarmOrder};
use cid::Cid;

use super::actor::SessionActor;
use super::recovery::strategy;
use crate::placement::Wanted;
use crate::tolerance::FaultTolerance;

/// Nobody is asked for the same within this time: what was ready then is ready still, or there was
/// no room for it.
const AGAIN: Duration = Duration::from_secs(120);
/// Orders that are remembered; the oldest make room.
const REMEMBERED: usize = 1024;
/// How long a stand-in may take to answer, which it does before it does anything.
const WITHIN: Duration = Duration::from_secs(5);

type Order = (PeerId, Cid, LayerRange);

/// Whom this node asked for what, over all sessions.
#[derive(Default)]
pub(crate) struct StandIns(Mutex<Asked>);

#[derive(Default)]
struct Asked(HashMap<Order, Instant>);

impl StandIns {
    /// Whether it is time to ask for this; then it counts as asked.
    fn is_due(&self, order: Order, now: Instant) -> bool {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_due(order, now)
    }

    /// Who was asked for which layers of a model lately.
    fn warm(&self, model: &Cid, now: Instant) -> Vec<(PeerId, LayerRange)> {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_model = asked.0.iter().filter(|((_, known, _), then)| {
            known == model && now.saturating_duration_since(**then) < AGAIN
        });
        of_model
            .map(|((peer, _, layers), _)| (*peer, *layers))
            .collect()
    }

    /// A peer that was away may have forgotten what it was asked for.
    pub(crate) fn forget(&self, peer: PeerId) {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.0.retain(|(known, ..), _| *known != peer);
    }
}

impl Asked {
    fn is_due(&mut self, order: Order, now: Instant) -> bool {
        let before = self.0.get(&order);
        if before.is_some_and(|then| now.saturating_duration_since(*then) < AGAIN) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            let oldest = self.0.iter().min_by_key(|(_, then)| **then);
            if let Some(oldest) = oldest.map(|(order, _)| *order) {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(order, now);
        true
    }
}

impl SessionActor {
    /// The stages are live: whoever would take over is asked to get ready, in the background.
    pub(super) fn warm_stand_ins(&self) {
        let Some(stand_ins) = self.deps.stand_ins.clone() else {
            return;
        };
        if self.spec.opening.fault_tolerance == FaultTolerance::Critical {
            // Its stand-ins are planned along the cuts of the other lane.
            return;
        }
        let strategy = strategy(self.spec.opening.fault_tolerance);
        if strategy.is_none_or(|strategy| strategy.keeps_peers()) {
            return;
        }
        let (placer, link) = (self.deps.placer.clone(), self.deps.link.clone());
        let (model, shape) = (self.spec.model.clone(), self.spec.shape.clone());
        let tokens = self.spec.max_tokens;
        let wanted = Wanted {
            numerics: Some(self.spec.opening.numerics.clone()),
            held: self.held(),
            progress: self.machine.progress(),
            ..Wanted::default()
        };
        actix::spawn(async move {
            let stages = placer.stand_ins(&model, &shape, tokens, &wanted).await;
            for (peer, layers, providers) in stages {
                if !stand_ins.is_due((peer, model.cid, layers), Instant::now()) {
                    continue;
                }
                let order = WarmOrder {
                    model: model.cid,
                    model_bytes: model.bytes,
                    layers: (layers.first, layers.end),
                    total_layers: shape.layers,
                    providers,
                };
                let asked = link.call(peer, ControlRequest::Warm { order }, WITHIN);
                if let Err(failure) = asked.await {
                    tracing::debug!(%peer, %layers, %failure, "a stand-in stays cold");
                }
            }
        });
    }

    /// Who computes what, or did when the session last ran.
    pub(super) fn held(&self) -> Vec<(PeerId, LayerRange)> {
        let stages = self.machine.ran_over().iter();
        stages.map(|stage| (stage.peer, stage.layers)).collect()
    }

    /// Who was asked to have layers of the model ready.
    pub(super) fn warm(&self) -> Vec<(PeerId, LayerRange)> {
        let stand_ins = self.deps.stand_ins.as_ref();
        let model = &self.spec.model.cid;
        stand_ins.map_or_else(Vec::new, |known| known.warm(model, Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_for_the_same_again_until_some_time_has_passed_or_it_was_away() {
        let (stand_ins, now) = (StandIns::default(), Instant::now());
        let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
        let cid: Cid = cid.parse().expect("a cid");
        let (peer, other) = (PeerId::random(), PeerId::random());
        let order = |peer, first| (peer, cid, LayerRange::new(first, first + 1));
        assert!(stand_ins.is_due(order(peer, 0), now));
        assert!(!stand_ins.is_due(order(peer, 0), now + AGAIN / 2));
        assert!(stand_ins.is_due(order(peer, 1), now), "other layers");
        assert!(stand_ins.is_due(order(other, 0), now), "another peer");
        assert!(stand_ins.is_due(order(peer, 0), now + AGAIN));
        stand_ins.forget(other);
        assert!(stand_ins.is_due(order(other, 0), now), "it was away");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
        let cid: Cid = cid.parse().expect("a cid");
        for first in 0..2 * REMEMBERED as u32 {
            let order = (PeerId::random(), cid, LayerRange::new(first, first + 1));
            assert!(asked.is_due(order, now + Duration::from_millis(u64::from(first))));
        }
        assert_eq!(asked.0.len(), REMEMBERED);
    }
}
