//! `--metrics-compat vllm`: the same values under vLLM's names and labels, with its bounds, for
//! boards, autoscalers and endpoint pickers that were written for it.
//!
//! Names and bounds are those of vLLM 0.3x, `vllm/v1/metrics/loggers.py`. To its readers the whole
//! fleet is one engine, number 0. Not here: what dopd does not have (`LoRA`, speculation,
//! multi-modal caches, a prefix cache).

use std::{fmt, sync::Arc, time::Duration};

use dopd_sync::Count;
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{
    CODE_OK, RequestOutcome, SequenceEnd,
    fleet::usage_of_fullest_role,
    histogram::{Histogram, LENGTH_BOUNDS, REQUEST_BOUNDS},
    rows::Rows,
};
use crate::status::FleetStatus;

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// Name, help, observations, bounds to show.
type Row<'a> = (&'static str, &'static str, &'a Histogram, &'static [f64]);

/// What vLLM observes and dopd's own names do not.
#[derive(Clone, Debug)]
pub(super) struct Extra {
    /// First token to last, transfer included.
    decode: Histogram,
    /// Place at a worker to last token.
    inference: Histogram,
    /// Prompt tokens that no worker had computed before.
    computed: Histogram,
    longest: Histogram,
    choices: Histogram,
}

impl Default for Extra {
    fn default() -> Self {
        Self {
            decode: Histogram::new(REQUEST_BOUNDS),
            inference: Histogram::new(REQUEST_BOUNDS),
            computed: Histogram::new(LENGTH_BOUNDS),
            longest: Histogram::new(LENGTH_BOUNDS),
            choices: Histogram::new(CHOICES),
        }
    }
}

impl Extra {
    pub(super) fn count(&self, outcome: &RequestOutcome) {
        if outcome.was_placed {
            let computed = outcome.prompt_tokens.saturating_sub(outcome.cached_tokens);
            self.computed.observe(computed as f64);
        }
        let parts = outcome.parts;
        let Some(prefill) = parts.prefill else { return };
        let sum = |parts: [Option<Duration>; 2]| parts.into_iter().flatten().sum::<Duration>();
        let decode = sum([parts.transfer, parts.decode]);
        self.decode.observe(decode.as_secs_f64());
        self.inference.observe((prefill + decode).as_secs_f64());
        if outcome.code == CODE_OK {
            self.longest.observe(outcome.longest_tokens as f64);
            self.choices.observe(f64::from(outcome.choices));
        }
    }
}

/// Encodes the rows of [`super::Metrics`] under vLLM's names.
pub(super) struct Names {
    rows: Rows,
    extra: Extra,
    fleet: Arc<Mutex<FleetStatus>>,
    active: Count,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    pub(super) fn new(
        rows: &Rows,
        extra: &Extra,
        fleet: &Arc<Mutex<FleetStatus>>,
        active: &Count,
    ) -> Self {
        Self {
            rows: rows.clone(),
            extra: extra.clone(),
            fleet: Arc::clone(fleet),
            active: active.clone(),
        }
    }

    /// Times: our name's bounds contain vLLM's.
    fn times(&self) -> [Row<'_>; 8] {
        let (rows, extra) = (&self.rows, &self.extra);
        [
            (
                "time_to_first_token_seconds",
                "To first token",
                &rows.ttft,
                TTFT,
            ),
            (
                "inter_token_latency_seconds",
                "Between tokens",
                &rows.itl,
                TOKEN,
            ),
            (
                "request_time_per_output_token_seconds",
                "Mean of a request",
                &rows.tpot,
                TOKEN,
            ),
            (
                "e2e_request_latency_seconds",
                "Arrival to end",
                &rows.duration,
                REQUEST,
            ),
            (
                "request_queue_time_seconds",
                "In WAITING",
                &rows.queue,
                REQUEST,
            ),
            (
                "request_prefill_time_seconds",
                "In PREFILL",
                &rows.prefill,
                REQUEST,
            ),
            (
                "request_decode_time_seconds",
                "In DECODE",
                &extra.decode,
                REQUEST,
            ),
            (
                "request_inference_time_seconds",
                "In RUNNING",
                &extra.inference,
                REQUEST,
            ),
        ]
    }

    /// Counts of tokens and choices.
    fn counts(&self) -> [Row<'_>; 6] {
        let (rows, extra, all) = (&self.rows, &self.extra, LENGTH_BOUNDS);
        [
            ("request_prompt_tokens", "Prompt", &rows.prompt_length, all),
            (
                "request_prefill_kv_computed_tokens",
                "Computed",
                &extra.computed,
                all,
            ),
            (
                "request_generation_tokens",
                "Answer",
                &rows.answer_length,
                all,
            ),
            (
                "request_max_num_generation_tokens",
                "Longest choice",
                &extra.longest,
                all,
            ),
            (
                "request_params_max_tokens",
                "max_tokens",
                &rows.answer_limit,
                all,
            ),
            ("request_params_n", "n", &extra.choices, CHOICES),
        ]
    }

    fn histograms(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, histogram, bounds) in self.times().into_iter().chain(self.counts()) {
            let (name, help) = (format!("vllm:{name}"), format!("{help}."));
            let kind = MetricType::Histogram;
            let row = encoder.encode_descriptor(&name, &help, None, kind)?;
            histogram.read().coarser(bounds).encode(row)?;
        }
        Ok(())
    }

    fn gauges(&self, encoder: &mut DescriptorEncoder<'_>, fleet: &FleetStatus) -> fmt::Result {
        let (active, waiting) = (self.active.get(), fleet.requests_waiting);
        let running = active.saturating_sub(waiting) as f64;
        for (name, help, value) in [
            (
                "num_requests_running",
                "Requests that a worker has",
                running,
            ),
            (
                "num_requests_waiting",
                "Requests that wait for a worker",
                waiting as f64,
            ),
            (
                "kv_cache_usage_perc",
                "KV usage of the fullest role; 1 means 100 percent",
                usage_of_fullest_role(fleet),
            ),
        ] {
            let (name, help) = (format!("vllm:{name}"), format!("{help}."));
            let gauge = encoder.encode_descriptor(&name, &help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)?;
        }
        cache_config(encoder, fleet)
    }

    fn counters(&self, encoder: &mut DescriptorEncoder<'_>, fleet: &FleetStatus) -> fmt::Result {
        let rows = &self.rows;
        let preempted = fleet.replays_by.get("preempted").copied().unwrap_or(0);
        for (name, help, value) in [
            ("prompt_tokens", "Prompt tokens", rows.prompt_tokens.get()),
            (
                "prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache",
                rows.prefix_queries.get(),
            ),
            (
                "prefix_cache_hits",
                "Prompt tokens found in the prefix cache",
                rows.prefix_hits.get(),
            ),
            (
                "generation_tokens",
                "Answer tokens",
                rows.generation_tokens.get(),
            ),
            (
                "num_preemptions",
                "Sequences whose pages were taken",
                preempted,
            ),
        ] {
            let (name, help) = (format!("vllm:{name}"), format!("{help}."));
            let counter = encoder.encode_descriptor(&name, &help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(counter)?;
        }
        let (help, kind) = ("Choices by how they ended.", MetricType::Counter);
        let mut success = encoder.encode_descriptor("vllm:request_success", help, None, kind)?;
        for end in SequenceEnd::ALL {
            let count = ConstCounter::new(rows.sequences_ended(end).get());
            count.encode(success.encode_family(&[("finished_reason", end.word())])?)?;
        }
        Ok(())
    }
}

impl Collector for Names {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let fleet = self.fleet.lock().clone();
        self.gauges(&mut encoder, &fleet)?;
        self.counters(&mut encoder, &fleet)?;
        self.histograms(&mut encoder)
    }
}

/// One row: pages of the whole fleet. vLLM declares a gauge, as do its readers.
fn cache_config(encoder: &mut DescriptorEncoder<'_>, fleet: &FleetStatus) -> fmt::Result {
    let pages: u64 = fleet.workers.iter().map(|w| u64::from(w.pages.total)).sum();
    let page = fleet.workers.first().map_or(0, |worker| worker.page_size);
    let help = "Tokens per page and pages of the fleet.";
    let name = "vllm:cache_config_info";
    let mut row = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    let labels = [
        ("block_size", page.to_string()),
        ("num_gpu_blocks", pages.to_string()),
    ];
    ConstGauge::new(1).encode(row.encode_family(&labels)?)
}
