//! Prometheus metrics: what is counted, under which names, and the page that shows them.
//!
//! [`catalog`] declares every name; every label has a bounded set of values (codes of the error
//! table, roles, states, names of attached workers and configured keys). `service` reports
//! requests and quotas, the fronts connections and refused keys, `workers` protocol errors,
//! `cluster` restarts; gauges of the fleet come from the last [`FleetStatus`], which whoever
//! renders the page sets first. A token costs an addition in its request's own [`Progress`];
//! everything else is per request.

mod catalog;
mod fleet;
mod histogram;
mod outcome;
mod page;
mod progress;
mod rows;
mod slo;
#[cfg(test)]
mod tests;
mod vllm;

use std::{borrow::Cow, collections::BTreeSet, fmt, sync::Arc};

use dopd_sync::Count;
use parking_lot::Mutex;
use prometheus_client::{encoding::text, metrics::info::Info, registry::Registry};

use self::rows::Rows;
use crate::{status::FleetStatus, trace};

pub use dopd_sync::Counted;

pub use self::{
    catalog::{Kind, catalog, reference},
    outcome::{Connection, Parts, RequestOutcome, SequenceEnd, SessionEnd},
    page::Format,
    progress::Progress,
    slo::SloTargets,
};

/// `code` of a request that ended well; others are the codes of the error table.
pub const CODE_OK: &str = "ok";

/// Names of workers that have a row of their own in a counter that outlives them.
const NAMES_MAX: usize = 256;

/// Label of the others.
const OTHER: &str = "other";

/// What the metrics are of.
#[derive(Clone, Debug, Default)]
pub struct MetricsConfig {
    /// Name of the served model, a label of every metric.
    pub model: String,
    /// Latency targets.
    pub targets: SloTargets,
    /// Whether the page also has vLLM's names.
    pub vllm: bool,
}

/// Totals for the line of statistics in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Prompt tokens of requests that got a first token.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub generation_tokens: u64,
    /// Requests that have not ended, tokenization included.
    pub active: usize,
}

/// The metrics of one router. Clones share everything.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    /// Submitted and not ended.
    active: Count,
    /// Before submission: template and tokenizer.
    preparing: Count,
    /// Written by [`Metrics::set_fleet`], read by the collectors in `registry`.
    fleet: Arc<Mutex<FleetStatus>>,
    /// Workers in the rows of accounting errors; at most [`NAMES_MAX`].
    miscounting: Mutex<BTreeSet<String>>,
    /// One page at a time is rendered.
    rendering: tokio::sync::Mutex<()>,
    rows: Rows,
    slo: slo::Slo,
    vllm: Option<vllm::Extra>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics of a router that serves `model`, without latency targets.
    pub fn new(model: &str) -> Self {
        Self::with(&MetricsConfig {
            model: model.to_owned(),
            ..MetricsConfig::default()
        })
    }

    /// Metrics as configured.
    pub fn with(config: &MetricsConfig) -> Self {
        let mut registry = Registry::default();
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        let build = &catalog::BUILD;
        registry.register(build.family(), build.help, Info::new(version));
        let label = (Cow::Borrowed("model"), Cow::Owned(config.model.clone()));
        let served = registry.sub_registry_with_label(label);
        let (active, preparing) = (Count::default(), Count::default());
        let fleet = Arc::new(Mutex::new(FleetStatus::default()));
        let gauges = fleet::FleetCollector::new(&fleet, &active, &preparing);
        served.register_collector(Box::new(gauges));
        let rows = Rows::new(served);
        let slo = slo::Slo::new(config.targets, served);
        let vllm = config.vllm.then(|| {
            let labels = [
                ("model_name", config.model.clone()),
                ("engine", "0".to_owned()),
            ];
            let labels = labels.map(|(name, value)| (Cow::Borrowed(name), Cow::Owned(value)));
            let extra = vllm::Extra::default();
            let names = vllm::Names::new(&rows, &extra, &fleet, &active);
            registry
                .sub_registry_with_labels(labels.into_iter())
                .register_collector(Box::new(names));
            extra
        });
        Self {
            inner: Arc::new(Inner {
                registry,
                active,
                preparing,
                fleet,
                miscounting: Mutex::default(),
                rendering: tokio::sync::Mutex::default(),
                rows,
                slo,
                vllm,
            }),
        }
    }

    /// Counts a request as running or waiting for a worker until the returned value is dropped.
    pub fn request_started(&self) -> Counted {
        self.inner.active.enter()
    }

    /// Counts a request as being prepared until the returned value is dropped.
    pub fn request_preparing(&self) -> Counted {
        self.inner.preparing.enter()
    }

    /// Counts the end of a request, also of one that was refused before it started.
    pub fn request_done(&self, outcome: &RequestOutcome) {
        let rows = &self.inner.rows;
        rows.requests.get_or_create(&[("code", outcome.code)]).inc();
        if outcome.code != CODE_OK && !outcome.was_placed {
            rows.rejections
                .get_or_create(&[("reason", outcome.code)])
                .inc();
        }
        let parts = outcome.parts;
        for (histogram, time) in [
            (&rows.ttft, outcome.ttft),
            (&rows.tpot, outcome.tpot),
            (&rows.queue, parts.queue),
            (&rows.prefill, parts.prefill),
            (&rows.transfer, parts.transfer),
            (&rows.decode, parts.decode),
            (&rows.duration, Some(outcome.duration)),
        ] {
            if let Some(time) = time {
                histogram.observe(time.as_secs_f64());
            }
        }
        if outcome.was_placed {
            rows.prompt_length.observe(outcome.prompt_tokens as f64);
            rows.answer_limit.observe(f64::from(outcome.limit_tokens));
            rows.prefix_queries.inc_by(outcome.prompt_tokens);
            rows.prefix_hits.inc_by(outcome.cached_tokens);
        }
        self.inner.slo.count(outcome);
        if let Some(vllm) = &self.inner.vllm {
            vllm.count(outcome);
        }
    }

    /// Counts the end of one choice of `tokens` tokens.
    pub fn sequence_done(&self, end: SequenceEnd, tokens: u64) {
        self.inner.rows.sequences_ended(end).inc();
        if matches!(end, SequenceEnd::Stop | SequenceEnd::Length) {
            self.inner.rows.answer_length.observe(tokens as f64);
        }
    }

    /// Counts fields of a request that were read past.
    pub fn fields_ignored(&self, count: u64) {
        self.inner.rows.fields_ignored.inc_by(count);
    }

    /// Counts a refusal that got no log line of its own.
    pub fn refusal_unlogged(&self) {
        self.inner.rows.refusals_unlogged.inc();
    }

    /// Counts a request that met a defect.
    pub fn panicked(&self) {
        self.inner.rows.panics.inc();
    }

    /// Counts a message of a worker that broke the protocol.
    pub fn protocol_error(&self) {
        self.inner.rows.protocol_errors.inc();
    }

    /// Counts the end of a worker's session.
    pub fn session_ended(&self, end: SessionEnd) {
        self.inner.rows.worker_sessions_ended(end).inc();
    }

    /// Counts a sequence that was failed alone for what its worker said of it.
    pub fn output_error(&self) {
        self.inner.rows.output_errors.inc();
    }

    /// Counts that the pages of the worker `name` began not to add up. Names may be new at each
    /// start: the first [`NAMES_MAX`] have a row of their own.
    pub fn kv_accounting_error(&self, name: &str) {
        let label = {
            let mut names = self.inner.miscounting.lock();
            let is_known = names.contains(name);
            if is_known || names.len() < NAMES_MAX {
                names.insert(name.to_owned());
                name
            } else {
                OTHER
            }
        };
        let errors = &self.inner.rows.kv_accounting;
        errors.get_or_create(&[("worker", label.to_owned())]).inc();
    }

    /// Counts a restart of the local worker `name`.
    pub fn worker_restarted(&self, name: &str) {
        self.inner
            .rows
            .worker_restarts
            .get_or_create(&[("worker", name.to_owned())])
            .inc();
    }

    /// Counts a connection to `front` (`http`, `grpc`, `admin`) as open until the returned value is
    /// dropped.
    pub fn connection(&self, front: &'static str) -> Connection {
        let open = self
            .inner
            .rows
            .connections
            .get_or_create_owned(&[("front", front)]);
        Connection::new(open)
    }

    /// Counts a connection to `front` that was closed at once because there were too many.
    pub fn connection_refused(&self, front: &'static str) {
        let refused = &self.inner.rows.connections_refused;
        refused.get_or_create(&[("front", front)]).inc();
    }

    /// Counts a request without a valid key; `reason` is one of a fixed set of words.
    pub fn auth_failed(&self, reason: &'static str) {
        let failures = &self.inner.rows.auth_failures;
        failures.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts a request that was refused because the key named `key` in the configuration had used
    /// up its quota.
    pub fn quota_refused(&self, key: &str) {
        let refusals = &self.inner.rows.quota_refusals;
        refusals.get_or_create(&[("key", key.to_owned())]).inc();
    }

    /// Sets what the gauges of the fleet show from now on.
    pub fn set_fleet(&self, status: &FleetStatus) {
        self.inner.fleet.lock().clone_from(status);
    }

    /// Totals since the start.
    pub fn totals(&self) -> Totals {
        let inner = &self.inner;
        Totals {
            prompt_tokens: inner.rows.prompt_tokens.get(),
            generation_tokens: inner.rows.generation_tokens.get(),
            active: inner.active.get() + inner.preparing.get(),
        }
    }

    /// The page, rendered off the calling thread and one at a time: scrapes, however many, stall no
    /// stream and take no more than one core.
    pub async fn page(&self, format: Format) -> String {
        let _one = self.inner.rendering.lock().await;
        let metrics = self.clone();
        let page = tokio::task::spawn_blocking(move || metrics.render(format)).await;
        // Only a runtime that shuts down does not run it.
        page.unwrap_or_default()
    }

    /// The page.
    pub fn render(&self, format: Format) -> String {
        let dropped = &self.inner.rows.lines_dropped;
        dropped.inc_by(trace::lines::dropped().saturating_sub(dropped.get()));
        let mut page = String::new();
        // Writing into a String cannot fail, so an error is a defect of an encoder.
        if text::encode(&mut page, &self.inner.registry).is_err() {
            tracing::error!("metrics page is incomplete: an encoder failed");
        }
        match format {
            Format::OpenMetrics => page,
            Format::Text => page::to_text(&page),
        }
    }
}
