//! One life of a worker: its process from start to end.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
    time::timeout,
};

use super::{
    SupervisorConfig,
    output::{Tail, forward},
    place::Alive,
};

/// Time for the last lines of a dead worker to come through its pipes; a grandchild may hold them
/// open.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(300);

/// A running process and what belongs to it.
pub(super) struct Life {
    child: Child,
    /// Open as long as the worker shall live.
    _stdin: Option<ChildStdin>,
    forwarders: Vec<JoinHandle<()>>,
    tail: Tail,
    pub(super) alive: Alive,
    /// Processes that the kernel had killed for want of memory when this one started.
    oom_kills: Option<u64>,
}

impl Life {
    /// Starts a worker under this name.
    pub(super) fn start(
        config: &SupervisorConfig,
        name: &str,
        args: &[String],
    ) -> io::Result<Self> {
        let (program, first) = config.command.split_first().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the worker command is empty")
        })?;
        let variables = config.variables.iter();
        let mut child = Command::new(program)
            .args(first)
            .args(["--name", name])
            .args(args)
            .envs(variables.map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        tracing::debug!(worker = name, pid, "worker started");
        let tail = Tail::default();
        let mut forwarders = Vec::with_capacity(2);
        let sink = &config.output;
        if let Some(stdout) = child.stdout.take() {
            let task = forward(stdout, name.to_owned(), sink.clone(), None);
            forwarders.push(tokio::spawn(task));
        }
        if let Some(stderr) = child.stderr.take() {
            let task = forward(stderr, name.to_owned(), sink.clone(), Some(tail.clone()));
            forwarders.push(tokio::spawn(task));
        }
        // `Child::wait` would close a pipe that the child still has.
        let stdin = child.stdin.take();
        Ok(Self {
            child,
            _stdin: stdin,
            forwarders,
            tail,
            alive: Alive {
                name: name.to_owned(),
                pid,
                since: Instant::now(),
            },
            oom_kills: oom_kills(),
        })
    }

    /// Waits until the process has ended. Cancel-safe.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Sends SIGTERM and waits so long for the end; returns whether it came.
    pub(super) async fn terminate(&mut self, limit: Duration) -> bool {
        let Some(pid) = self.pid() else { return true };
        // It may have ended just now; it has not been waited for, so the number is still its own.
        if let Err(error) = kill_process(pid, Signal::TERM) {
            tracing::debug!(worker = self.alive.name, %error, "cannot send SIGTERM");
        }
        timeout(limit, self.child.wait()).await.is_ok()
    }

    /// Kills the process and all of its group, and waits for its end.
    pub(super) async fn kill(&mut self) {
        let name = self.alive.name.as_str();
        if let Some(pid) = self.pid()
            && let Err(error) = kill_process_group(pid, Signal::KILL)
        {
            tracing::warn!(worker = name, %error, "cannot send SIGKILL");
        }
        if let Err(error) = self.child.wait().await {
            tracing::warn!(worker = name, %error, "cannot wait for the worker");
        }
    }

    /// Lets the last lines through.
    pub(super) async fn finish_output(&mut self) {
        for forwarder in &mut self.forwarders {
            if timeout(LAST_LINES_TIMEOUT, &mut *forwarder).await.is_err() {
                forwarder.abort();
            }
        }
        self.forwarders.clear();
    }

    /// The last lines of its standard error.
    pub(super) fn last_lines(&self) -> Vec<String> {
        self.tail.lines()
    }

    /// How it ended, in words.
    pub(super) fn describe(&self, status: &io::Result<ExitStatus>) -> String {
        let was_oom = oom_kills() > self.oom_kills;
        match status {
            Ok(status) => describe(*status, was_oom),
            Err(error) => error.to_string(),
        }
    }

    /// The process id while the child has not been waited for.
    fn pid(&self) -> Option<Pid> {
        let pid = i32::try_from(self.child.id()?).ok()?;
        Pid::from_raw(pid)
    }
}

/// "exit code 1", "signal 9 ...".
fn describe(status: ExitStatus, was_oom: bool) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) if was_oom => "signal 9: the kernel's killer for want of memory".to_owned(),
        (None, Some(9)) => "signal 9: killed from outside".to_owned(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Processes of this machine that the kernel has killed for want of memory.
fn oom_kills() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_for_want_of_memory_is_named() {
        let killed = ExitStatus::from_raw(9);
        assert!(describe(killed, true).contains("want of memory"));
        assert!(describe(killed, false).contains("from outside"));
        assert_eq!(describe(ExitStatus::from_raw(11), true), "signal 11");
        assert_eq!(describe(ExitStatus::from_raw(7 << 8), true), "exit code 7");
    }
}
