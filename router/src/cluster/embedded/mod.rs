//! The supervisor of local workers: starts them, forwards what they say, restarts those that die,
//! stops all.
//!
//! Each worker is one task that owns one child process at a time. A child ends with the router
//! however that ends: its standard input is a pipe whose other end only the router holds, and a
//! worker ends when that closes. It has a process group of its own, so that a Ctrl-C in the
//! terminal reaches the router alone, which then stops workers in order.

mod life;
mod output;
mod place;
mod process;
mod restart;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use output::LineSink;
pub use place::{Alive, Place, Replace};
pub use restart::RestartPolicy;

use crate::metrics::Metrics;

/// One local worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Its name, unique.
    pub name: String,
    /// Arguments after the command and `--name NAME`.
    pub args: Vec<String>,
}

/// How local workers are run.
#[derive(Clone)]
pub struct SupervisorConfig {
    /// Program and first arguments.
    pub command: Vec<String>,
    /// Variables added to the router's own.
    pub variables: Vec<(String, String)>,
    /// When to restart.
    pub restart: RestartPolicy,
    /// Time for the requests of a worker that is replaced to end.
    pub drain_timeout: Duration,
    /// Time from SIGTERM to SIGKILL.
    pub stop_timeout: Duration,
    /// Where output goes.
    pub output: LineSink,
}

impl fmt::Debug for SupervisorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the variables: one of them is the join token.
        f.debug_struct("SupervisorConfig")
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

/// A worker that is not started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Its name.
    pub name: String,
    /// What happened, with its last exit.
    pub cause: String,
    /// The last lines that it wrote to standard error.
    pub last_lines: Vec<String>,
    /// Whether its exit code said that it would fail again.
    pub is_for_good: bool,
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} {}", self.name, self.cause)
    }
}

/// The running supervisor. Dropping it kills the workers; [`Supervisor::stop`] ends them in order.
#[derive(Debug)]
pub struct Supervisor {
    tasks: JoinSet<()>,
    stop: Stop,
    given_up: mpsc::Receiver<GivenUp>,
    places: Vec<Place>,
}

/// How workers are told to end; shared by all tasks.
#[derive(Clone, Debug, Default)]
struct Stop {
    /// SIGTERM, then SIGKILL after the stop time.
    soft: CancellationToken,
    /// SIGKILL now.
    hard: CancellationToken,
}

impl Supervisor {
    /// Starts one task per worker. Must be called inside a tokio runtime.
    pub fn start(config: &SupervisorConfig, workers: Vec<WorkerSpec>, metrics: &Metrics) -> Self {
        let stop = Stop::default();
        let (report, given_up) = mpsc::channel(workers.len().max(1));
        let mut tasks = JoinSet::new();
        let mut places = Vec::with_capacity(workers.len());
        for spec in workers {
            let (place, desk) = Place::new(spec.name.clone());
            let keeper = process::Keeper {
                config: config.clone(),
                metrics: metrics.clone(),
                stop: stop.clone(),
                spec,
                desk,
                report: report.clone(),
            };
            places.push(place);
            tasks.spawn(keeper.run());
        }
        Self {
            tasks,
            stop,
            given_up,
            places,
        }
    }

    /// The next worker that is given up; waits forever if that never happens. Cancel-safe.
    pub async fn next_given_up(&mut self) -> GivenUp {
        match self.given_up.recv().await {
            Some(given_up) => given_up,
            None => std::future::pending().await,
        }
    }

    /// Workers that have not been given up.
    pub fn alive(&self) -> usize {
        let alive = |place: &&Place| !place.is_given_up();
        self.places.iter().filter(alive).count()
    }

    /// All workers' places, in their order.
    pub fn places(&self) -> Vec<Place> {
        self.places.clone()
    }

    /// Tells all workers to end and waits until the last has; kills those that take longer than the
    /// stop time, and all as soon as `now` is cancelled.
    pub async fn stop(mut self, now: &CancellationToken) {
        self.stop.soft.cancel();
        loop {
            tokio::select! {
                ended = self.tasks.join_next() => match ended {
                    Some(_) => {}
                    None => return,
                },
                () = now.cancelled(), if !self.stop.hard.is_cancelled() => self.stop.hard.cancel(),
            }
        }
    }
}
