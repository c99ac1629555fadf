//! A node that runs only for a part of the time, as if other programs took the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinHandle;

use crate::Node;

/// How long it runs between two pauses.
pub const RUNS: Duration = Duration::from_millis(10);

/// Holds a node up until this is dropped.
pub struct Brake(Arc<AtomicBool>);

impl Brake {
    /// Takes the node, and gives it back through the task once it is released.
    pub fn on(node: Node, pause: Duration) -> (Self, JoinHandle<Result<Node>>) {
        let brake = Self(Arc::default());
        let released = Arc::clone(&brake.0);
        let braking = tokio::task::spawn_blocking(move || {
            while !released.load(Ordering::Relaxed) {
                node.process.pause()?;
                std::thread::sleep(pause);
                node.process.resume()?;
                std::thread::sleep(RUNS);
            }
            Ok(node)
        });
        (brake, braking)
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
