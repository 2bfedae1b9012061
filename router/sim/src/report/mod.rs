//! From an outcome to figures: who was served well, how long it took, what the workers did.
//!
//! Called by `dopd._router`; the CLI makes tables and plots of the JSON. The schema is these types,
//! `docs/guides/simulate.md` describes it; [`VERSION`] rises when a field changes its meaning.
//! All of it is simulated.

mod series;
mod spread;
mod tenants;

use serde::{Deserialize, Serialize};

pub use self::{
    series::{BUCKETS_MAX, Bucket},
    spread::{Spread, quantile},
    tenants::{TENANTS_MAX, TenantFigures},
};
use crate::{
    outcome::{Ending, Outcome, RequestOutcome},
    scenario::SloRule,
};

/// Of the schema.
pub const VERSION: u32 = 1;
/// The longest tenth of prompts is one in so many.
const LONG_ONE_IN: usize = 10;

/// Shares of requests that met their targets, 0 to 1; 0 where there is no request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attainment {
    /// Both targets: time to first token and time per token.
    pub overall: f64,
    /// Both, of the longest tenth of prompts. What a policy gives up shows here first.
    pub longest_tenth: f64,
    /// Time to first token alone.
    pub ttft: f64,
    /// Time per token alone, of those that finished.
    pub tpot: f64,
}

/// What was served well, per second of arrivals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// Requests that met both targets.
    pub requests_per_s: f64,
    /// Their answers' tokens.
    pub tokens_per_s: f64,
}

/// What became of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All that came.
    pub requests: u64,
    /// Met both targets.
    pub good: u64,
    /// Got their whole answer.
    pub finished: u64,
    /// Refused or failed.
    pub refused: u64,
    /// Neither when the run ended.
    pub unfinished: u64,
    /// Prompt computed at a worker labelled decode.
    pub stolen: u64,
    /// Answer made where the prompt was computed.
    pub kept: u64,
    /// Times that pages were taken back.
    pub preemptions: u64,
    /// Times that a request was computed again for a fault.
    pub replays: u64,
    /// Changes of a label.
    pub flips: u64,
    /// Prompt tokens in all.
    pub prompt_tokens: u64,
    /// Those of them that were cached.
    pub cached_tokens: u64,
}

/// Shares of the workers' time, 0 to 1; together 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Utilisation {
    /// Steps that compute prompts only.
    pub prefill: f64,
    /// Steps that decode only.
    pub decode: f64,
    /// Steps that do both.
    pub mixed: f64,
    /// No step.
    pub idle: f64,
}

/// One run in figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// [`VERSION`].
    pub version: u32,
    /// First to last arrival, in seconds; goodput and rate are per second of this.
    pub arrivals_s: f64,
    /// First event to last, in seconds; utilisation is a share of this.
    pub duration_s: f64,
    /// Requests that came, per second.
    pub rate: f64,
    /// See [`Goodput`].
    pub goodput: Goodput,
    /// See [`Attainment`].
    pub attainment: Attainment,
    /// Time to first token in ms, of all that had one.
    pub ttft_ms: Spread,
    /// The same, of the longest tenth of prompts.
    pub ttft_long_ms: Spread,
    /// Mean time per later token in ms, of all finished answers of two tokens or more.
    pub tpot_ms: Spread,
    /// See [`Counts`].
    pub counts: Counts,
    /// Of the whole fleet.
    pub utilisation: Utilisation,
    /// Worker by worker.
    pub workers: Vec<Utilisation>,
    /// The busiest tenants; empty if there are none.
    pub tenants: Vec<TenantFigures>,
    /// By time of arrival.
    pub series: Vec<Bucket>,
}

impl Figures {
    /// Of one run, judged by the rule that the run was given.
    pub fn of(outcome: &Outcome, slo: &SloRule) -> Self {
        let judged: Vec<Judged<'_>> = outcome
            .requests
            .iter()
            .map(|request| Judged::of(request, slo))
            .collect();
        let long = longest(&judged);
        let first = judged.iter().map(|one| one.request.arrival).min();
        let last = judged.iter().map(|one| one.request.arrival).max();
        let span_us = last
            .zip(first)
            .map_or(0, |(last, first)| last.since(first).0);
        let arrivals_s = span_us as f64 / 1e6;
        let good = judged.iter().filter(|one| one.is_good());
        let good_tokens: u64 = good
            .clone()
            .map(|one| u64::from(one.request.output_tokens))
            .sum();
        let goodput = Goodput {
            requests_per_s: ratio(good.count() as f64, arrivals_s),
            tokens_per_s: ratio(good_tokens as f64, arrivals_s),
        };
        Self {
            version: VERSION,
            arrivals_s,
            duration_s: outcome.end.0 as f64 / 1e6,
            rate: ratio(judged.len() as f64, arrivals_s),
            goodput,
            attainment: attainment(&judged, &long),
            ttft_ms: Spread::of(judged.iter().filter_map(|one| one.ttft_ms).collect()),
            ttft_long_ms: Spread::of(long.iter().filter_map(|one| one.ttft_ms).collect()),
            tpot_ms: Spread::of(judged.iter().filter_map(|one| one.tpot_ms).collect()),
            counts: counts(&judged),
            utilisation: utilisation(outcome, &outcome.workers),
            workers: outcome
                .workers
                .iter()
                .map(|worker| utilisation(outcome, std::slice::from_ref(worker)))
                .collect(),
            tenants: tenants::of(&judged),
            series: series::of(&judged),
        }
    }
}

/// A request and how it did.
#[derive(Clone, Copy, Debug)]
struct Judged<'a> {
    request: &'a RequestOutcome,
    ttft_ms: Option<f64>,
    /// `None` for an answer of one token, and for one that did not finish.
    tpot_ms: Option<f64>,
    meets_ttft: bool,
    meets_tpot: bool,
}

impl<'a> Judged<'a> {
    fn of(request: &'a RequestOutcome, slo: &SloRule) -> Self {
        let ttft = request.first.map(|first| first.since(request.arrival));
        let decode = (request.ending == Ending::Finished)
            .then(|| request.end.zip(request.first))
            .flatten()
            .map(|(end, first)| end.since(first));
        let later = request.output_tokens.saturating_sub(1);
        Self {
            request,
            ttft_ms: ttft.map(|ttft| ttft.0 as f64 / 1e3),
            tpot_ms: decode
                .filter(|_| later > 0)
                .map(|decode| decode.0 as f64 / 1e3 / f64::from(later)),
            meets_ttft: ttft.is_some_and(|ttft| ttft <= request.ttft_target),
            // In whole microseconds of the answer, so that a target met exactly is met.
            meets_tpot: decode.is_some_and(|it| it.0 <= slo.tpot.0 * u64::from(later)),
        }
    }

    const fn is_good(&self) -> bool {
        self.meets_ttft && self.meets_tpot
    }
}

/// The longest tenth of prompts, at least one; those that came first among equals.
fn longest<'a>(judged: &[Judged<'a>]) -> Vec<Judged<'a>> {
    let mut by_length = judged.to_vec();
    by_length.sort_by_key(|one| std::cmp::Reverse(one.request.prompt_tokens));
    by_length.truncate(judged.len().div_ceil(LONG_ONE_IN));
    by_length
}

fn attainment(judged: &[Judged<'_>], long: &[Judged<'_>]) -> Attainment {
    let finished: Vec<_> = judged
        .iter()
        .filter(|one| one.request.ending == Ending::Finished)
        .collect();
    Attainment {
        overall: share(judged, Judged::is_good),
        longest_tenth: share(long, Judged::is_good),
        ttft: share(judged, |one| one.meets_ttft),
        tpot: share(&finished, |one| one.meets_tpot),
    }
}

fn counts(judged: &[Judged<'_>]) -> Counts {
    let mut counts = Counts {
        requests: judged.len() as u64,
        ..Counts::default()
    };
    for one in judged {
        let request = one.request;
        match request.ending {
            Ending::Finished => counts.finished += 1,
            Ending::Rejected => counts.refused += 1,
            Ending::Unfinished => counts.unfinished += 1,
        }
        counts.good += u64::from(one.is_good());
        counts.stolen += u64::from(request.is_stolen);
        counts.kept += u64::from(request.is_kept);
        counts.preemptions += u64::from(request.preemptions);
        counts.replays += u64::from(request.replays);
        counts.prompt_tokens += u64::from(request.prompt_tokens);
        counts.cached_tokens += u64::from(request.cached_tokens);
    }
    counts
}

fn utilisation(outcome: &Outcome, workers: &[crate::outcome::WorkerOutcome]) -> Utilisation {
    let whole_us = outcome.end.0 as f64 * workers.len() as f64;
    let part = |of: fn(&crate::outcome::WorkerOutcome) -> u64| {
        ratio(workers.iter().map(of).sum::<u64>() as f64, whole_us)
    };
    let (prefill, decode, mixed) = (
        part(|worker| worker.prefill_us),
        part(|worker| worker.decode_us),
        part(|worker| worker.mixed_us),
    );
    Utilisation {
        prefill,
        decode,
        mixed,
        idle: (1.0 - prefill - decode - mixed).max(0.0),
    }
}

fn share<T>(all: &[T], is_so: impl Fn(&T) -> bool) -> f64 {
    ratio(
        all.iter().filter(|one| is_so(one)).count() as f64,
        all.len() as f64,
    )
}

/// `part / whole`; 0 of nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
