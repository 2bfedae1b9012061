//! From started workers to a fleet that makes tokens.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    console::Failure,
    loading::REDRAW_INTERVAL,
    watch::{End, Phase, Site, Watched},
    workers as local,
};
use crate::{config::Scope, status::FleetStatus};

/// How often start-up asks who has attached.
const ATTACH_POLL: Duration = Duration::from_millis(10);

/// How often start-up says whom it waits for.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Least time for a first token once all workers are attached; then the start is announced without.
const FIRST_TOKEN_LIMIT_MIN: Duration = Duration::from_secs(1);

impl Site<'_> {
    /// Waits until all local workers are attached and one has made a token.
    pub(super) async fn start_up(&self, watched: &mut Watched<'_>) -> Result<FleetStatus, End> {
        let cluster = &self.settings.config.cluster;
        let limit = Duration::from_millis(cluster.start_timeout_ms);
        let order: Vec<String> = match self.scope {
            Scope::Serve => local::names(&self.settings.config).collect(),
            Scope::Router => Vec::new(),
        };
        let mut missing = BTreeSet::from_iter(order.clone());
        let start = Instant::now();
        let mut attached = None;
        let mut next_progress = start + self.progress_interval();
        loop {
            let mut fleet = self.dispatch.status().await;
            for worker in &fleet.workers {
                missing.remove(&worker.id);
            }
            if missing.is_empty() {
                let attached = *attached.get_or_insert_with(Instant::now);
                if order.is_empty() || self.has_token(attached) {
                    let place = |name: &str| order.iter().position(|id| id == name);
                    fleet.workers.sort_by_key(|worker| place(&worker.id));
                    return Ok(fleet);
                }
            } else if start.elapsed() >= limit {
                return Err(End::Failure(Failure::new(format!(
                    "{} did not attach within {} s (cluster.start_timeout_ms)",
                    joined(&missing),
                    limit.as_secs_f64()
                ))));
            }
            if Instant::now() >= next_progress {
                next_progress += self.progress_interval();
                self.progress(&missing, start);
            }
            tokio::select! {
                () = sleep(ATTACH_POLL) => {}
                end = watched.next_end(Phase::StartUp) => return Err(end),
            }
        }
    }

    fn progress_interval(&self) -> Duration {
        if self.loading.is_live() {
            REDRAW_INTERVAL
        } else {
            PROGRESS_INTERVAL
        }
    }

    fn progress(&self, missing: &BTreeSet<String>, start: Instant) {
        if self.loading.is_live() {
            self.loading.draw();
        } else if missing.is_empty() {
            tracing::info!("waiting for a first token");
        } else {
            let seconds = start.elapsed().as_secs();
            tracing::info!("waiting for {} ({seconds} s)", joined(missing));
        }
    }

    /// Whether the workers, attached since then, have made a first token. If not in time, that is
    /// told and no more waited for.
    fn has_token(&self, attached: Instant) -> bool {
        let readiness = self.dispatch.readiness();
        if readiness.is_ready() {
            return true;
        }
        let interval = self.settings.config.workers.canary_interval_ms;
        let limit = FIRST_TOKEN_LIMIT_MIN.max(Duration::from_millis(interval) * 2);
        let is_late = attached.elapsed() >= limit;
        if is_late {
            tracing::warn!("all workers are attached, but {}", readiness.message);
        }
        is_late
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    names
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}
