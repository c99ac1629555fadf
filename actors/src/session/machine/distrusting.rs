//! The machine's part when peers are not to be believed: it goes on without them, and from nothing
//! that a stage keeps.

use accel_p2p::PeerId;

use super::{Machine, Phase};
use crate::error::Failure;
use crate::session::event::Outcome;
use crate::session::recovery::{Fault, FaultKind};

impl Machine {
    pub(super) fn on_distrusted(
        &mut self,
        epoch: u64,
        peers: &[PeerId],
        kind: FaultKind,
        failure: Failure,
    ) {
        if epoch != self.epoch || !matches!(self.phase, Phase::Running) {
            return;
        }
        for peer in peers {
            self.recovery.suspect(*peer);
        }
        // Whoever was given what is wrong has it in its KV cache.
        self.distrusts = true;
        self.recover(Fault {
            kind,
            culprit: peers.first().copied(),
            failure,
        });
    }

    /// Somebody may go on with it later, if anybody may at all.
    pub(super) fn give_up(&mut self, failure: Failure) {
        self.close(match self.tolerance.resumable {
            true => Outcome::Suspended(failure),
            false => Outcome::Failed(failure),
        });
    }
}
