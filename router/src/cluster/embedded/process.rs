//! One worker's process, life after life.

use std::{
    os::unix::process::ExitStatusExt as _, process::ExitStatus, process::Stdio, time::Instant,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    GivenUp, Stop, SupervisorConfig, WorkerSpec,
    output::{Tail, forward},
    restart::{Restarts, Verdict},
};
use crate::metrics::Metrics;

/// Time for the last lines of a dead worker to come through its pipes; a grandchild may hold them
/// open.
const LAST_LINES_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(300);

/// Keeps one worker running until it is stopped or given up.
pub(super) struct Keeper {
    pub(super) config: SupervisorConfig,
    pub(super) metrics: Metrics,
    pub(super) stop: Stop,
    pub(super) spec: WorkerSpec,
}

/// One life.
struct Life {
    child: Child,
    /// Open as long as the worker shall live.
    _stdin: Option<ChildStdin>,
    forwarders: Vec<JoinHandle<()>>,
    tail: Tail,
}

impl Keeper {
    /// Runs until the stop (`None`) or until the worker is given up.
    pub(super) async fn run(self) -> Option<GivenUp> {
        let mut restarts = Restarts::new(self.config.restart);
        loop {
            let mut life = match self.start() {
                Ok(life) => life,
                Err(error) => return Some(self.cannot_start(&error)),
            };
            let status = tokio::select! {
                status = life.child.wait() => status,
                () = self.stop.soft.cancelled() => {
                    self.end(&mut life).await;
                    return None;
                }
            };
            let code = status.as_ref().ok().and_then(ExitStatus::code);
            let how = status.map_or_else(|error| error.to_string(), describe);
            life.finish_output().await;
            let name = self.spec.name.as_str();
            match restarts.died(Instant::now(), code) {
                Verdict::Restart(backoff) => {
                    tracing::warn!(
                        worker = name,
                        ?backoff,
                        "worker died ({how}), starting it again"
                    );
                    tokio::select! {
                        () = sleep(backoff) => self.metrics.worker_restarted(name),
                        () = self.stop.soft.cancelled() => return None,
                    }
                }
                verdict => return Some(self.give_up(verdict, &how, &life)),
            }
        }
    }

    fn start(&self) -> std::io::Result<Life> {
        let (program, first) = self.config.command.split_first().ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the worker command is empty",
            )
        })?;
        let mut child = Command::new(program)
            .args(first)
            .args(&self.spec.args)
            .envs(
                self.config
                    .variables
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        tracing::debug!(worker = self.spec.name, pid = child.id(), "worker started");
        let tail = Tail::default();
        let mut forwarders = Vec::with_capacity(2);
        let (name, sink) = (&self.spec.name, &self.config.output);
        if let Some(stdout) = child.stdout.take() {
            forwarders.push(tokio::spawn(forward(
                stdout,
                name.clone(),
                sink.clone(),
                None,
            )));
        }
        if let Some(stderr) = child.stderr.take() {
            let tail = Some(tail.clone());
            forwarders.push(tokio::spawn(forward(
                stderr,
                name.clone(),
                sink.clone(),
                tail,
            )));
        }
        // `Child::wait` would close a pipe that the child still has.
        let stdin = child.stdin.take();
        Ok(Life {
            child,
            _stdin: stdin,
            forwarders,
            tail,
        })
    }

    /// SIGTERM, then SIGKILL to its whole group after the stop time or at a hard stop.
    async fn end(&self, life: &mut Life) {
        let Some(pid) = life.pid() else { return };
        let name = self.spec.name.as_str();
        // It may have ended just now; it has not been waited for, so the number is still its own.
        if let Err(error) = kill_process(pid, Signal::TERM) {
            tracing::debug!(worker = name, %error, "cannot send SIGTERM");
        }
        let in_time = tokio::select! {
            ended = timeout(self.config.stop_timeout, life.child.wait()) => ended.is_ok(),
            () = self.stop.hard.cancelled() => false,
        };
        if !in_time {
            let why = if self.stop.hard.is_cancelled() {
                "at once"
            } else {
                "deaf to SIGTERM"
            };
            tracing::warn!(worker = name, "killing the worker ({why})");
            if let Err(error) = kill_process_group(pid, Signal::KILL) {
                tracing::warn!(worker = name, %error, "cannot send SIGKILL");
            }
            if let Err(error) = life.child.wait().await {
                tracing::warn!(worker = name, %error, "cannot wait for the worker");
            }
        }
        life.finish_output().await;
    }

    fn cannot_start(&self, error: &std::io::Error) -> GivenUp {
        let program = self.config.command.first().map_or("", String::as_str);
        GivenUp {
            name: self.spec.name.clone(),
            cause: format!("cannot be started: {program}: {error}"),
            last_lines: Vec::new(),
            is_for_good: true,
        }
    }

    fn give_up(&self, verdict: Verdict, how: &str, life: &Life) -> GivenUp {
        let policy = self.config.restart;
        let is_for_good = verdict == Verdict::ForGood;
        let cause = if is_for_good {
            format!("cannot run ({how})")
        } else {
            let (deaths, window) = (policy.deaths_max, policy.window.as_secs());
            format!("died {deaths} times in {window} s, last with {how}; it is not started again")
        };
        let given_up = GivenUp {
            name: self.spec.name.clone(),
            cause,
            last_lines: life.tail.lines(),
            is_for_good,
        };
        tracing::error!(worker = given_up.name, "{given_up}");
        given_up
    }
}

impl Life {
    /// The process id while the child has not been waited for.
    fn pid(&self) -> Option<Pid> {
        self.child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
    }

    /// Lets the last lines through.
    async fn finish_output(&mut self) {
        for forwarder in &mut self.forwarders {
            if timeout(LAST_LINES_TIMEOUT, &mut *forwarder).await.is_err() {
                forwarder.abort();
            }
        }
        self.forwarders.clear();
    }
}

/// "exit code 1", "signal 9".
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
