//! How the router ends: which signal came, and the wait for running requests.

use std::{io, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the wait looks at the number of running requests.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The signals that end the router. The process-wide handlers stay installed after this is dropped,
/// and call the handlers that were there before (Python's, if the router runs inside Python).
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the handlers. Must be called inside a tokio runtime.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The name of the next signal. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every request ended by itself.
    Complete,
    /// Time was up; so many requests are cut off.
    TimedOut(usize),
    /// Another signal came; so many requests are cut off.
    Interrupted(usize),
}

/// Waits until `active` says 0, for at most `limit`, or until `signal` resolves.
pub async fn wait(
    active: impl Fn() -> usize,
    limit: Duration,
    signal: impl Future<Output = &'static str>,
) -> Drained {
    let idle = async {
        while active() > 0 {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::select! {
        biased;
        () = idle => Drained::Complete,
        _ = signal => Drained::Interrupted(active()),
        () = tokio::time::sleep(limit) => Drained::TimedOut(active()),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn ends_when_the_last_request_has() {
        let left = Cell::new(3_usize);
        let active = || left.replace(left.get().saturating_sub(1));
        assert_eq!(
            wait(active, LIMIT, future::pending()).await,
            Drained::Complete
        );
    }

    #[tokio::test(start_paused = true)]
    async fn ends_after_the_limit() {
        let start = tokio::time::Instant::now();
        assert_eq!(
            wait(|| 2, LIMIT, future::pending()).await,
            Drained::TimedOut(2)
        );
        assert_eq!(start.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_at_another_signal() {
        assert_eq!(
            wait(|| 2, LIMIT, future::ready("SIGINT")).await,
            Drained::Interrupted(2)
        );
    }
}
