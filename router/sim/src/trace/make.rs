//! Arrivals from a [`Spec`].
//!
//! One clock for all of them: a renewal process of mean 1 runs on *expected requests so far*, and
//! the rate says how fast that goes. So drift and minutes keep the statistics of the gaps.

use std::sync::Arc;

use super::{
    random::Random,
    read::{ROWS_MAX, SECONDS_MAX, TOKENS_MAX, micros},
    shape::Shape,
    spec::{Lengths, Process, Spec},
};
use crate::scenario::{Trace, TraceRequest};

const MINUTE_S: f64 = 60.0;
/// A rate that drifts stays the same for so long.
const DRIFT_STEP_S: f64 = 1.0;
/// At most so many pieces of a rate.
const PIECES_MAX: f64 = 1e6;

/// What a spec names files for, already read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// `lengths`, or `a` of a shift.
    pub a: Option<&'a Trace>,
    /// `b` of a shift.
    pub b: Option<&'a Trace>,
    /// `shape` of minutes.
    pub shape: Option<&'a Shape>,
}

/// The trace that `spec` describes. A source that it names and `sources` lacks counts as empty: the
/// requests then have one token.
pub fn make(spec: &Spec, sources: Sources<'_>, seed: u64) -> Trace {
    let mut random = Random::new(seed);
    let cv = match spec.process {
        Process::Renewal { cv } => cv,
        Process::Shift { .. } | Process::Minutes { .. } => 1.0,
    };
    let pieces = pieces(spec, sources.shape);
    let total_s: f64 = pieces.iter().map(|(seconds, _)| seconds).sum();
    let mut requests = Vec::new();
    let (mut start_s, mut done) = (0.0, 0.0);
    let mut next = gap(cv, &mut random);
    for (seconds, rate) in pieces {
        while rate > 0.0 && next < done + seconds * rate && requests.len() < ROWS_MAX {
            let at_s = start_s + (next - done) / rate;
            requests.push(request(spec, sources, at_s, at_s / total_s, &mut random));
            next += gap(cv, &mut random);
        }
        start_s += seconds;
        done += seconds * rate;
    }
    Trace {
        name: spec.text.clone(),
        block_tokens: 0,
        requests,
    }
}

/// (seconds, requests per second), one after the other.
fn pieces(spec: &Spec, shape: Option<&Shape>) -> Vec<(f64, f64)> {
    match &spec.process {
        Process::Shift { rounds, .. } => vec![(spec.seconds * 2.0 * rounds, spec.rate.first)],
        Process::Minutes { .. } => {
            let loads = shape.map_or(&[][..], |shape| &shape.tokens_per_s);
            let mean = loads.iter().sum::<f64>() / (loads.len().max(1) as f64);
            loads
                .iter()
                .take_while({
                    let mut at_s = 0.0;
                    move |_| {
                        at_s += MINUTE_S;
                        at_s <= spec.seconds.min(SECONDS_MAX)
                    }
                })
                .map(|load| (MINUTE_S, spec.rate.first * load / mean))
                .collect()
        }
        Process::Renewal { .. } if !spec.rate.drifts() => {
            vec![(spec.seconds, spec.rate.first)]
        }
        Process::Renewal { .. } => {
            let count = libm::ceil(spec.seconds / DRIFT_STEP_S).clamp(1.0, PIECES_MAX);
            let seconds = spec.seconds / count;
            let mut made = Vec::new();
            let mut at = 0.5;
            while at < count {
                made.push((seconds, spec.rate.at(at / count)));
                at += 1.0;
            }
            made
        }
    }
}

fn gap(cv: f64, random: &mut Random) -> f64 {
    if (cv - 1.0).abs() < f64::EPSILON {
        random.exponential()
    } else {
        random.gamma(1.0 / (cv * cv))
    }
}

fn request(
    spec: &Spec,
    sources: Sources<'_>,
    at_s: f64,
    part: f64,
    random: &mut Random,
) -> TraceRequest {
    let source = match spec.process {
        // Turns of a and b: 0 a, 1 b, 2 a, ...
        Process::Shift { .. } if libm::fmod(libm::floor(at_s / spec.seconds), 2.0) > 0.5 => {
            Some(sources.b)
        }
        Process::Shift { .. } => Some(sources.a),
        _ => spec.lengths.as_ref().map(|_| sources.a),
    };
    let (prompt_tokens, output_tokens) = match source {
        Some(trace) => drawn(trace, random),
        None => (
            length(spec.prompt, part, random),
            length(spec.output, part, random),
        ),
    };
    let tenant = match spec.tenants {
        0 => 0,
        tenants => 1 + u32::try_from(random.below(u64::from(tenants))).unwrap_or(0),
    };
    TraceRequest {
        arrival: micros(at_s).unwrap_or_default(),
        prompt_tokens,
        output_tokens,
        tenant,
        priority: 0,
        key: None,
        blocks: Arc::from([]),
    }
}

/// Both lengths of one request of a trace: they belong together.
fn drawn(trace: Option<&Trace>, random: &mut Random) -> (u32, u32) {
    let requests = trace.map_or(&[][..], |trace| &trace.requests);
    let at = usize::try_from(random.below(requests.len() as u64)).unwrap_or(0);
    requests.get(at).map_or((1, 1), |request| {
        (request.prompt_tokens, request.output_tokens)
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 1 ..= TOKENS_MAX"
)]
fn length(lengths: Lengths, part: f64, random: &mut Random) -> u32 {
    let median = lengths.tokens.at(part);
    let tokens = if lengths.sigma > 0.0 {
        median * libm::exp(lengths.sigma * random.normal())
    } else {
        median
    };
    libm::round(tokens).clamp(1.0, f64::from(TOKENS_MAX)) as u32
}
