//! Gauges and counters of the fleet, encoded straight from the last [`FleetStatus`].
//!
//! A collector instead of gauges that are set: one page shows one instant, and a worker that left
//! leaves no row behind.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::status::FleetStatus;

const ROLES: [&str; 3] = ["prefill", "decode", "mixed"];
const STATES: [&str; 3] = ["ready", "suspect", "draining"];

/// Encodes the status that [`super::Metrics::set_fleet`] left.
#[derive(Debug)]
pub(super) struct FleetCollector {
    fleet: Arc<Mutex<FleetStatus>>,
    active: Arc<AtomicUsize>,
}

impl FleetCollector {
    /// Shows `fleet`; `active` counts requests that have not ended.
    pub(super) fn new(fleet: &Arc<Mutex<FleetStatus>>, active: &Arc<AtomicUsize>) -> Self {
        Self {
            fleet: Arc::clone(fleet),
            active: Arc::clone(active),
        }
    }
}

impl Collector for FleetCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let fleet = self.fleet.lock().clone();
        let active = self.active.load(Ordering::Relaxed);
        requests(&mut encoder, &fleet, active)?;
        workers(&mut encoder, &fleet)?;
        pages(&mut encoder, &fleet)
    }
}

fn requests(encoder: &mut DescriptorEncoder, fleet: &FleetStatus, active: usize) -> fmt::Result {
    let running = active.saturating_sub(fleet.requests_waiting);
    gauge(
        encoder,
        "requests_running",
        "Requests that a worker has",
        running,
    )?;
    gauge(
        encoder,
        "requests_waiting",
        "Requests that wait for a worker",
        fleet.requests_waiting,
    )?;
    gauge(
        encoder,
        "tokens_waiting",
        "Prompt tokens that wait",
        fleet.tokens_waiting,
    )?;
    gauge(
        encoder,
        "handoffs_running",
        "Hand-offs under way",
        fleet.handoffs_running,
    )?;
    counter(
        encoder,
        "handoffs",
        "Hand-offs that arrived",
        fleet.handoffs_total,
    )?;
    counter(
        encoder,
        "replays",
        "Sequences that were computed again",
        fleet.replays_total,
    )
}

fn workers(encoder: &mut DescriptorEncoder, fleet: &FleetStatus) -> fmt::Result {
    let kind = MetricType::Gauge;
    let mut family =
        encoder.encode_descriptor("workers", "Attached workers by role and state.", None, kind)?;
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

fn pages(encoder: &mut DescriptorEncoder, fleet: &FleetStatus) -> fmt::Result {
    let help = "Pages of KV memory by worker and state.";
    let mut family = encoder.encode_descriptor("kv_pages", help, None, MetricType::Gauge)?;
    for worker in &fleet.workers {
        let pages = worker.pages;
        for (state, count) in [
            ("free", pages.free),
            ("owned", pages.owned),
            ("cached", pages.cached),
            ("fenced", pages.fenced),
        ] {
            let labels = [("worker", worker.id.as_str()), ("state", state)];
            family.encode_family(&labels)?.encode_gauge(&count)?;
        }
    }
    let help = "Share of KV pages that are owned or fenced, by worker.";
    // The crate's own unit is the plural, which no neighbour uses.
    let unit = Unit::Other("ratio".to_owned());
    let kind = MetricType::Gauge;
    let mut family = encoder.encode_descriptor("kv_usage", help, Some(&unit), kind)?;
    for worker in &fleet.workers {
        let total = f64::from(worker.pages.total.max(1));
        let used = f64::from(worker.pages.owned.saturating_add(worker.pages.fenced));
        family
            .encode_family(&[("worker", worker.id.as_str())])?
            .encode_gauge(&(used / total))?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    value: impl EncodeGaugeValue + Copy,
) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    let help = format!("{help}.");
    gauge.encode(encoder.encode_descriptor(name, &help, None, MetricType::Gauge)?)
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    let help = format!("{help}.");
    counter.encode(encoder.encode_descriptor(name, &help, None, MetricType::Counter)?)
}
