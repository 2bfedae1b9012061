//! The keeper of one worker: life after life, until the stop.

use std::{io, process::ExitStatus, time::Instant};

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    GivenUp, Stop, SupervisorConfig, WorkerSpec,
    life::Life,
    place::{Alive, Desk, Known, Order, Replace},
    restart::{Restarts, Verdict},
};
use crate::metrics::Metrics;

/// What a successor is called that is started beside its predecessor: the name and this, or without
/// it if the predecessor has it.
const SUCCESSOR: &str = ".next";

/// Keeps one worker running until it is stopped.
pub(super) struct Keeper {
    pub(super) config: SupervisorConfig,
    pub(super) metrics: Metrics,
    pub(super) stop: Stop,
    pub(super) spec: WorkerSpec,
    pub(super) desk: Desk,
    pub(super) report: mpsc::Sender<GivenUp>,
}

/// What happens to a life.
enum Next {
    Stopped,
    Ended(io::Result<ExitStatus>),
    Asked(Order),
}

impl Keeper {
    /// Runs until the stop.
    pub(super) async fn run(mut self) {
        let mut restarts = Restarts::new(self.config.restart);
        let mut life = self.start(&self.spec.name.clone()).await;
        loop {
            let next = self.next(life.as_mut()).await;
            life = match (next, life) {
                (Next::Stopped, None) => return,
                (Next::Stopped, Some(life)) => return self.end(life).await,
                (Next::Ended(status), Some(life)) => {
                    let how = life.describe(&status);
                    let code = status.ok().and_then(|status| status.code());
                    self.died(life, code, &how, &mut restarts).await
                }
                (Next::Asked(Order::Kill(pid, why)), Some(mut life)) if life.alive.pid == pid => {
                    life.kill().await;
                    self.died(life, None, &why, &mut restarts).await
                }
                (Next::Asked(Order::Replace(Replace::NewFirst, told)), Some(life)) => {
                    self.surge(life, told).await
                }
                (Next::Asked(Order::Replace(_, told)), life) => {
                    restarts = Restarts::new(self.config.restart);
                    self.replace(life, told).await
                }
                // Of a life that is over.
                (Next::Asked(_) | Next::Ended(_), life) => life,
            };
        }
    }

    async fn next(&mut self, life: Option<&mut Life>) -> Next {
        let ended = async {
            match life {
                Some(life) => life.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = ended => Next::Ended(status),
            Some(order) = self.desk.orders.recv() => Next::Asked(order),
            () = self.stop.soft.cancelled() => Next::Stopped,
        }
    }

    /// A new life, or the end of all.
    async fn start(&self, name: &str) -> Option<Life> {
        match Life::start(&self.config, name, &self.spec.args) {
            Ok(life) => {
                *self.desk.known.lock() = Known {
                    now: Some(life.alive.clone()),
                    ..Known::default()
                };
                Some(life)
            }
            Err(error) => {
                let program = self.config.command.first().map_or("", String::as_str);
                self.give_up(GivenUp {
                    name: name.to_owned(),
                    cause: format!("cannot be started: {program}: {error}"),
                    last_lines: Vec::new(),
                    is_for_good: true,
                })
                .await;
                None
            }
        }
    }

    /// The next life after a death, if there is one.
    async fn died(
        &self,
        mut life: Life,
        code: Option<i32>,
        how: &str,
        restarts: &mut Restarts,
    ) -> Option<Life> {
        self.desk.known.lock().now = None;
        life.finish_output().await;
        let name = life.alive.name.as_str();
        match restarts.died(Instant::now(), life.alive.since, code) {
            Verdict::Restart(backoff) => {
                if code == Some(0) {
                    tracing::info!(worker = name, "worker ended, starting it again");
                } else {
                    let text = "worker died, starting it again";
                    tracing::warn!(worker = name, ?backoff, how, "{text}");
                }
                tokio::select! {
                    () = sleep(backoff) => self.metrics.worker_restarted(name),
                    () = self.stop.soft.cancelled() => return None,
                }
                self.start(&self.spec.name).await
            }
            verdict => {
                self.give_up(self.given_up(verdict, how, &life)).await;
                None
            }
        }
    }

    /// Ends the old life gently, then starts a new one.
    async fn replace(
        &mut self,
        old: Option<Life>,
        told: oneshot::Sender<Result<Alive, String>>,
    ) -> Option<Life> {
        if let Some(old) = old {
            self.retire(old).await;
        }
        if self.stop.soft.is_cancelled() {
            return None;
        }
        let life = self.start(&self.spec.name).await;
        let started = life.as_ref().map(|life| life.alive.clone());
        // Whoever asked may have gone; the worker runs nevertheless.
        let _ = told.send(started.ok_or_else(|| "it cannot be started".to_owned()));
        life
    }

    /// Starts a successor beside `old`; returns who is left when that is settled.
    async fn surge(
        &mut self,
        mut old: Life,
        told: oneshot::Sender<Result<Alive, String>>,
    ) -> Option<Life> {
        let name = self.spec.name.as_str();
        let other = if old.alive.name == name {
            format!("{name}{SUCCESSOR}")
        } else {
            name.to_owned()
        };
        let mut new = match Life::start(&self.config, &other, &self.spec.args) {
            Ok(new) => new,
            Err(error) => {
                let _ = told.send(Err(error.to_string()));
                return Some(old);
            }
        };
        self.desk.known.lock().next = Some(new.alive.clone());
        let _ = told.send(Ok(new.alive.clone()));
        let (stays, settled) = loop {
            tokio::select! {
                status = new.ended() => {
                    let how = new.describe(&status);
                    tracing::warn!(worker = other, "the successor ended ({how})");
                    new.finish_output().await;
                    break (old, None);
                }
                _ = old.ended() => {
                    old.finish_output().await;
                    break (new, None);
                }
                Some(order) = self.desk.orders.recv() => {
                    if let Order::Settle(is_attached, told) = order {
                        let (stays, goes) = if is_attached { (new, old) } else { (old, new) };
                        self.known(&stays);
                        self.retire(goes).await;
                        break (stays, Some(told));
                    }
                }
                () = self.stop.soft.cancelled() => {
                    tokio::join!(self.end(old), self.end(new));
                    return None;
                }
            }
        };
        self.known(&stays);
        if let Some(told) = settled {
            let _ = told.send(());
        }
        Some(stays)
    }

    fn known(&self, life: &Life) {
        *self.desk.known.lock() = Known {
            now: Some(life.alive.clone()),
            ..Known::default()
        };
    }

    /// Ends a life whose requests are to end before: SIGTERM, and after the drain time another.
    async fn retire(&self, mut life: Life) {
        tokio::select! {
            is_gone = life.terminate(self.config.drain_timeout) => {
                if is_gone {
                    return life.finish_output().await;
                }
                let text = "its requests did not end in time, they go on elsewhere";
                tracing::info!(worker = life.alive.name, "{text}");
            }
            () = self.stop.soft.cancelled() => {}
        }
        self.end(life).await;
    }

    /// SIGTERM, then SIGKILL to its whole group after the stop time or at a hard stop.
    async fn end(&self, mut life: Life) {
        let in_time = tokio::select! {
            in_time = life.terminate(self.config.stop_timeout) => in_time,
            () = self.stop.hard.cancelled() => false,
        };
        if !in_time {
            let why = if self.stop.hard.is_cancelled() {
                "at once"
            } else {
                "deaf to SIGTERM"
            };
            tracing::warn!(worker = life.alive.name, "killing the worker ({why})");
            life.kill().await;
        }
        if !self.stop.hard.is_cancelled() {
            life.finish_output().await;
        }
    }

    fn given_up(&self, verdict: Verdict, how: &str, life: &Life) -> GivenUp {
        let policy = self.config.restart;
        let is_for_good = verdict == Verdict::ForGood;
        let cause = if is_for_good {
            format!("cannot run ({how})")
        } else {
            let (deaths, window) = (policy.deaths_max, policy.window.as_secs());
            format!("died {deaths} times in {window} s, last with {how}; it is not started again")
        };
        GivenUp {
            name: life.alive.name.clone(),
            cause,
            last_lines: life.last_lines(),
            is_for_good,
        }
    }

    async fn give_up(&self, given_up: GivenUp) {
        tracing::error!(worker = given_up.name, "{given_up}");
        *self.desk.known.lock() = Known {
            is_given_up: true,
            ..Known::default()
        };
        // Nobody listens any more: the router is stopping, and this has been logged.
        let _ = self.report.send(given_up).await;
    }
}
