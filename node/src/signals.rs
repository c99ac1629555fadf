//! When to stop: Ctrl-C, SIGTERM, a terminal that is closed.

use std::io;

/// Resolves when the user or the system wants the program to stop.
#[cfg(unix)]
pub async fn stop_requested() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
    }
}

/// Resolves when the user wants the program to stop.
#[cfg(not(unix))]
pub async fn stop_requested() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}
