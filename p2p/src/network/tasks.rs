//! The background tasks of one network: they end together.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks that stop when the network does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// Runs `task` until it ends or the network is shut down, whichever is first.
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.tracker.spawn(async move {
            token.run_until_cancelled(task).await;
        });
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

    /// Whether the network was told to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.token.is_cancelled()
    }
}
