//! The seats of sessions: one each, or two while a session goes over to other layers of the same node: the
//! present one computes, and the other one gets ready under a newer epoch.

use std::collections::HashMap;
use std::time::Instant;

use accel_p2p::wire::SessionId;

use super::seat::Seat;

/// See the module. Of a session, the newest seat is the last.
#[derive(Default)]
pub(super) struct Seats(HashMap<SessionId, Vec<Seat>>);

impl Seats {
    /// How many sessions have any.
    pub(super) fn sessions(&self) -> usize {
        self.0.len()
    }

    /// Whether a session has any.
    pub(super) fn has(&self, session: SessionId) -> bool {
        self.0.contains_key(&session)
    }

    /// The newest seat of a session.
    pub(super) fn newest(&self, session: SessionId) -> Option<&Seat> {
        self.0.get(&session)?.last()
    }

    /// The seat of an epoch.
    pub(super) fn of(&mut self, session: SessionId, epoch: u64) -> Option<&mut Seat> {
        self.find(session, |seat| seat.epoch == epoch)
    }

    /// The newest seat of a session that is such.
    pub(super) fn find(
        &mut self,
        session: SessionId,
        is_it: impl Fn(&Seat) -> bool,
    ) -> Option<&mut Seat> {
        let seats = self.0.get_mut(&session)?;
        seats.iter_mut().rev().find(|seat| is_it(seat))
    }

    /// All seats of all sessions.
    pub(super) fn all(&self) -> impl Iterator<Item = &Seat> {
        self.0.values().flatten()
    }

    /// Adds a seat of a newer epoch.
    pub(super) fn push(&mut self, session: SessionId, seat: Seat) {
        self.0.entry(session).or_default().push(seat);
    }

    /// Takes the newest such seat of a session out.
    pub(super) fn take(
        &mut self,
        session: SessionId,
        is_it: impl Fn(&Seat) -> bool,
    ) -> Option<Seat> {
        let seats = self.0.get_mut(&session)?;
        let at = seats.iter().rposition(is_it)?;
        let seat = seats.remove(at);
        if seats.is_empty() {
            self.0.remove(&session);
        }
        Some(seat)
    }

    /// Sessions with a seat whose lease has run out.
    pub(super) fn expired(&self, now: Instant) -> Vec<SessionId> {
        let has_expired = |seats: &&Vec<Seat>| seats.iter().any(|seat| seat.expires <= now);
        let sessions = self.0.iter().filter(|(_, seats)| has_expired(seats));
        sessions.map(|(session, _)| *session).collect()
    }
}
