//! The account of one request: counts, times, one log line and its metrics at its end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Arrival;
use crate::{
    error::{Error, Reason},
    metrics::{
        CODE_OK, Counted, Metrics, Parts, Progress, RequestOutcome, SequenceEnd, SloTargets,
    },
    streams::sink::{FinishReason, SeatNews},
    trace::{self, Finished, Gate, TraceContext, Value},
};

/// Refused requests that get a log line, per second: a client that hammers fills no disk.
static REFUSALS: Gate = Gate::new(20);

/// What a request asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Tokens of its prompt.
    pub(super) prompt_tokens: u32,
    /// Choices.
    pub(super) choices: u32,
    /// Choices of each prompt.
    pub(super) choices_each: u32,
    /// Most tokens of one choice.
    pub(super) limit_tokens: u32,
    /// What it should keep.
    pub(super) targets: SloTargets,
    /// `gen_ai.operation.name` of its span.
    pub(super) operation: &'static str,
}

/// Everything that is told about a request when it ends.
#[derive(Debug)]
pub(super) struct Record {
    arrival: Arrival,
    asked: Asked,
    choices: Box<[Choice]>,
    completion_tokens: u64,
    /// Tokens of its prompts that the first workers had already, by the first choice of each.
    cached_tokens: u32,
    /// When a worker first had a choice of it.
    placed: Option<Instant>,
    first_token: Option<Instant>,
    /// The last switch to another worker.
    switched: Option<Instant>,
    last_token: Option<Instant>,
    /// Where its last choice was placed, and where it went from there.
    prefill_worker: Option<Arc<str>>,
    decode_worker: Option<Arc<str>>,
    handoffs: u32,
    /// Sum over choices: last token minus first, and tokens after the first.
    decode_seconds: f64,
    decode_tokens: u64,
    progress: Progress,
    metrics: Metrics,
    /// Counts the request as running for as long as the record lives.
    _active: Counted,
}

#[derive(Clone, Debug, Default)]
struct Choice {
    places: u32,
    tokens: u64,
    is_finished: bool,
}

impl Record {
    pub(super) fn new(arrival: &Arrival, metrics: &Metrics, asked: Asked) -> Self {
        Self {
            arrival: arrival.clone(),
            asked,
            choices: vec![Choice::default(); asked.choices as usize].into(),
            completion_tokens: 0,
            cached_tokens: 0,
            placed: None,
            first_token: None,
            switched: None,
            last_token: None,
            prefill_worker: None,
            decode_worker: None,
            handoffs: 0,
            decode_seconds: 0.0,
            decode_tokens: 0,
            progress: Progress::new(metrics, asked.prompt_tokens.into()),
            metrics: metrics.clone(),
            _active: metrics.request_started(),
        }
    }

    pub(super) fn prompt_tokens(&self) -> u32 {
        self.asked.prompt_tokens
    }

    pub(super) fn cached_tokens(&self) -> u32 {
        self.cached_tokens
    }

    pub(super) fn completion_tokens(&self) -> u64 {
        self.completion_tokens
    }

    /// A choice has a place, or changed it.
    pub(super) fn seat(&mut self, choice: usize, news: SeatNews<'_>, now: Instant) {
        match news {
            SeatNews::Placed { worker } => {
                self.placed.get_or_insert(now);
                self.prefill_worker = Some(Arc::clone(worker));
                self.decode_worker = None;
                if let Some(choice) = self.choices.get_mut(choice) {
                    choice.places += 1;
                }
            }
            SeatNews::Reused { tokens } => {
                let is_told = choice.is_multiple_of(self.asked.choices_each.max(1) as usize);
                let is_first = (self.choices.get(choice)).is_some_and(|choice| choice.places == 1);
                if is_told && is_first {
                    let sum = self.cached_tokens.saturating_add(tokens);
                    self.cached_tokens = sum.min(self.asked.prompt_tokens);
                }
            }
            SeatNews::Switched { worker } => {
                self.switched = Some(now);
                self.handoffs += 1;
                self.decode_worker = Some(Arc::clone(worker));
            }
        }
    }

    /// `tokens` arrived for a choice whose tokens before arrived at `before`.
    pub(super) fn count(
        &mut self,
        choice: usize,
        tokens: u64,
        now: Instant,
        before: Option<Instant>,
    ) {
        if tokens == 0 {
            return;
        }
        self.completion_tokens += tokens;
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        if let Some(choice) = self.choices.get_mut(choice) {
            choice.tokens += tokens;
        }
        match before {
            Some(before) => {
                self.decode_seconds += now.saturating_duration_since(before).as_secs_f64();
                self.decode_tokens += tokens;
            }
            // The first token of the choice ends its prefill; only what follows is decode.
            None => self.decode_tokens += tokens - 1,
        }
        self.progress.tokens(tokens, now, before);
    }

    /// The prompt is computed; what is made after it is not wanted.
    pub(super) fn scored(&mut self, now: Instant) {
        self.progress.tokens(0, now, None);
    }

    /// A choice is complete.
    pub(super) fn finished(&mut self, choice: usize, reason: FinishReason) {
        let Some(choice) = self.choices.get_mut(choice) else {
            return;
        };
        choice.is_finished = true;
        let end = match reason {
            FinishReason::Stop => SequenceEnd::Stop,
            FinishReason::Length => SequenceEnd::Length,
        };
        self.metrics.sequence_done(end, choice.tokens);
    }

    /// Whether the request is charged. One that failed without a token is not, unless its client
    /// left it to a worker: leaving before the first token must not make prompts free.
    fn costs(&self, code: &str) -> bool {
        let was_left = is_abort(code) && self.placed.is_some();
        code == CODE_OK || self.completion_tokens > 0 || was_left
    }

    /// Tells of the request; `code` is `ok` or that of the error.
    pub(super) fn end(self, code: &'static str) {
        if self.costs(code) {
            self.arrival
                .used(self.asked.prompt_tokens, self.completion_tokens);
        }
        let outcome = self.outcome(code);
        let Self {
            arrival, choices, ..
        } = &self;
        let end = if is_abort(code) {
            SequenceEnd::Abort
        } else {
            SequenceEnd::Error
        };
        for choice in choices.iter().filter(|choice| !choice.is_finished) {
            self.metrics.sequence_done(end, choice.tokens);
        }
        let placed_again = |choice: &Choice| choice.places.saturating_sub(1);
        tracing::info!(
            target: "dopd::request",
            id = %arrival.id,
            client_id = arrival.client_id.as_deref(),
            tenant = &*arrival.caller.tenant,
            key = &*arrival.caller.key,
            r#in = self.asked.prompt_tokens,
            out = self.completion_tokens,
            cached = self.cached_tokens,
            ttft_ms = millis(outcome.ttft),
            tpot_ms = millis(outcome.tpot),
            prefill_worker = self.prefill_worker.as_deref(),
            decode_worker = self.decode_worker.as_deref(),
            handoffs = self.handoffs,
            replays = choices.iter().map(placed_again).sum::<u32>(),
            code,
            duration_ms = millis(Some(outcome.duration)),
            "request done"
        );
        self.metrics.request_done(&outcome);
        if let Some(context) = self.arrival.trace {
            trace::export(self.spans(context, code));
        }
    }

    fn spans(&self, context: TraceContext, code: &'static str) -> Finished {
        let text = |text: &str| Value::Text(text.to_owned().into());
        let mut attributes = vec![
            ("gen_ai.response.id", text(&self.arrival.id)),
            (
                "gen_ai.request.max_tokens",
                Value::Count(self.asked.limit_tokens.into()),
            ),
            (
                "gen_ai.request.choice.count",
                Value::Count(self.asked.choices.into()),
            ),
            (
                "gen_ai.usage.input_tokens",
                Value::Count(self.asked.prompt_tokens.into()),
            ),
            (
                "gen_ai.usage.output_tokens",
                Value::Count(self.completion_tokens),
            ),
            ("dopd.tenant", text(&self.arrival.caller.tenant)),
        ];
        let workers = [
            ("dopd.prefill_worker", &self.prefill_worker),
            ("dopd.decode_worker", &self.decode_worker),
        ];
        attributes.extend(
            (workers.into_iter()).filter_map(|(key, worker)| Some((key, text(worker.as_deref()?)))),
        );
        let part = |name, start: Option<Instant>, end: Option<Instant>| {
            let (start, end) = (start?, end?);
            Some((name, start.min(end), end))
        };
        let decodes_from = self
            .first_token
            .map(|first| self.switched.map_or(first, |at| at.max(first)));
        let parts = [
            part("queue", Some(self.arrival.at), self.placed),
            part("prefill", self.placed, self.first_token),
            part("transfer", self.first_token, self.switched),
            part("decode", decodes_from, self.last_token),
        ];
        Finished {
            context,
            operation: self.asked.operation,
            start: self.arrival.at,
            end: Instant::now(),
            attributes,
            error: (code != CODE_OK).then_some(code),
            parts: parts.into_iter().flatten().collect(),
        }
    }

    fn outcome(&self, code: &'static str) -> RequestOutcome {
        let tpot = (self.decode_tokens > 0).then(|| {
            let mean = self.decode_seconds / self.decode_tokens as f64;
            Duration::from_secs_f64(mean)
        });
        RequestOutcome {
            code,
            prompt_tokens: self.asked.prompt_tokens.into(),
            cached_tokens: self.cached_tokens.into(),
            completion_tokens: self.completion_tokens,
            longest_tokens: self.choices.iter().map(|c| c.tokens).max().unwrap_or(0),
            choices: self.asked.choices,
            limit_tokens: self.asked.limit_tokens,
            targets: self.asked.targets,
            was_placed: self.placed.is_some(),
            ttft: since(self.first_token, Some(self.arrival.at)),
            tpot,
            duration: self.arrival.at.elapsed(),
            parts: self.parts(),
        }
    }

    fn parts(&self) -> Parts {
        let decodes_from = self.switched.max(self.first_token);
        Parts {
            queue: since(self.placed, Some(self.arrival.at)),
            prefill: since(self.first_token, self.placed),
            transfer: since(self.switched, self.first_token),
            decode: self
                .first_token
                .and_then(|_| since(self.last_token, decodes_from)),
        }
    }
}

/// Counts and logs a request that never started.
pub(super) fn refused(arrival: &Arrival, metrics: &Metrics, error: &Error) {
    let code = error.reason.row().code;
    let duration = arrival.at.elapsed();
    match REFUSALS.admit(Instant::now()) {
        Some(unlogged) => tracing::info!(
            target: "dopd::request",
            id = %arrival.id,
            client_id = arrival.client_id.as_deref(),
            tenant = &*arrival.caller.tenant,
            key = &*arrival.caller.key,
            code,
            duration_ms = millis(Some(duration)),
            unlogged = (unlogged > 0).then_some(unlogged),
            "request refused"
        ),
        None => metrics.refusal_unlogged(),
    }
    metrics.request_done(&RequestOutcome {
        code,
        duration,
        ..RequestOutcome::default()
    });
    if let Some(context) = arrival.trace {
        trace::export(Finished {
            context,
            operation: "refuse",
            start: arrival.at,
            end: Instant::now(),
            attributes: Vec::new(),
            error: Some(code),
            parts: Vec::new(),
        });
    }
}

fn is_abort(code: &str) -> bool {
    [Reason::Cancelled, Reason::ClientTooSlow]
        .iter()
        .any(|reason| reason.row().code == code)
}

fn since(to: Option<Instant>, from: Option<Instant>) -> Option<Duration> {
    Some(to?.saturating_duration_since(from?))
}

/// To the microsecond: what is below is noise.
fn millis(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_micros() as f64 / 1e3)
}
