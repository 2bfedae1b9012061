//! Tokens of one request as they come, before the shared counters hear of them.

use std::time::{Duration, Instant};

use super::{
    Metrics,
    histogram::{GAPS_KEPT_MAX, Gaps},
};

/// Longest time that tokens are kept back: a page a second later shows them.
const KEPT_MAX: Duration = Duration::from_secs(1);

/// Counts the tokens of one request. What it keeps back is passed on when it is dropped.
#[derive(Debug)]
pub struct Progress {
    metrics: Metrics,
    prompt_tokens: u64,
    gaps: Gaps,
    passed_on: Option<Instant>,
}

impl Progress {
    /// Of a request with `prompt_tokens` tokens; they count at its first token.
    pub fn new(metrics: &Metrics, prompt_tokens: u64) -> Self {
        Self {
            metrics: metrics.clone(),
            prompt_tokens,
            gaps: Gaps::default(),
            passed_on: None,
        }
    }

    /// `tokens` came at `now`; the choice's token before them at `before`.
    pub fn tokens(&mut self, tokens: u64, now: Instant, before: Option<Instant>) {
        let gap = before.map(|before| now.saturating_duration_since(before).as_secs_f64());
        self.gaps.add(tokens, gap);
        let Some(passed_on) = self.passed_on else {
            let counter = &self.metrics.inner.rows.prompt_tokens;
            counter.inc_by(self.prompt_tokens);
            self.passed_on = Some(now);
            return;
        };
        if self.gaps.tokens >= GAPS_KEPT_MAX || now.saturating_duration_since(passed_on) >= KEPT_MAX
        {
            self.pass_on();
            self.passed_on = Some(now);
        }
    }

    fn pass_on(&mut self) {
        let gaps = std::mem::take(&mut self.gaps);
        let rows = &self.metrics.inner.rows;
        rows.itl.merge(&gaps.counts, gaps.sum);
        rows.generation_tokens.inc_by(gaps.tokens);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.gaps.tokens > 0 {
            self.pass_on();
        }
    }
}
