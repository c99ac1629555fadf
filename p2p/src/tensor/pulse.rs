//! Whether the other end of a connection lives.
//!
//! Each end sends something every [`KEEP_ALIVE`](super::KEEP_ALIVE) at least. This end looks again
//! and again whether anything came; after [`SILENT_LOOKS`] looks in a row that find nothing the
//! peer is lost. Looks are counted and not time: a node that did not run itself, because it was
//! stopped, suspended or starved, has looked less often, and finds what came meanwhile before it
//! looks once more. So a node that is late never takes the others for dead.

use std::time::Duration;

use quinn::Connection;
use tokio::time::{MissedTickBehavior, interval};

/// How long there is between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Looks in a row that find nothing, until a peer is lost.
const SILENT_LOOKS: u32 = 8;
/// After how much silence a peer is lost, as people are told.
pub const SILENCE: Duration = LOOK.saturating_mul(SILENT_LOOKS);

/// Resolves once the other end is silent for too long.
pub(super) async fn silence(connection: &Connection) {
    let mut pulse = Pulse::default();
    let mut looks = interval(LOOK);
    // Looks that were missed are not made up for: nothing could have come in between.
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if pulse.is_gone(connection.stats().udp_rx.datagrams) {
            return;
        }
    }
}

/// What the looks have found. Pure.
#[derive(Debug, Default)]
struct Pulse {
    received: u64,
    silent: u32,
}

impl Pulse {
    /// A look that finds so many datagrams received in all.
    fn is_gone(&mut self, received: u64) -> bool {
        match received == self.received {
            true => self.silent += 1,
            false => self.silent = 0,
        }
        self.received = received;
        self.silent >= SILENT_LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_gone_after_so_many_looks_that_find_nothing_and_anything_starts_anew() {
        let mut pulse = Pulse::default();
        for received in 1..=3 {
            assert!(!pulse.is_gone(received), "something came");
            for look in 1..SILENT_LOOKS {
                assert!(!pulse.is_gone(received), "silent for {look} looks");
            }
        }
        assert!(pulse.is_gone(3));
    }

    #[test]
    fn a_peer_that_keeps_its_connection_alive_is_never_lost_between_two_signs_of_life() {
        let signs = SILENCE.as_millis() / super::super::KEEP_ALIVE.as_millis();
        assert!(signs >= 3, "two signs in a row may be late or lost");
    }
}
