//! What the machine's tests have in common.

use std::time::Duration;

use accel_inference::LayerRange;
use accel_p2p::PeerId;

use super::simulation::toy::{END, VOCAB};
use super::{Machine, Opening, Tolerance};
use crate::error::{ErrorKind, Failure, MEMORY_IN_USE};
use crate::session::event::RouteStage;
use crate::session::recovery::strategy;
use crate::session::text::{Piece, TextPipe};
use crate::tolerance::FaultTolerance;

/// Writes every token as its number; a token of a chosen value completes a stop text.
pub(super) struct Numbers {
    pub(super) stop: Option<u32>,
}

impl TextPipe for Numbers {
    fn push(&mut self, token: u32) -> Piece {
        let stopped = self.stop == Some(token);
        let text = if stopped {
            String::new()
        } else {
            format!("{token} ")
        };
        Piece { text, stopped }
    }

    fn finish(&mut self) -> String {
        String::new()
    }

    fn is_end(&self, token: u32) -> bool {
        token == END
    }
}

pub(crate) fn peer(n: u8) -> PeerId {
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend([n; 32]);
    PeerId::from_bytes(&bytes).expect("an identity multihash of an ed25519 key")
}

pub(super) fn route(peers: &[u8]) -> Vec<RouteStage> {
    let stage = |(index, n): (usize, &u8)| RouteStage {
        peer: peer(*n),
        layers: LayerRange::new(index as u32, index as u32 + 1),
    };
    peers.iter().enumerate().map(stage).collect()
}

pub(super) fn memory_in_use() -> Failure {
    let message = "other sessions hold the memory";
    Failure::new(ErrorKind::Overloaded, MEMORY_IN_USE, message, "try again")
}

/// The peers of a route of so many stages, as [`machine`] begins with it.
pub(super) fn first_peers(stages: usize) -> Vec<u8> {
    (0..stages as u8).map(|n| 200 + n).collect()
}

pub(super) fn machine(level: FaultTolerance, prompt: usize, stages: usize) -> Machine {
    let opening = Opening {
        prompt: (0..prompt as u32).map(|n| n % VOCAB).collect(),
        max_new: 50,
        vocab: VOCAB,
        row_bytes: 8,
        kv_bytes: 8,
    };
    let tolerance = Tolerance {
        strategy: strategy(level),
        salt: 1,
        peer_wait: Duration::from_secs(30),
        resumable: false,
        replicas: 0,
        rebuild: None,
        witnessed: false,
    };
    let text = Box::new(Numbers { stop: None });
    Machine::new(opening, route(&first_peers(stages)), text, tolerance)
}
