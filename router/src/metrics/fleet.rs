//! Gauges and counters of the fleet, encoded straight from the last [`FleetStatus`].
//!
//! A collector instead of gauges that are set: one page shows one instant, and a worker that left
//! leaves no row behind.

use std::{fmt, sync::Arc};

use dopd_sync::Count;
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::catalog::{self, Kind, Row};
use crate::status::{FleetStatus, WorkerStatus};

const ROLES: [&str; 3] = ["prefill", "decode", "mixed"];
const STATES: [&str; 3] = ["ready", "suspect", "draining"];

/// Encodes the status that [`super::Metrics::set_fleet`] left.
#[derive(Debug)]
pub(super) struct FleetCollector {
    fleet: Arc<Mutex<FleetStatus>>,
    active: Count,
    preparing: Count,
}

impl FleetCollector {
    /// Shows `fleet`; `active` counts requests that have not ended, `preparing` those that are not
    /// submitted.
    pub(super) fn new(fleet: &Arc<Mutex<FleetStatus>>, active: &Count, preparing: &Count) -> Self {
        Self {
            fleet: Arc::clone(fleet),
            active: active.clone(),
            preparing: preparing.clone(),
        }
    }
}

impl Collector for FleetCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let fleet = self.fleet.lock().clone();
        let active = self.active.get();
        let preparing = self.preparing.get();
        requests(&mut encoder, &fleet, active, preparing)?;
        sequences(&mut encoder, &fleet)?;
        roles(&mut encoder, &fleet)?;
        workers(&mut encoder, &fleet)?;
        pages(&mut encoder, &fleet)
    }
}

/// Usage of the role whose pool is fullest: what a fleet runs out of first.
pub(super) fn usage_of_fullest_role(fleet: &FleetStatus) -> f64 {
    let usage = |role: &str| {
        let of_role = || fleet.workers.iter().filter(|worker| worker.role == role);
        let total: u64 = of_role().map(|w| u64::from(w.pages.total)).sum();
        let used: u64 = of_role().map(used_pages).sum();
        used as f64 / total.max(1) as f64
    };
    ROLES.into_iter().map(usage).fold(0.0, f64::max)
}

fn used_pages(worker: &WorkerStatus) -> u64 {
    u64::from(worker.pages.owned) + u64::from(worker.pages.fenced)
}

fn requests(
    encoder: &mut DescriptorEncoder<'_>,
    fleet: &FleetStatus,
    active: usize,
    preparing: usize,
) -> fmt::Result {
    let running = active.saturating_sub(fleet.requests_waiting);
    gauge(encoder, &catalog::RUNNING, running)?;
    let mut waiting = row(encoder, &catalog::WAITING)?;
    for (stage, count) in [("prepare", preparing), ("queue", fleet.requests_waiting)] {
        waiting
            .encode_family(&[("stage", stage)])?
            .encode_gauge(&count)?;
    }
    gauge(encoder, &catalog::TOKENS_WAITING, fleet.tokens_waiting)?;
    gauge(encoder, &catalog::HANDOFFS_RUNNING, fleet.handoffs_running)
}

fn sequences(encoder: &mut DescriptorEncoder<'_>, fleet: &FleetStatus) -> fmt::Result {
    for (declared, label, counts) in [
        (&catalog::HANDOFFS, "outcome", &fleet.handoffs_by),
        (&catalog::REPLAYS, "reason", &fleet.replays_by),
        (&catalog::DECISIONS, "what", &fleet.decisions_by),
        (&catalog::WORKER_EJECTIONS, "cause", &fleet.ejections_by),
        (
            &catalog::BREAKER_OPENINGS,
            "scope",
            &fleet.breaker_openings_by,
        ),
    ] {
        let mut family = row(encoder, declared)?;
        for (word, count) in counts {
            ConstCounter::new(*count).encode(family.encode_family(&[(label, *word)])?)?;
        }
    }
    for (declared, count) in [
        (&catalog::RETRIES, fleet.retries_total),
        (&catalog::REPLAY_TOKENS, fleet.replay_tokens_total),
        (&catalog::POISON, fleet.poison_total),
        (&catalog::HOPELESS, fleet.hopeless_total),
    ] {
        ConstCounter::new(count).encode(row(encoder, declared)?)?;
    }
    gauge(encoder, &catalog::BREAKER_PAIRS, fleet.pairs_open)
}

fn roles(encoder: &mut DescriptorEncoder<'_>, fleet: &FleetStatus) -> fmt::Result {
    let mut family = row(encoder, &catalog::WORKERS)?;
    // All nine rows always: an alert on "no decode worker" needs the zero.
    for role in ROLES {
        for state in STATES {
            let count = fleet
                .workers
                .iter()
                .filter(|w| w.role == role && w.state == state)
                .count();
            family
                .encode_family(&[("role", role), ("state", state)])?
                .encode_gauge(&count)?;
        }
    }
    Ok(())
}

fn labels(worker: &WorkerStatus) -> [(&'static str, &str); 2] {
    [("worker", &worker.id), ("role", &worker.role)]
}

/// A gauge with one row per worker.
fn per_worker<V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    declared: &'static Row,
    fleet: &FleetStatus,
    value: impl Fn(&WorkerStatus) -> V,
) -> fmt::Result {
    let mut family = row(encoder, declared)?;
    for worker in &fleet.workers {
        family
            .encode_family(&labels(worker))?
            .encode_gauge(&value(worker))?;
    }
    Ok(())
}

fn workers(encoder: &mut DescriptorEncoder<'_>, fleet: &FleetStatus) -> fmt::Result {
    per_worker(encoder, &catalog::WORKER_SEATS, fleet, |w| w.seats)?;
    per_worker(encoder, &catalog::WORKER_QUEUED, fleet, |w| {
        w.prefill_tokens_queued
    })?;
    per_worker(encoder, &catalog::WORKER_STEP, fleet, |w| {
        f64::from(w.step_us) / 1e6
    })?;
    per_worker(encoder, &catalog::WORKER_BREAKER, fleet, |w| {
        match w.breaker {
            "open" => 1.0,
            "half_open" => 0.5,
            _ => 0.0,
        }
    })?;
    let mut family = row(encoder, &catalog::WORKER_STEPS)?;
    for worker in &fleet.workers {
        ConstCounter::new(worker.steps).encode(family.encode_family(&labels(worker))?)?;
    }
    steps(encoder, fleet)
}

/// How workers bring prompts and decoding together.
fn steps(encoder: &mut DescriptorEncoder<'_>, fleet: &FleetStatus) -> fmt::Result {
    let mut family = row(encoder, &catalog::WORKER_PROMPT_STEPS)?;
    for worker in &fleet.workers {
        for (kind, count) in [
            ("mixed", worker.steps_mixed),
            ("paused", worker.steps_paused),
        ] {
            let [id, role] = labels(worker);
            let labels = [id, role, ("kind", kind)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    per_worker(encoder, &catalog::WORKER_PENALTY, fleet, |w| {
        f64::from(w.mixed_penalty_permille) / 1e3
    })?;
    let mut family = row(encoder, &catalog::WORKER_PREEMPTED)?;
    for worker in &fleet.workers {
        ConstCounter::new(worker.preempted).encode(family.encode_family(&labels(worker))?)?;
    }
    Ok(())
}

fn pages(encoder: &mut DescriptorEncoder<'_>, fleet: &FleetStatus) -> fmt::Result {
    let mut family = row(encoder, &catalog::PAGES)?;
    for worker in &fleet.workers {
        let pages = worker.pages;
        for (state, count) in [
            ("free", pages.free),
            ("owned", pages.owned),
            ("cached", pages.cached),
            ("fenced", pages.fenced),
        ] {
            let [id, role] = labels(worker);
            family
                .encode_family(&[id, role, ("state", state)])?
                .encode_gauge(&count)?;
        }
    }
    per_worker(encoder, &catalog::KV_USAGE, fleet, |worker| {
        used_pages(worker) as f64 / f64::from(worker.pages.total.max(1))
    })?;
    let mut family = row(encoder, &catalog::CACHE_CONFIG)?;
    for worker in &fleet.workers {
        let (page, total) = (worker.page_size.to_string(), worker.pages.total.to_string());
        let [id, role] = labels(worker);
        let labels = [id, role, ("block_size", &page), ("num_gpu_blocks", &total)];
        family.encode_info(&labels)?;
    }
    Ok(())
}

/// Begins the rows of a declared metric.
fn row<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    declared: &'static Row,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    let kind = match declared.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Info => MetricType::Info,
    };
    let help = format!("{}.", declared.help);
    encoder.encode_descriptor(declared.family(), &help, None, kind)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    declared: &'static Row,
    value: impl EncodeGaugeValue + Copy,
) -> fmt::Result {
    ConstGauge::new(value).encode(row(encoder, declared)?)
}
