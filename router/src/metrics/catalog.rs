//! Every metric, declared once: name, type, labels, help. The registry, the reference page and the
//! checks of dashboards and alerts all read this table.

use std::fmt::Write as _;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size: `_bucket`, `_sum`, `_count`.
    Histogram,
    /// Always 1; its labels tell.
    Info,
}

impl Kind {
    /// The word of the exposition format; an info is a gauge to Prometheus.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// As it is queried; a histogram without `_bucket`, `_sum`, `_count`.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Labels besides `model`; each has a bounded set of values.
    pub labels: &'static [&'static str],
    /// Without a full stop.
    pub help: &'static str,
    /// Absent unless the setting that is named here is set.
    pub needs: Option<&'static str>,
}

impl Row {
    /// What the registry calls it: the encoder adds `_total` and `_info` itself.
    pub(super) fn family(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Info => self.name.strip_suffix("_info").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        }
    }

    /// Its base unit, if the name tells one.
    pub fn unit(&self) -> Option<&'static str> {
        ["seconds", "ratio", "tokens", "pages"]
            .into_iter()
            .find(|unit| {
                self.family()
                    .strip_suffix(unit)
                    .is_some_and(|stem| stem.ends_with('_'))
            })
    }
}

/// The word in a list of at most one.
const fn only(words: &[&'static str]) -> Option<&'static str> {
    match words {
        [] => None,
        [word, ..] => Some(*word),
    }
}

macro_rules! rows {
    ($(
        $id:ident $kind:ident $name:literal [$($label:literal)*] $help:literal
        $(if $needs:literal)?;
    )*) => {
        $(
            pub(super) const $id: Row = Row {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
                needs: only(&[$($needs)?]),
            };
        )*

        /// The table, in the order of the reference.
        const ROWS: &[Row] = &[$($id),*];
    };
}

rows! {
    BUILD Info "dopd_build_info" ["version"] "Version of the router";
    REQUESTS Counter "dopd_requests_total" ["code"]
        "Requests by how they ended: ok, or the code of the error";
    REJECTIONS Counter "dopd_rejections_total" ["reason"]
        "Requests that failed before a worker had them, by the code of the error";
    SEQUENCES Counter "dopd_sequences_total" ["finish_reason"]
        "Choices by how they ended: stop, length, abort (the client left), error";
    RUNNING Gauge "dopd_requests_running" [] "Requests that a worker has";
    WAITING Gauge "dopd_requests_waiting" ["stage"]
        "Requests that wait: prepare (template, tokenizer) or queue (for a worker)";
    TOKENS_WAITING Gauge "dopd_waiting_tokens" [] "Prompt tokens that wait for a worker";
    TTFT Histogram "dopd_time_to_first_token_seconds" [] "Arrival to first token, per request";
    TPOT Histogram "dopd_time_per_output_token_seconds" []
        "Mean time between tokens after the first, per request";
    ITL Histogram "dopd_inter_token_latency_seconds" []
        "Time between a token and the one before it; tokens that came together have none";
    DURATION Histogram "dopd_request_duration_seconds" [] "Arrival to end, per request";
    QUEUE Histogram "dopd_request_queue_seconds" []
        "Arrival to a place at a worker, tokenization included";
    PREFILL Histogram "dopd_request_prefill_seconds" []
        "Place at a worker to first token";
    TRANSFER Histogram "dopd_request_transfer_seconds" []
        "First token to the switch to the decode worker, of requests that were handed off; tokens \
         keep coming from the prefill worker meanwhile";
    DECODE Histogram "dopd_request_decode_seconds" []
        "Switch, or first token if there was none, to last token";
    PROMPT_LENGTH Histogram "dopd_request_prompt_tokens" [] "Prompt tokens per request";
    ANSWER_LENGTH Histogram "dopd_request_generation_tokens" []
        "Answer tokens per request, all choices";
    ANSWER_LIMIT Histogram "dopd_request_limit_tokens" []
        "Answer tokens that a choice may have: max_tokens, or what the context leaves";
    PROMPT_TOKENS Counter "dopd_prompt_tokens_total" []
        "Prompt tokens of requests that got a first token";
    PREFIX_QUERIES Counter "dopd_prefix_cache_queries_total" []
        "Prompt tokens of requests that a worker computed, or had computed already";
    PREFIX_HITS Counter "dopd_prefix_cache_hits_total" []
        "Of these, those that the worker had computed already when the request first came to it";
    GENERATION_TOKENS Counter "dopd_generation_tokens_total" []
        "Tokens of answers, counted as they come";
    HANDOFFS_RUNNING Gauge "dopd_handoffs_running" [] "Hand-offs under way";
    HANDOFFS Counter "dopd_handoffs_total" ["outcome"]
        "Hand-offs by outcome: arrived, lost (the transfer failed), refused (by the decode \
         worker), worker_lost, withdrawn (not needed any more, or too slow)";
    REPLAYS Counter "dopd_replays_total" ["reason"]
        "Sequences computed again: worker_died, worker_broken, worker_left, worker_silent, \
         worker_stuck, asked, lost, preempted";
    REPLAY_TOKENS Counter "dopd_replay_tokens_total" []
        "Tokens of prompts and answers computed again for them";
    POISON Counter "dopd_poison_rejections_total" []
        "Requests given up because several workers died under them";
    HOPELESS Counter "dopd_hopeless_requests_total" []
        "Requests given up in the queue because they could not be done before their deadline";
    DECISIONS Counter "dopd_scheduler_decisions_total" ["what"]
        "Prompts that were stolen (computed by a worker labelled decode), demoted (they can no \
         longer meet their target and step behind), refused as late, or evicted from a full queue \
         for a tenant with less than its share";
    RETRIES Counter "dopd_retries_total" []
        "Sequences placed again because a worker refused them";
    WORKERS Gauge "dopd_workers" ["role" "state"] "Attached workers by role and state";
    WORKER_SEATS Gauge "dopd_worker_seats" ["worker" "role"] "Seats open at the worker";
    WORKER_QUEUED Gauge "dopd_worker_prefill_queued_tokens" ["worker" "role"]
        "Prompt tokens at the worker that are not computed yet";
    WORKER_STEP Gauge "dopd_worker_step_seconds" ["worker" "role"] "Duration of its last step";
    WORKER_STEPS Counter "dopd_worker_steps_total" ["worker" "role"] "Steps since it started";
    WORKER_PROMPT_STEPS Counter "dopd_worker_shared_steps_total" ["worker" "role" "kind"]
        "Steps that computed prompts while sequences decode there: mixed (both), paused (prompts \
         alone between two decode steps)";
    WORKER_PENALTY Gauge "dopd_worker_mixed_penalty_ratio" ["worker" "role"]
        "How much dearer mixed steps are there than the sum, as the worker has learnt";
    WORKER_PREEMPTED Counter "dopd_worker_preempted_total" ["worker" "role"]
        "Sequences whose pages were needed by others; they are computed again";
    WORKER_RESTARTS Counter "dopd_worker_restarts_total" ["worker"]
        "Local workers started again after they died";
    WORKER_EJECTIONS Counter "dopd_worker_ejections_total" ["cause"]
        "Times a worker lost its work although its stream was there: silent, stuck (its step does \
         not end)";
    SESSIONS_ENDED Counter "dopd_worker_sessions_ended_total" ["cause"]
        "Sessions of workers by why they ended: left (the worker ended it), replaced (by a new one \
         of its name), stream (it broke), silent, stuck, protocol";
    WORKER_BREAKER Gauge "dopd_worker_breaker_open" ["worker" "role"]
        "Whether the worker gets no new work because of its failures: 1 yes, 0.5 on trial, 0 no";
    BREAKER_OPENINGS Counter "dopd_breaker_openings_total" ["scope"]
        "Times that a breaker opened: of a worker, of a pair (hand-offs from one to the other)";
    BREAKER_PAIRS Gauge "dopd_breaker_pairs_open" []
        "Pairs of workers between which no hand-off is tried for now";
    OUTPUT_ERRORS Counter "dopd_output_errors_total" []
        "Sequences that were failed alone because their worker said of them what cannot be";
    KV_ACCOUNTING Counter "dopd_kv_accounting_errors_total" ["worker"]
        "Times that the free, owned, cached and fenced pages of a worker began not to add up";
    PROTOCOL_ERRORS Counter "dopd_protocol_errors_total" []
        "Messages of workers that broke the protocol; their sessions were ended";
    PAGES Gauge "dopd_kv_pages" ["worker" "role" "state"]
        "Pages of KV memory: free, owned, cached, fenced (a peer may still write)";
    KV_USAGE Gauge "dopd_kv_usage_ratio" ["worker" "role"]
        "Share of the pages that are owned or fenced";
    CACHE_CONFIG Info "dopd_cache_config_info" ["worker" "role" "block_size" "num_gpu_blocks"]
        "Tokens per page and pages of a worker's pool";
    SLO_TARGET Gauge "dopd_slo_target_seconds" ["target"] "The latency target"
        if "slo.ttft_ms or slo.tpot_ms";
    SLO_REQUESTS Counter "dopd_slo_requests_total" ["target" "met"]
        "Requests by latency target and whether they met it; failures of the server miss"
        if "slo.ttft_ms or slo.tpot_ms";
    GOODPUT_REQUESTS Counter "dopd_goodput_requests_total" [] "Requests that met all targets"
        if "slo.ttft_ms or slo.tpot_ms";
    GOODPUT_TOKENS Counter "dopd_goodput_tokens_total" []
        "Tokens of answers that met all targets" if "slo.ttft_ms or slo.tpot_ms";
    CONNECTIONS Gauge "dopd_connections" ["front"] "Open connections: http, grpc";
    CONNECTIONS_REFUSED Counter "dopd_connections_refused_total" ["front"]
        "Connections closed at once because there were too many";
    AUTH_FAILURES Counter "dopd_auth_failures_total" ["reason"]
        "Requests that were let in by no key, by the code of the error";
    QUOTA_REFUSALS Counter "dopd_quota_refusals_total" ["key"]
        "Requests refused because the named key had used up its quota";
    FIELDS_IGNORED Counter "dopd_request_fields_ignored_total" []
        "Fields of requests that were read past: unknown, or without effect here";
    PANICS Counter "dopd_panics_total" []
        "Requests that met a defect of the router and got an internal error";
    LINES_DROPPED Counter "dopd_log_lines_dropped_total" []
        "Lines that were not written because nobody read standard output or error";
    REFUSALS_UNLOGGED Counter "dopd_refusals_unlogged_total" []
        "Refused requests without a log line of their own: more than 20 in that second";
}

/// Every metric of the router under its own name, in the order of the reference.
pub fn catalog() -> &'static [Row] {
    ROWS
}

/// The reference page in Markdown, as `docs/reference/metrics.md` holds it.
pub fn reference() -> String {
    let mut page = String::from(
        "# Metrics\n\nGenerated from `router/src/metrics/catalog.rs`; every metric but the first \
         has the label `model`.\n\n| name | type | labels | unit | what |\n|---|---|---|---|---|\n",
    );
    for row in ROWS {
        let labels: Vec<String> = row
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let needs = row
            .needs
            .map_or_else(String::new, |needs| format!(" (only with `{needs}`)"));
        // Writing into a String cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {}{needs} |",
            row.name,
            row.kind.word(),
            labels.join(", "),
            row.unit().unwrap_or_default(),
            row.help,
        );
    }
    page
}
