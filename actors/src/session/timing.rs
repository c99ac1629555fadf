//! The actor's timers: how long the machine waits for what.

use std::time::Duration;

use actix::{AsyncContext, Context};

use super::actor::SessionActor;
use super::event::{Event, Timer};
use super::machine::{CHUNK, PEER_WAITS, WAITS};

/// A step may take this many times what was predicted, beyond the step timeout: other sessions
/// share the stages.
const PATIENCE: u64 = 20;
/// And at every stage a step may find one chunk of another session under way, and share the batch
/// with one more.
const ROWS_OF_OTHERS: u64 = 2 * CHUNK as u64;
/// How much later than the stages a peer may say what it can give: it was asked with them.
const GIVERS: Duration = Duration::from_millis(20);

impl SessionActor {
    /// How long a step of so many rows may take.
    pub(super) fn step_timeout(&self, rows: u32) -> Duration {
        let token_ns = self.spec.placement.token_ns;
        let rows = u64::from(rows) * PATIENCE + ROWS_OF_OTHERS;
        let expected = token_ns.saturating_mul(rows);
        self.deps.limits.step_timeout + Duration::from_nanos(expected)
    }

    pub(super) fn arm(&mut self, timer: Timer, context: &mut Context<Self>) {
        let limits = &self.deps.limits;
        let within = match timer {
            Timer::Givers { .. } => GIVERS,
            Timer::Commit { .. } => limits.commit_timeout,
            Timer::Memory { .. } => limits.memory_wait / WAITS,
            Timer::Peers { .. } | Timer::Replicas => limits.peer_wait / PEER_WAITS,
            Timer::Pause { after, .. } => after,
            Timer::Feed { .. } => limits.step_timeout,
            Timer::Step { rows, .. } => self.step_timeout(rows),
        };
        let handle = context.run_later(within, move |session, context| {
            session.feed(Event::Timeout(timer), context);
        });
        let slot = match timer {
            Timer::Replicas => &mut self.replica_timer,
            Timer::Feed { .. } => &mut self.feed_timer,
            _ => &mut self.timer,
        };
        if let Some(before) = slot.replace(handle) {
            context.cancel_future(before);
        }
    }
}
