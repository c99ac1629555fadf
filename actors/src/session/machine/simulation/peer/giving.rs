//! What a peer has kept and gives to another, and what it takes: outputs, and rows of KV caches.

use super::super::messages::{Effect, Finished, Message, Onward, Replay, Report, Rows, Step};
use super::{LEASE, Millis, Peer, ROW, Seat, failed};
use crate::stage::fence::Admission;

impl Peer {
    pub(super) fn replay(
        &mut self,
        from: usize,
        replay: Replay,
        now: Millis,
        ill: bool,
    ) -> Vec<Effect> {
        let Replay {
            epoch,
            step,
            position,
            rows,
            until,
        } = replay;
        let failed = |code| vec![failed(from, epoch, code)];
        if self.seats.is_empty() {
            return failed("unknown_session");
        }
        let Some(seat) = self.seat(epoch) else {
            return Vec::new();
        };
        let Some(live) = &seat.live else {
            return Vec::new();
        };
        seat.expires = now + LEASE;
        let outputs = seat.cache.as_ref().and_then(|cache| cache.outputs.as_ref());
        let rows = outputs.and_then(|outputs| outputs.read(position, u64::from(rows)));
        let (Some(rows), Some(next), false) = (rows, live.next, ill) else {
            return failed("outputs_missing");
        };
        let step = Step {
            coordinator: from,
            epoch,
            step,
            position,
            sample: false,
            until,
            rows: numbers(&rows),
            claims: Vec::new(),
        };
        vec![Effect::Send(next, Message::Step(step))]
    }

    pub(super) fn copy(
        &mut self,
        from: usize,
        copy: Replay,
        now: Millis,
        ill: bool,
    ) -> Vec<Effect> {
        let Replay {
            epoch,
            step,
            position,
            rows,
            until: to,
        } = copy;
        let failed = |code| vec![failed(from, epoch, code)];
        if self.seats.is_empty() {
            return failed("unknown_session");
        }
        let is_its = |seat: &&mut Seat| match seat.live.is_some() {
            // It goes on meanwhile.
            true => seat.epoch < epoch,
            false => seat.epoch == epoch && seat.ready,
        };
        let Some(seat) = self.seats.iter_mut().rev().find(is_its) else {
            return Vec::new();
        };
        seat.expires = now + LEASE;
        let cache = seat.cache.as_ref().filter(|_| !ill);
        let positions = position..position + u64::from(rows);
        let Some(states) = cache.and_then(|cache| cache.layers.export(positions)) else {
            return failed("copy_failed");
        };
        let rows = Rows {
            epoch,
            step,
            position,
            rows,
            layers: seat.layers,
            states,
        };
        vec![Effect::Send(to, Message::Rows(rows))]
    }

    pub(super) fn rows(&mut self, from: usize, rows: &Rows, now: Millis) -> Vec<Effect> {
        let (life, epoch, step) = (self.life, rows.epoch, rows.step);
        let Some(seat) = self.seat(epoch) else {
            return Vec::new();
        };
        let Some(live) = seat.live.as_mut().filter(|live| live.donor == Some(from)) else {
            return Vec::new();
        };
        assert_eq!(seat.layers, rows.layers, "rows of other layers");
        seat.expires = now + LEASE;
        let count = u64::from(rows.rows);
        match live.fence.admit(epoch, step, rows.position, count) {
            Admission::Apply => {
                let cache = seat.cache.as_mut().expect("a live stage has one");
                assert_eq!(cache.layers.len(), rows.position, "rows are missing");
                cache.layers.import(&rows.states);
                let result = Onward::Report(Report::Applied { epoch, step });
                vec![Effect::Compute(Finished {
                    life,
                    epoch,
                    step,
                    result,
                })]
            }
            Admission::Repeat => live.repeat(epoch, step),
            _ => vec![failed(live.coordinator, epoch, "position_gap")],
        }
    }
}

fn numbers(rows: &[u8]) -> Vec<u64> {
    let words = rows.as_chunks::<ROW>().0.iter();
    words.map(|row| u64::from_le_bytes(*row)).collect()
}
