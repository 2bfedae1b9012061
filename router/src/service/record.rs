//! The account of one request: counts, times, one log line and one metric at its end.

use std::time::{Duration, Instant};

use super::Arrival;
use crate::metrics::{ActiveRequest, Metrics, RequestOutcome};

/// Everything that is told about a request when it ends.
#[derive(Debug)]
pub(super) struct Record {
    id: String,
    arrived: Instant,
    prompt_tokens: u32,
    completion_tokens: u64,
    first_token: Option<Instant>,
    /// Sum over choices: last token minus first, and tokens after the first.
    decode_seconds: f64,
    decode_tokens: u64,
    metrics: Metrics,
    /// Counts the request as running for as long as the record lives.
    _active: ActiveRequest,
}

impl Record {
    pub(super) fn new(arrival: &Arrival, metrics: &Metrics, prompt_tokens: u32) -> Self {
        Self {
            id: arrival.id.clone(),
            arrived: arrival.at,
            prompt_tokens,
            completion_tokens: 0,
            first_token: None,
            decode_seconds: 0.0,
            decode_tokens: 0,
            metrics: metrics.clone(),
            _active: metrics.request_started(),
        }
    }

    pub(super) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    pub(super) fn completion_tokens(&self) -> u64 {
        self.completion_tokens
    }

    /// `tokens` arrived for a choice whose tokens before arrived at `before`.
    pub(super) fn count(&mut self, tokens: u64, now: Instant, before: Option<Instant>) {
        if tokens == 0 {
            return;
        }
        self.completion_tokens += tokens;
        self.first_token.get_or_insert(now);
        match before {
            Some(before) => {
                self.decode_seconds += now.saturating_duration_since(before).as_secs_f64();
                self.decode_tokens += tokens;
            }
            // The first token of the choice ends its prefill; only what follows is decode.
            None => self.decode_tokens += tokens - 1,
        }
    }

    /// Tells of the request; `code` is `ok` or that of the error.
    pub(super) fn end(self, code: &'static str) {
        let ttft = self.first_token.map(|first| first - self.arrived);
        let tpot = (self.decode_tokens > 0).then(|| {
            let mean = self.decode_seconds / self.decode_tokens as f64;
            Duration::from_secs_f64(mean)
        });
        // To the microsecond: what is below is noise.
        let millis = |time: Option<Duration>| time.map(|t| t.as_micros() as f64 / 1e3);
        tracing::info!(
            id = %self.id,
            r#in = self.prompt_tokens,
            out = self.completion_tokens,
            ttft_ms = millis(ttft),
            tpot_ms = millis(tpot),
            code,
            "request done"
        );
        self.metrics.request_done(&RequestOutcome {
            code,
            prompt_tokens: self.prompt_tokens.into(),
            completion_tokens: self.completion_tokens,
            cached_tokens: 0,
            ttft,
            tpot,
            duration: self.arrived.elapsed(),
        });
    }
}
