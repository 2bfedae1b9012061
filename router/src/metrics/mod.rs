//! Prometheus metrics: what is counted, under which names, and the page that shows them.
//!
//! Own names start with `dopd_`, base units, `_total` on counters; every label has a bounded set of
//! values (error codes of the table, roles, states, names of attached workers). `service` reports
//! requests, `workers` protocol errors, `cluster` restarts; gauges of the fleet come from the last
//! [`FleetStatus`], which whoever renders the page sets first. Nothing here is on the path of a
//! token.

mod fleet;
mod slo;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::status::FleetStatus;

pub use slo::SloTargets;

/// Media type of [`Metrics::render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `code` of a request that ended well; others are the codes of the error table.
pub const CODE_OK: &str = "ok";

/// Upper bounds of the time to first token, in seconds: a mock answers in 1 ms, a long prompt in
/// minutes.
const TTFT_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.75, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0,
];

/// Upper bounds of the time per output token, in seconds.
const TPOT_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.4, 1.0, 2.5,
];

/// Upper bounds of a request's life, in seconds; its longest life is 600 s by default.
const DURATION_BUCKETS: [f64; 14] = [
    0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 120.0, 600.0,
];

/// How one request ended, told once by the service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestOutcome {
    /// [`CODE_OK`], or `Reason::row().code`.
    pub code: &'static str,
    /// Tokens of the prompt; 0 if it was refused before it was tokenized.
    pub prompt_tokens: u64,
    /// Tokens of all choices' answers.
    pub completion_tokens: u64,
    /// Prompt tokens whose KV was found in a cache.
    pub cached_tokens: u64,
    /// From arrival to the first token, if there was one.
    pub ttft: Option<Duration>,
    /// Mean time between tokens after the first, if there were two.
    pub tpot: Option<Duration>,
    /// From arrival to the end.
    pub duration: Duration,
}

/// A request that has not ended; dropped at its end, however it comes.
#[derive(Debug)]
#[must_use = "the request counts as ended when this is dropped"]
pub struct ActiveRequest(Arc<AtomicUsize>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The metrics of one router. Clones share everything.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    active: Arc<AtomicUsize>,
    /// Written by [`Metrics::set_fleet`], read by the collector in `registry`.
    fleet: Arc<Mutex<FleetStatus>>,
    requests: Family<[(&'static str, &'static str); 1], Counter>,
    ttft: Histogram,
    tpot: Histogram,
    duration: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generation_tokens: Counter,
    fields_ignored: Counter,
    protocol_errors: Counter,
    worker_restarts: Family<[(&'static str, String); 1], Counter>,
    slo: slo::Slo,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics of a router that serves `model`, without latency targets.
    pub fn new(model: &str) -> Self {
        Self::with_targets(model, SloTargets::default())
    }

    /// The same, counting requests and tokens that meet `targets`.
    pub fn with_targets(model: &str, targets: SloTargets) -> Self {
        let mut registry = Registry::with_prefix("dopd");
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "Version of the router", Info::new(version));
        let label = (Cow::Borrowed("model"), Cow::Owned(model.to_owned()));
        let served = registry.sub_registry_with_label(label);
        let active = Arc::new(AtomicUsize::new(0));
        let fleet = Arc::new(Mutex::new(FleetStatus::default()));
        served.register_collector(Box::new(fleet::FleetCollector::new(&fleet, &active)));
        let mut inner = Inner {
            active,
            fleet,
            requests: Family::default(),
            ttft: seconds(
                served,
                "time_to_first_token",
                "Arrival to first token",
                &TTFT_BUCKETS,
            ),
            tpot: seconds(
                served,
                "time_per_output_token",
                "Mean time between tokens after the first, per request",
                &TPOT_BUCKETS,
            ),
            duration: seconds(
                served,
                "request_duration",
                "Arrival to end",
                &DURATION_BUCKETS,
            ),
            prompt_tokens: counter(served, "prompt_tokens", "Prompt tokens of ended requests"),
            cached_tokens: counter(
                served,
                "cached_prompt_tokens",
                "Prompt tokens whose KV was found in a cache",
            ),
            generation_tokens: counter(served, "generation_tokens", "Tokens of answers"),
            fields_ignored: counter(
                served,
                "request_fields_ignored",
                "Fields of requests that were read past: unknown, or without effect here",
            ),
            protocol_errors: counter(
                served,
                "protocol_errors",
                "Messages of workers that broke the protocol; their sessions were ended",
            ),
            worker_restarts: Family::default(),
            slo: slo::Slo::new(targets, served),
            registry: Registry::default(),
        };
        served.register(
            "requests",
            "Requests by how they ended",
            inner.requests.clone(),
        );
        served.register(
            "worker_restarts",
            "Local workers started again after they died",
            inner.worker_restarts.clone(),
        );
        // Present from the start, so that a rate over the first minute is right.
        drop(inner.requests.get_or_create(&[("code", CODE_OK)]));
        inner.registry = registry;
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Counts a request as running or waiting until the returned value is dropped.
    pub fn request_started(&self) -> ActiveRequest {
        self.inner.active.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(Arc::clone(&self.inner.active))
    }

    /// Counts the end of a request, also of one that was refused before it started.
    pub fn request_done(&self, outcome: &RequestOutcome) {
        let inner = &self.inner;
        inner
            .requests
            .get_or_create(&[("code", outcome.code)])
            .inc();
        inner.prompt_tokens.inc_by(outcome.prompt_tokens);
        inner.cached_tokens.inc_by(outcome.cached_tokens);
        inner.generation_tokens.inc_by(outcome.completion_tokens);
        if let Some(ttft) = outcome.ttft {
            inner.ttft.observe(ttft.as_secs_f64());
        }
        if let Some(tpot) = outcome.tpot {
            inner.tpot.observe(tpot.as_secs_f64());
        }
        inner.duration.observe(outcome.duration.as_secs_f64());
        inner.slo.count(outcome);
    }

    /// Counts fields of a request that were read past.
    pub fn fields_ignored(&self, count: u64) {
        self.inner.fields_ignored.inc_by(count);
    }

    /// Counts a message of a worker that broke the protocol.
    pub fn protocol_error(&self) {
        self.inner.protocol_errors.inc();
    }

    /// Counts a restart of the local worker `name`.
    pub fn worker_restarted(&self, name: &str) {
        self.inner
            .worker_restarts
            .get_or_create(&[("worker", name.to_owned())])
            .inc();
    }

    /// Sets what the gauges of the fleet show from now on.
    pub fn set_fleet(&self, status: &FleetStatus) {
        self.inner.fleet.lock().clone_from(status);
    }

    /// The page in OpenMetrics text; see [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        let mut page = String::new();
        // Writing into a String cannot fail, so an error is a defect of an encoder.
        if text::encode(&mut page, &self.inner.registry).is_err() {
            tracing::error!("metrics page is incomplete: an encoder failed");
        }
        page
    }
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn seconds(registry: &mut Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let histogram = Histogram::new(buckets.iter().copied());
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}
