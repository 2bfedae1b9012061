//! A histogram of atomics: observed without a lock, merged from counts that were kept elsewhere,
//! and read by two encoders under two names.
//!
//! Bounds contain those of vLLM's metric of the same meaning, so that `--metrics-compat vllm` shows
//! the same observations and nothing is counted twice.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric},
};

/// Seconds to the first token. vLLM's from 1 ms to 2560 s, and some between.
pub(super) const TTFT_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];

/// Seconds between tokens. vLLM's begin at 10 ms, where a fast model is already slow.
pub(super) const TOKEN_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

/// Seconds of a request and its parts; its longest life is 600 s by default.
pub(super) const REQUEST_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0,
    10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

/// Token counts: 1, 2, 5 times powers of ten up to the longest context.
pub(super) const LENGTH_BOUNDS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5,
    5e5, 1e6, 2e6, 5e6, 1e7,
];

/// Labels of an exemplar, of which there are none.
type NoLabels = [(&'static str, &'static str); 0];

/// Counts by upper bound. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: &'static [f64],
    /// One per bound, then what is above all.
    counts: Box<[AtomicU64]>,
    /// Sum in nanounits: integers add without a compare-and-swap loop. 2^64 of them are 584 years.
    sum_nanos: AtomicU64,
}

/// The counts at one instant; each with its upper bound, the last with infinity.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) sum: f64,
    pub(super) count: u64,
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// Nothing observed; `bounds` rise.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner {
            bounds,
            counts,
            sum_nanos: AtomicU64::new(0),
        }))
    }

    pub(super) fn observe(&self, value: f64) {
        self.add(bucket(self.0.bounds, value), 1);
        self.add_sum(value);
    }

    /// Adds what a [`Gaps`] has kept.
    pub(super) fn merge(&self, counts: &[u32], sum: f64) {
        for (index, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.add(index, u64::from(*count));
        }
        self.add_sum(sum);
    }

    fn add(&self, index: usize, count: u64) {
        if let Some(cell) = self.0.counts.get(index) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0 and above; the cast saturates"
    )]
    fn add_sum(&self, value: f64) {
        let nanos = (value.max(0.0) * 1e9).round() as u64;
        self.0.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What was observed. The count is that of the buckets, so that the two always agree.
    pub(super) fn read(&self) -> Reading {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self
            .0
            .counts
            .iter()
            .map(|cell| cell.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        Reading {
            sum: self.0.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9,
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

impl Reading {
    /// The same with fewer bounds; those that are no bound here are left out.
    pub(super) fn coarser(mut self, bounds: &[f64]) -> Self {
        let mut merged: Vec<(f64, u64)> = Vec::with_capacity(bounds.len() + 1);
        let mut below = 0;
        for (bound, count) in self.buckets {
            below += count;
            if bound.is_infinite() || bounds.contains(&bound) {
                merged.push((bound, std::mem::take(&mut below)));
            }
        }
        self.buckets = merged;
        self
    }

    pub(super) fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        encoder.encode_histogram::<NoLabels>(self.sum, self.count, &self.buckets, None)
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, encoder: MetricEncoder<'_>) -> std::fmt::Result {
        self.read().encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

/// Index of the bucket for `value`.
fn bucket(bounds: &[f64], value: f64) -> usize {
    bounds.partition_point(|bound| *bound < value)
}

/// Gaps between the tokens of one request, kept beside it: a token costs an addition in memory of
/// its own thread, and the shared histogram hears of it every [`GAPS_KEPT_MAX`] tokens.
#[derive(Debug)]
pub(super) struct Gaps {
    pub(super) counts: [u32; TOKEN_BOUNDS.len() + 1],
    pub(super) sum: f64,
    pub(super) tokens: u64,
}

/// Tokens after which kept gaps are passed on.
pub(super) const GAPS_KEPT_MAX: u64 = 64;

impl Default for Gaps {
    fn default() -> Self {
        Self {
            counts: [0; TOKEN_BOUNDS.len() + 1],
            sum: 0.0,
            tokens: 0,
        }
    }
}

impl Gaps {
    /// `tokens` came together, `gap` seconds after the token before; `None`: they were the first.
    pub(super) fn add(&mut self, tokens: u64, gap: Option<f64>) {
        self.tokens += tokens;
        let mut together = tokens.saturating_sub(1);
        if let Some(gap) = gap {
            self.sum += gap;
            if let Some(count) = self.counts.get_mut(bucket(TOKEN_BOUNDS, gap)) {
                *count += 1;
            }
        }
        let room = u64::from(u32::MAX - self.counts[0]);
        together = together.min(room);
        self.counts[0] += u32::try_from(together).unwrap_or(u32::MAX);
    }
}
