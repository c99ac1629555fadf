//! The background tasks of one network: they end together.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks that stop when the network does. They run where the network was started, whoever
/// spawns them: a caller's runtime may have a single thread, and better things to do.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    runtime: Handle,
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// For a network that is started on the current runtime.
    pub(crate) fn here() -> Self {
        Self {
            runtime: Handle::current(),
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
        }
    }

    /// Runs `task` until it ends or the network is shut down, whichever is first.
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        let until_stopped = async move {
            token.run_until_cancelled(task).await;
        };
        self.tracker.spawn_on(until_stopped, &self.runtime);
    }

    /// A token that is cancelled with the network, or earlier by its holder.
    pub(crate) fn child_token(&self) -> CancellationToken {
        self.token.child_token()
    }

    /// Tells all tasks to stop.
    pub(crate) fn cancel(&self) {
        self.token.cancel();
    }

    /// Stops all tasks and waits for them, but no longer than `limit`.
    pub(crate) async fn stop(&self, limit: Duration) {
        self.token.cancel();
        self.tracker.close();
        if tokio::time::timeout(limit, self.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                left = self.tracker.len(),
                "network tasks did not stop in time"
            );
        }
    }

    /// Runs what has to happen although the network stops.
    pub(crate) fn spawn_last<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.runtime.spawn(task);
    }

    /// Whether the network was told to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.token.is_cancelled()
    }
}
