//! One log line of statistics every few seconds while there is traffic.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use super::Dispatch;
use crate::{
    metrics::{Metrics, Totals},
    status::FleetStatus,
};

/// Time between two lines.
const INTERVAL: Duration = Duration::from_secs(5);

impl Dispatch {
    /// Logs what the fleet does, as long as it does anything; runs until it is dropped.
    pub async fn log_stats(self, metrics: Metrics) {
        let mut before = (metrics.totals(), Instant::now());
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = (metrics.totals(), Instant::now());
            let is_idle = now.0.active == 0 && now.0 == before.0;
            if !is_idle {
                line(&self.status().await, before, now);
            }
            before = now;
        }
    }
}

fn line(fleet: &FleetStatus, before: (Totals, Instant), now: (Totals, Instant)) {
    let seconds = now.1.saturating_duration_since(before.1).as_secs_f64();
    let rate = |now: u64, before: u64| {
        let rate = now.saturating_sub(before) as f64 / seconds.max(f64::EPSILON);
        (rate * 10.0).round() / 10.0
    };
    tracing::info!(
        target: "dopd::stats",
        running = now.0.active.saturating_sub(fleet.requests_waiting),
        waiting = fleet.requests_waiting,
        prompt_tokens_per_s = rate(now.0.prompt_tokens, before.0.prompt_tokens),
        generation_tokens_per_s = rate(now.0.generation_tokens, before.0.generation_tokens),
        kv_usage = usage(fleet),
        workers = fleet.workers.len(),
        "stats"
    );
}

/// Share of the pages in use, per role: `decode=0.25 prefill=0.10`.
fn usage(fleet: &FleetStatus) -> String {
    let mut roles: Vec<&str> = fleet.workers.iter().map(|w| w.role.as_str()).collect();
    roles.sort_unstable();
    roles.dedup();
    let mut text = String::new();
    for role in roles {
        let (mut used, mut total) = (0_u64, 0_u64);
        for worker in fleet.workers.iter().filter(|worker| worker.role == role) {
            used += u64::from(worker.pages.owned) + u64::from(worker.pages.fenced);
            total += u64::from(worker.pages.total);
        }
        let space = if text.is_empty() { "" } else { " " };
        let share = used as f64 / total.max(1) as f64;
        // Writing into a String cannot fail.
        let _ = write!(text, "{space}{role}={share:.2}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{PageStatus, WorkerStatus};

    #[test]
    fn usage_is_that_of_all_workers_of_a_role() {
        let worker = |role: &str, owned| WorkerStatus {
            role: role.to_owned(),
            pages: PageStatus {
                total: 100,
                owned,
                ..PageStatus::default()
            },
            ..WorkerStatus::default()
        };
        let fleet = FleetStatus {
            workers: vec![
                worker("prefill", 5),
                worker("decode", 20),
                worker("decode", 40),
            ],
            ..FleetStatus::default()
        };
        assert_eq!(usage(&fleet), "decode=0.30 prefill=0.05");
        assert_eq!(usage(&FleetStatus::default()), "");
    }
}
