//! Routes that are offered to a session that runs: some of its stages go to peers that have none yet, or all
//! layers are cut anew.

use rand::Rng;

use accel_inference::LayerRange;

use super::{Happening, Simulation, fixtures};
use crate::session::event::{Event, RouteStage};

impl Simulation {
    /// Offers come while the session runs, in any weather.
    pub(super) fn offer_later(&mut self) {
        for _ in 0..self.weather.moves {
            let span = self.weather.step * self.weather.max_new * 3;
            let at = self.now + self.rng.random_range(0..=span.max(self.weather.window));
            self.at(at, Happening::Offer);
        }
    }

    pub(super) fn offer(&mut self) {
        let Some(at) = self.serving() else {
            return;
        };
        // In the second form, whoever stays may get other layers.
        let route = match self.rng.random() {
            true => self.another_route(at),
            false => self.route(at, &[]),
        };
        if let Some(route) = route {
            self.feed(at, Event::MoveOffered { route });
        }
    }

    /// The present route with some stages in other hands, each perhaps in several.
    fn another_route(&mut self, at: usize) -> Option<Vec<RouteStage>> {
        let route = self.desk(at).machine.route.clone();
        let taken: Vec<usize> = route.iter().map(|stage| self.index(stage.peer)).collect();
        let connected = &self.views[at].connected;
        let is_free = |index: &usize| !taken.contains(index) && connected[*index];
        let mut free: Vec<usize> = (0..self.peers.len()).filter(is_free).collect();
        let mut offered = Vec::new();
        for stage in route {
            let stays = self.rng.random_range(0..3) == 0;
            let others = match stays {
                true => None,
                false => self.filled(&mut free, stage.layers),
            };
            offered.extend(others.unwrap_or_else(|| vec![stage]));
        }
        (!offered.is_empty()).then_some(offered)
    }

    /// The layers in the hands of peers that are free; these are free no more.
    fn filled(&mut self, free: &mut Vec<usize>, layers: LayerRange) -> Option<Vec<RouteStage>> {
        let mut stages = Vec::new();
        let mut first = layers.first;
        let mut left = free.clone();
        while first < layers.end {
            let index = left.pop()?;
            let end = layers.end.min(first + self.weather.capacities[index]);
            if end > first {
                let peer = fixtures::peer(index as u8);
                let layers = LayerRange::new(first, end);
                stages.push(RouteStage { peer, layers });
            }
            first = end;
        }
        *free = left;
        Some(stages)
    }
}
