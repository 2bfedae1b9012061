//! How the router ends: which signal came, and the wait for running requests.

use std::{io, time::Duration};

pub use crate::listen::Stop;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

/// How often the wait looks at the number of running requests.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// From SIGHUP to its meaning: a shell that ends sends it just before its terminal is gone.
const HANGUP_DELAY: Duration = Duration::from_millis(100);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To end; the signal's name.
    End(&'static str),
    /// To start all local workers anew, one after the other (SIGHUP).
    Restart,
}

/// The signals that the router listens to. The process-wide handlers stay installed after this is
/// dropped, and call the handlers that were there before (Python's, if the router runs inside
/// Python).
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    hangups: Hangups,
    /// A hang-up came; when it is judged.
    judged_at: Option<Instant>,
}

impl Signals {
    /// Installs the handlers. Must be called inside a tokio runtime.
    pub fn install() -> io::Result<Self> {
        // Before the handler is: it replaces what nohup did.
        let hangups = Hangups::of_this_process();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            hangups,
            judged_at: None,
        })
    }

    /// What the next signal asks for. Cancel-safe.
    pub async fn next(&mut self) -> Asked {
        loop {
            let judge = async {
                match self.judged_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => return Asked::End("SIGINT"),
                _ = self.terminate.recv() => return Asked::End("SIGTERM"),
                _ = self.hangup.recv() => self.judged_at = Some(Instant::now() + HANGUP_DELAY),
                () = judge => {
                    self.judged_at = None;
                    if let Some(asked) = self.hangups.meaning(has_terminal()) {
                        return asked;
                    }
                }
            }
        }
    }

    /// The name of the next signal that asks to end. Cancel-safe.
    pub async fn end(&mut self) -> &'static str {
        loop {
            if let Asked::End(name) = self.next().await {
                return name;
            }
        }
    }
}

/// What SIGHUP means in this process: a request of the operator, unless the terminal is gone in
/// which the router was started.
#[derive(Clone, Copy, Debug)]
struct Hangups {
    had_terminal: bool,
    /// Started by nohup, say.
    was_ignored: bool,
}

impl Hangups {
    fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            had_terminal: has_terminal(),
            was_ignored: ignores_hangup(&status),
        }
    }

    fn meaning(self, has_terminal: bool) -> Option<Asked> {
        match (self.had_terminal && !has_terminal, self.was_ignored) {
            (false, _) => Some(Asked::Restart),
            (true, false) => Some(Asked::End("SIGHUP")),
            (true, true) => None,
        }
    }
}

/// Whether the process has a terminal that could hang up.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Whether the text of `/proc/PID/status` says that SIGHUP is ignored.
fn ignores_hangup(status: &str) -> bool {
    let mask = (status.lines()).find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit n - 1 is signal n; SIGHUP is 1.
    mask.is_some_and(|mask| mask & 1 == 1)
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

    #[test]
    fn a_hangup_means_restart_unless_the_terminal_is_gone() {
        let hangups = |had_terminal, was_ignored| Hangups {
            had_terminal,
            was_ignored,
        };
        let end = Some(Asked::End("SIGHUP"));
        for (of, has_terminal, meaning) in [
            (hangups(true, false), true, Some(Asked::Restart)),
            (hangups(true, false), false, end),
            (hangups(true, true), false, None),
            (hangups(true, true), true, Some(Asked::Restart)),
            (hangups(false, false), false, Some(Asked::Restart)),
        ] {
            assert_eq!(of.meaning(has_terminal), meaning, "{of:?} {has_terminal}");
        }
    }

    #[test]
    fn an_ignored_hangup_is_read_from_the_mask() {
        let status = |mask| format!("Name:\tdopd\nSigBlk:\t0001\nSigIgn:\t{mask}\nSigCgt:\t1\n");
        assert!(ignores_hangup(&status("0000000000001001")));
        assert!(!ignores_hangup(&status("0000000000001000")));
        assert!(!ignores_hangup(""));
    }

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
