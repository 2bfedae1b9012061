//! What requests and refusals count, registered under the names of the catalog.

use std::ops::Deref;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry},
};

use super::{
    CODE_OK, SequenceEnd, SessionEnd,
    catalog::{self, Row},
    histogram::{Histogram, LENGTH_BOUNDS, REQUEST_BOUNDS, TOKEN_BOUNDS, TTFT_BOUNDS},
};
use crate::error::Reason;

/// What clients connect to.
const FRONTS: [&str; 3] = ["http", "grpc", "admin"];

/// Label values of a family with one label.
pub(super) type One = [(&'static str, &'static str); 1];
/// The same with names from the configuration.
pub(super) type Named = [(&'static str, String); 1];

/// Counters and histograms; shared with the collector of vLLM's names.
#[derive(Clone)]
pub(super) struct Rows {
    pub(super) requests: Family<One, Counter>,
    pub(super) rejections: Family<One, Counter>,
    pub(super) sequences: Family<One, Counter>,
    pub(super) ttft: Histogram,
    pub(super) tpot: Histogram,
    pub(super) itl: Histogram,
    pub(super) duration: Histogram,
    pub(super) queue: Histogram,
    pub(super) prefill: Histogram,
    pub(super) transfer: Histogram,
    pub(super) decode: Histogram,
    pub(super) prompt_length: Histogram,
    pub(super) answer_length: Histogram,
    pub(super) answer_limit: Histogram,
    pub(super) prompt_tokens: Counter,
    pub(super) prefix_queries: Counter,
    pub(super) prefix_hits: Counter,
    pub(super) generation_tokens: Counter,
    pub(super) fields_ignored: Counter,
    pub(super) panics: Counter,
    pub(super) lines_dropped: Counter,
    pub(super) refusals_unlogged: Counter,
    pub(super) protocol_errors: Counter,
    pub(super) sessions_ended: Family<One, Counter>,
    pub(super) output_errors: Counter,
    pub(super) kv_accounting: Family<Named, Counter>,
    pub(super) worker_restarts: Family<Named, Counter>,
    pub(super) connections: Family<One, Gauge>,
    pub(super) connections_refused: Family<One, Counter>,
    pub(super) auth_failures: Family<One, Counter>,
    pub(super) quota_refusals: Family<Named, Counter>,
}

impl Rows {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let rows = Self {
            requests: add(registry, &catalog::REQUESTS, Family::default()),
            rejections: add(registry, &catalog::REJECTIONS, Family::default()),
            sequences: add(registry, &catalog::SEQUENCES, Family::default()),
            ttft: add(registry, &catalog::TTFT, Histogram::new(TTFT_BOUNDS)),
            tpot: add(registry, &catalog::TPOT, Histogram::new(TOKEN_BOUNDS)),
            itl: add(registry, &catalog::ITL, Histogram::new(TOKEN_BOUNDS)),
            duration: requests(registry, &catalog::DURATION),
            queue: requests(registry, &catalog::QUEUE),
            prefill: requests(registry, &catalog::PREFILL),
            transfer: requests(registry, &catalog::TRANSFER),
            decode: requests(registry, &catalog::DECODE),
            prompt_length: lengths(registry, &catalog::PROMPT_LENGTH),
            answer_length: lengths(registry, &catalog::ANSWER_LENGTH),
            answer_limit: lengths(registry, &catalog::ANSWER_LIMIT),
            prompt_tokens: add(registry, &catalog::PROMPT_TOKENS, Counter::default()),
            prefix_queries: add(registry, &catalog::PREFIX_QUERIES, Counter::default()),
            prefix_hits: add(registry, &catalog::PREFIX_HITS, Counter::default()),
            generation_tokens: add(registry, &catalog::GENERATION_TOKENS, Counter::default()),
            fields_ignored: add(registry, &catalog::FIELDS_IGNORED, Counter::default()),
            panics: add(registry, &catalog::PANICS, Counter::default()),
            lines_dropped: add(registry, &catalog::LINES_DROPPED, Counter::default()),
            refusals_unlogged: add(registry, &catalog::REFUSALS_UNLOGGED, Counter::default()),
            protocol_errors: add(registry, &catalog::PROTOCOL_ERRORS, Counter::default()),
            sessions_ended: add(registry, &catalog::SESSIONS_ENDED, Family::default()),
            output_errors: add(registry, &catalog::OUTPUT_ERRORS, Counter::default()),
            kv_accounting: add(registry, &catalog::KV_ACCOUNTING, Family::default()),
            worker_restarts: add(registry, &catalog::WORKER_RESTARTS, Family::default()),
            connections: add(registry, &catalog::CONNECTIONS, Family::default()),
            connections_refused: add(registry, &catalog::CONNECTIONS_REFUSED, Family::default()),
            auth_failures: add(registry, &catalog::AUTH_FAILURES, Family::default()),
            quota_refusals: add(registry, &catalog::QUOTA_REFUSALS, Family::default()),
        };
        // Present from the start, so that a rate over the first minute is right.
        drop(rows.requests.get_or_create(&[("code", CODE_OK)]));
        for front in FRONTS {
            drop(rows.connections.get_or_create(&[("front", front)]));
            drop(rows.connections_refused.get_or_create(&[("front", front)]));
        }
        let unauthenticated = Reason::Unauthenticated.row().code;
        drop(
            rows.auth_failures
                .get_or_create(&[("reason", unauthenticated)]),
        );
        for end in SequenceEnd::ALL {
            drop(rows.sequences_ended(end));
        }
        for end in SessionEnd::ALL {
            drop(rows.worker_sessions_ended(end));
        }
        rows
    }

    pub(super) fn sequences_ended(&self, end: SequenceEnd) -> impl Deref<Target = Counter> {
        self.sequences
            .get_or_create(&[("finish_reason", end.word())])
    }

    pub(super) fn worker_sessions_ended(&self, end: SessionEnd) -> impl Deref<Target = Counter> {
        self.sessions_ended.get_or_create(&[("cause", end.word())])
    }
}

/// Registers `metric` under its row's name.
pub(super) fn add<M: Metric + Clone>(registry: &mut Registry, row: &Row, metric: M) -> M {
    registry.register(row.family(), row.help, metric.clone());
    metric
}

fn requests(registry: &mut Registry, row: &Row) -> Histogram {
    add(registry, row, Histogram::new(REQUEST_BOUNDS))
}

fn lengths(registry: &mut Registry, row: &Row) -> Histogram {
    add(registry, row, Histogram::new(LENGTH_BOUNDS))
}
